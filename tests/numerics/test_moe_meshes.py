"""A model with experts trains alike however it is computed: scan, micro-batches, meshes, remat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core.trees import flatten, unflatten
from t5x_scale.models.interface import stack_layers

TOLERANCE = 5e-5
LOSS, Z_LOSS, _, WEIGHT, _, NORM, SKIPPED, BALANCE, ROUTER_Z = range(9)


def _check(numerics, **options):
    expected, _ = numerics.train("experts", "adamw")
    got, params = numerics.train("experts", "adamw", **options)
    for column in (LOSS, Z_LOSS, BALANCE, ROUTER_Z):
        np.testing.assert_allclose(got[:, column], expected[:, column], rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(got[:, WEIGHT], expected[:, WEIGHT])
    np.testing.assert_allclose(got[:, NORM], expected[:, NORM], rtol=1e-3)
    return params


def test_the_run_that_is_compared_learns(numerics):
    record, _ = numerics.train("experts", "adamw")
    runtime = numerics.make_runtime("experts", "adamw")
    assert runtime.metric_names[BALANCE:] == ("train/balance_loss", "train/router_z_loss")
    assert np.isfinite(record).all()
    assert record[:3, LOSS].mean() - record[-3:, LOSS].mean() > 0.2
    assert (record[:, SKIPPED] == 0).all()
    # Near balance: 0.1 would be all experts used alike, 0.4 one for all tokens.
    assert (record[:, BALANCE] > 0.0999).all()
    assert (record[:, BALANCE] < 0.15).all()


def test_experts_that_are_used_unevenly_come_to_be_used_evenly(numerics):
    """What the balance loss is for: its gradient reaches the routers of all layers."""
    model = numerics.make_model("experts")
    flat = flatten(numerics.initial_params("experts"))
    router = flat["decoder/layers/mlp/router/kernel"]

    def loss(kernel):
        changed = unflatten(flat | {"decoder/layers/mlp/router/kernel": kernel})
        return jnp.mean(model.hidden(changed, numerics.BATCHES[0]).auxiliary["balance_loss"])

    step = jax.jit(jax.value_and_grad(loss), compiler_options=numerics.FAST)
    kernel, losses = router * 10, []
    for _ in range(40):
        value, gradient = step(kernel)
        losses.append(float(value))
        kernel = kernel - 20.0 * gradient
    # 0.1 is all experts used alike.
    assert losses[0] > 0.11
    assert losses[-1] < 0.101


def test_scanned_and_unscanned(numerics):
    params = _check(numerics, scan_layers=False)
    _, scanned = numerics.train("experts", "adamw")
    stacked = flatten(stack_layers(params, numerics.CONFIG.num_layers))
    assert stacked.keys() == flatten(scanned).keys()
    for path, leaf in flatten(scanned).items():
        np.testing.assert_allclose(stacked[path], leaf, rtol=0, atol=2e-3, err_msg=path)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches(numerics, micro_batches):
    _check(numerics, micro_batches=micro_batches)


@pytest.mark.parametrize(
    "mesh",
    [
        "fsdp=8",
        "fsdp=2 model=4",
        "data=2 fsdp=2 model=2",
        "fsdp=2 expert=2 model=2",
        "data=2 expert=2 context=2",
        "fsdp=4 expert=2",
        "expert=4",
        "fsdp=2 expert=4",
        "experts over expert=2 model=2, fsdp=2",
    ],
)
def test_meshes(numerics, mesh):
    _check(numerics, mesh=mesh)


def test_tokens_are_exchanged_where_that_is_less(numerics):
    """On the mesh of the test above: two experts of four, 1.5 times the room of an even use, are less than all."""
    runtime = numerics.make_runtime("experts", "adamw", "fsdp=2 expert=4")
    text = runtime.compile_step(8, 12, 1, tuple(numerics.BATCHES[0])).as_text()
    assert " all-to-all(" in text
    assert " conditional(" in text


def test_micro_batches_on_a_mesh(numerics):
    _check(numerics, mesh="fsdp=2 expert=2 model=2", micro_batches=2)


@pytest.mark.parametrize("remat", ["full", "minimal", "dots"])
def test_remat(numerics, remat):
    _check(numerics, remat=remat)


def test_remat_on_a_mesh_with_experts(numerics):
    _check(numerics, mesh="fsdp=2 expert=2 model=2", remat="minimal")
