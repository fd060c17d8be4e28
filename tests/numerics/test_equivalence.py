"""Ways of computing the same thing give the same losses: scan, micro-batches, meshes, remat."""

import numpy as np
import pytest

from t5x_scale.core.trees import flatten
from t5x_scale.models.interface import stack_layers

TOLERANCE = 5e-5
PAIRS = [("parallel", "palm_adafactor"), ("serial", "adamw")]
ALL = [(block, optimizer) for block in ("parallel", "serial") for optimizer in ("palm_adafactor", "adamw")]


def _check(numerics, block, optimizer, **options):
    expected, _ = numerics.train(block, optimizer)
    got, params = numerics.train(block, optimizer, **options)
    # loss, z-loss, accuracy, weight, rate, gradient norm, skipped
    np.testing.assert_allclose(got[:, 0], expected[:, 0], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(got[:, 1], expected[:, 1], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(got[:, 3], expected[:, 3])
    np.testing.assert_allclose(got[:, 5], expected[:, 5], rtol=1e-3)
    return params


@pytest.mark.parametrize(("block", "optimizer"), ALL)
def test_the_runs_that_are_compared_learn(numerics, block, optimizer):
    record, _ = numerics.train(block, optimizer)
    assert np.isfinite(record).all()
    # Otherwise equal losses would say nothing of the optimiser.
    assert record[:3, 0].mean() - record[-3:, 0].mean() > 0.2
    assert (record[:, 6] == 0).all()


@pytest.mark.parametrize(("block", "optimizer"), ALL)
def test_scanned_and_unscanned(numerics, block, optimizer):
    params = _check(numerics, block, optimizer, scan_layers=False)
    _, scanned = numerics.train(block, optimizer)
    stacked = flatten(stack_layers(params, numerics.CONFIG.num_layers))
    assert stacked.keys() == flatten(scanned).keys()
    for path, leaf in flatten(scanned).items():
        np.testing.assert_allclose(stacked[path], leaf, rtol=0, atol=2e-3, err_msg=path)


@pytest.mark.parametrize(("block", "optimizer", "micro_batches"), [(*PAIRS[0], 2), (*PAIRS[0], 4), (*PAIRS[1], 4)])
def test_micro_batches(numerics, block, optimizer, micro_batches):
    _check(numerics, block, optimizer, micro_batches=micro_batches)


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", "fsdp=2 model=4", "data=2 fsdp=2 model=2"])
@pytest.mark.parametrize(("block", "optimizer"), PAIRS)
def test_meshes(numerics, block, optimizer, mesh):
    _check(numerics, block, optimizer, mesh=mesh)


@pytest.mark.parametrize(("block", "optimizer"), [("parallel", "adamw"), ("serial", "palm_adafactor")])
def test_the_other_optimizer_on_the_mesh_that_splits_most(numerics, block, optimizer):
    _check(numerics, block, optimizer, mesh="fsdp=2 model=4")


def test_micro_batches_on_a_mesh(numerics):
    _check(numerics, "parallel", "palm_adafactor", mesh="fsdp=2 model=4", micro_batches=2)


@pytest.mark.parametrize(
    ("block", "optimizer", "remat"),
    [(*PAIRS[0], "full"), (*PAIRS[0], "minimal"), (*PAIRS[0], "dots"), (*PAIRS[1], "full")],
)
def test_remat(numerics, block, optimizer, remat):
    _check(numerics, block, optimizer, remat=remat)
