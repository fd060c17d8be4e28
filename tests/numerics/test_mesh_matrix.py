"""Every way of splitting, with packed rows, causal and prefix-LM: the losses of one device over 20 steps.

The axes `context` and `stage` have their own tests, experts theirs, and plain causal rows on four meshes are in
test_equivalence.py.
"""

import numpy as np
import pytest

TOLERANCE = 5e-5
OPTIMIZERS = {"parallel": "palm_adafactor", "serial": "adamw", "experts": "adamw"}


def _check(numerics, block, mesh, **options):
    expected, _ = numerics.train(block, OPTIMIZERS[block], **options)
    got, _ = numerics.train(block, OPTIMIZERS[block], mesh=mesh, **options)
    np.testing.assert_allclose(got[:, :2], expected[:, :2], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(got[:, 3], expected[:, 3])
    np.testing.assert_allclose(got[:, 5], expected[:, 5], rtol=1e-3)


def test_prefixes_change_what_is_learnt(numerics):
    """Otherwise the tests of prefixes would say no more than those without."""
    for block, optimizer in OPTIMIZERS.items():
        causal, _ = numerics.train(block, optimizer)
        prefixed, _ = numerics.train(block, optimizer, prefixed=True)
        assert np.abs(causal[-1, 0] - prefixed[-1, 0]) > 1e-3


@pytest.mark.parametrize("mesh", ["model=4", "vocabulary over fsdp=2, model=4", "length over model=4, fsdp=2"])
@pytest.mark.parametrize("block", ["parallel", "serial"])
def test_causal_rows(numerics, block, mesh):
    _check(numerics, block, mesh)


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", "model=4", "data=2 fsdp=2 model=2"])
@pytest.mark.parametrize("block", ["parallel", "serial"])
def test_prefixed_rows(numerics, block, mesh):
    _check(numerics, block, mesh, prefixed=True)


@pytest.mark.parametrize("mesh", ["fsdp=2 expert=4", "fsdp=2 expert=2 model=2"])
def test_prefixed_rows_through_experts(numerics, mesh):
    _check(numerics, "experts", mesh, prefixed=True)
