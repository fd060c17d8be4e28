"""What all surgeries share: slots, the fate of an optimiser's state, what is dropped, and the recipe."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from t5x_scale.checkpoint.layout import flatten_leaves
from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.core.leaves import Leaf, Origin
from t5x_scale.optim.adafactor import Adafactor
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.lion import Lion
from t5x_scale.optim.muon import Muon
from t5x_scale.optim.palm_adafactor import PalmAdafactor
from t5x_scale.optim.schedules import Constant
from t5x_scale.surgery.depth import Stack
from t5x_scale.surgery.interface import PARAMETERS, Slot, Surgery
from t5x_scale.surgery.optimizer_state import split_state

LLAMA = toy.FAMILIES["llama"]
WO = "decoder/layers/mlp/wo/kernel"
MOMENTS = ["opt_state/0/mu", "opt_state/0/nu"]


@dataclasses.dataclass(frozen=True)
class Change(Surgery):
    """Multiplies, leaves out or reshapes a tensor."""

    path: str = WO
    factor: float = 2.0
    drop: bool = False
    cut: bool = False

    def change_leaves(self, leaves, architecture, slot):
        changed = dict(leaves)
        leaf = changed.pop(self.path)
        if self.cut:
            leaf = Leaf(lazy.take_slice(leaf.array, 1, 0, 2), leaf.axes, leaf.origin)
        if not self.drop:
            changed[self.path] = leaf.changed(slot.scale(leaf.array, self.factor), "scaled")
        return changed


RATE = Constant(0.1)
OPTIMIZERS = {
    "palm_adafactor": PalmAdafactor(RATE),
    "adafactor": Adafactor(RATE, momentum=0.9),
    "adamw": AdamW(RATE),
    "lion": Lion(RATE),
    "muon": Muon(RATE),
}


def moments_after(optimizer, factor):
    """The moments of a parameter `factor` times as large, in a model that computes the same, after two steps."""
    axes = {"wo": ("mlp", "embed")}
    rng = np.random.default_rng(0)
    params = {"wo": factor * jnp.asarray(rng.standard_normal((6, 5)), jnp.float32)}
    transformation = optimizer.make(axes)
    state = transformation.init(params)
    for _ in range(2):
        grads = {"wo": jnp.asarray(rng.standard_normal((6, 5)), jnp.float32) / factor}
        _, state = transformation.update(grads, state, params)
    leaves = {
        path: Leaf(lazy.from_array(np.asarray(value)), (None,) * np.ndim(value), Origin("restored", path))
        for path, value in flatten_leaves({"opt_state": jax.device_get(state)}).items()
    }
    parameters = {"wo": Leaf(lazy.from_array(np.asarray(params["wo"])), axes["wo"], Origin("restored", "wo"))}
    moments, _ = split_state(leaves, parameters)
    return {slot: entries["wo"].array for slot, entries in moments.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_moments_are_scaled_as_if_the_parameter_had_always_been(name, factor):
    plain, scaled = (moments_after(OPTIMIZERS[name], f) for f in (1.0, factor))
    assert plain.keys() == scaled.keys()
    assert plain
    for slot, array in plain.items():
        found = Slot(slot).scale(array, factor).read()
        np.testing.assert_allclose(found, scaled[slot].read(), rtol=1e-5, atol=1e-12, err_msg=slot)


def test_a_factor_of_zero_starts_anew():
    ones = lazy.from_array(np.ones((2, 3), np.float32))
    assert not PARAMETERS.scale(ones, 0.0).read().any()
    assert not Slot("opt_state/0/mu").scale(ones, 0.0).read().any()
    assert not Slot("opt_state/4/ema").scale(ones, 0.0).read().any()
    assert Slot("opt_state/0/nu").scale(ones, 0.0).read().all()


def test_new_elements_are_drawn_or_zero_or_the_mean_of_the_others():
    drawn = lazy.from_array(np.full((4, 3), 7.0, np.float32))
    others = lazy.from_array(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert PARAMETERS.new(drawn, others, 0) is drawn
    assert not Slot("a/mu").new(drawn, others, 0).read().any()
    np.testing.assert_array_equal(Slot("a/nu").new(drawn, others, 0).read(), [[1.5, 2.5, 3.5]] * 4)


def test_new_second_moments_keep_the_first_steps_of_adam_small():
    """The reason for the mean: with a zero, one step is about sqrt(1 / (1 - b2)) times too large."""
    transformation = optax.scale_by_adam(0.0, 0.95)
    state = transformation.init(jnp.zeros(2))._replace(count=jnp.int32(1000), nu=jnp.array([1.0, 0.0]))
    updates, _ = transformation.update(jnp.ones(2), state)
    assert float(updates[0]) == pytest.approx(1.0, rel=1e-3)
    assert float(updates[1]) > 4.0


def test_the_recipe_is_what_was_set_and_what_became_of_the_state():
    weights = toy.make_weights(LLAMA, moments=MOMENTS)
    result = Stack(2, optimizer="reset")(Change(factor=4.0)(weights))
    assert result.recipe == (
        {"surgery": "Change", "path": WO, "factor": 4.0, "drop": False, "cut": False, "optimizer": "map"},
        {"surgery": "Stack", "times": 2, "optimizer": "reset"},
    )
    assert result.dropped == {
        "opt_state/0/mu": Origin("dropped", "opt_state/0/mu", "12 tensors; the optimiser starts afresh"),
        "opt_state/0/nu": Origin("dropped", "opt_state/0/nu", "12 tensors; the optimiser starts afresh"),
        "opt_state/0/count": Origin("dropped", "opt_state/0/count", "the optimiser starts afresh"),
    }
    assert Change()(toy.make_weights(LLAMA)).recipe[0]["optimizer"] == "none"


def test_what_nothing_is_made_of_is_dropped():
    weights = toy.make_weights(LLAMA)
    assert Change(drop=True)(weights).dropped == {WO: Origin("dropped", f"params/{WO}", "by Change")}
    assert not Change()(weights).dropped


def test_a_state_that_is_kept_must_fit():
    weights = toy.make_weights(LLAMA, moments=MOMENTS)
    kept = Change(optimizer="keep")(weights)
    assert kept.moments is weights.moments
    assert kept.counters is weights.counters
    assert kept.recipe[-1]["optimizer"] == "keep"
    for surgery in (Change(cut=True, optimizer="keep"), Change(drop=True, optimizer="keep")):
        with pytest.raises(UserError, match=f"changes the shape of {WO}; the state"):
            surgery(weights)


@pytest.mark.parametrize(
    ("slot", "reduce", "reason"),
    [
        ("opt_state/0/trace", False, "it is not known what opt_state/0/trace is an average of"),
        ("opt_state/0/v_row", True, r"opt_state/0/v_row has a tensor of [4, 12] for decoder/layers/mlp/wo/kernel"),
    ],
)
def test_a_state_that_cannot_be_mapped_is_reset_and_that_is_said(slot, reduce, reason):
    weights = toy.make_weights(LLAMA, moments=[slot])
    leaf = weights.moments[slot][WO]
    if reduce:
        leaf = Leaf(lazy.select(leaf.array, 2, 0), leaf.axes[:-1], leaf.origin)
    result = Change()(weights.replace(moments={slot: {WO: leaf}}))
    assert not result.moments
    assert result.recipe[-1]["optimizer"] == "reset"
    assert result.recipe[-1]["optimizer_reason"].startswith(reason)
    assert reason in result.dropped[slot].detail


def test_moments_of_some_layers_only_are_reset_by_a_change_of_depth():
    weights = toy.make_weights(LLAMA, moments=MOMENTS[:1])
    leaf = weights.moments[MOMENTS[0]][WO]
    part = Leaf(lazy.take_slice(leaf.array, 0, 0, 2), (None, *leaf.axes[1:]), leaf.origin)
    result = Stack(2)(weights.replace(moments={MOMENTS[0]: {WO: part}}))
    assert result.recipe[-1]["optimizer"] == "reset"


def test_a_surgery_that_forgets_the_moments_is_found():
    class Forgetful(Change):
        def change_leaves(self, leaves, architecture, slot):
            return super().change_leaves(leaves, architecture, slot) if slot.is_parameters else leaves

    with pytest.raises(ValueError, match="does not fit the parameters"):
        Forgetful(cut=True)(toy.make_weights(LLAMA, moments=MOMENTS))


def test_moments_of_frozen_parameters_may_be_missing():
    weights = toy.make_weights(LLAMA, moments=MOMENTS)
    some = {slot: {WO: entries[WO]} for slot, entries in weights.moments.items()}
    result = Stack(2)(weights.replace(moments=some))
    assert [list(entries) for entries in result.moments.values()] == [[WO], [WO]]
