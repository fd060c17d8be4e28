"""The state of an optimiser, taken apart and put together, for every optimiser of the house."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.checkpoint.layout import flatten_leaves
from t5x_scale.core import lazy
from t5x_scale.core.leaves import Leaf, Origin
from t5x_scale.core.trees import unflatten
from t5x_scale.optim.adafactor import Adafactor
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.groups import Groups
from t5x_scale.optim.history import NormHistory
from t5x_scale.optim.lion import Lion
from t5x_scale.optim.muon import Muon
from t5x_scale.optim.palm_adafactor import PalmAdafactor
from t5x_scale.optim.schedules import Constant
from t5x_scale.surgery.interface import Slot
from t5x_scale.surgery.optimizer_state import join_state, split_state

RATE = Constant(0.1)
FROZEN = [("token_embedder/.*", {"freeze": True})]
# The slots of each, and how many entries each has of the toy's 12 parameters.
ROWS = {
    "palm_adafactor": (PalmAdafactor(RATE), {"opt_state/0/v": 12, "opt_state/4/ema": 12}, 4),
    "adafactor": (
        Adafactor(RATE, min_dim_to_factor=4),
        {"opt_state/0/v_row": 9, "opt_state/0/v_col": 9, "opt_state/0/v": 3},
        2,
    ),
    "adamw": (AdamW(RATE), {"opt_state/0/mu": 12, "opt_state/0/nu": 12}, 2),
    "frozen": (Groups(AdamW(RATE), FROZEN), {"opt_state/0/mu": 11, "opt_state/0/nu": 11}, 2),
    "history": (NormHistory(AdamW(RATE)), {"opt_state/inner/0/mu": 12, "opt_state/inner/0/nu": 12}, 6),
    "lion": (Lion(RATE), {"opt_state/0/mu": 12}, 2),
    "muon": (
        Muon(RATE),
        {"opt_state/0/adam/mu": 5, "opt_state/0/adam/nu": 5, "opt_state/0/muon/0/mu": 7},
        4,
    ),
}


def state_leaves(optimizer, weights):
    """The leaves of an optimiser's state as a checkpoint reader gives them: without axes."""
    params = unflatten({path: jnp.asarray(leaf.array.read()) for path, leaf in weights.leaves.items()})
    axes = unflatten({path: leaf.axes for path, leaf in weights.leaves.items()})
    state = jax.device_get({"opt_state": optimizer.make(axes).init(params)})
    return {
        path: Leaf(lazy.from_array(np.asarray(value)), (None,) * np.ndim(value), Origin("restored", path))
        for path, value in flatten_leaves(state).items()
    }


@pytest.mark.parametrize("name", ROWS)
def test_every_optimizer_comes_apart_into_its_moments(name):
    optimizer, slots, counters = ROWS[name]
    weights = toy.make_weights(toy.make_architecture(num_kv_heads=4))
    leaves = state_leaves(optimizer, weights)
    moments, rest = split_state(leaves, weights.leaves)
    assert {slot: len(entries) for slot, entries in moments.items()} == slots
    assert all(Slot(slot).is_known for slot in slots)
    assert len(rest) == counters
    for entries in moments.values():
        for path, leaf in entries.items():
            parameter = weights.leaves[path]
            if leaf.shape == parameter.shape:
                assert leaf.axes == parameter.axes
            else:
                assert leaf.axes[:1] == (("layers",) if path.startswith("decoder/layers") else (None,))
    assert {path: leaf.array for path, leaf in join_state(moments, rest).items()} == {
        path: leaf.array for path, leaf in leaves.items()
    }


NAMES = st.lists(st.sampled_from(["a", "b", "0", "mu"]), min_size=1, max_size=4).map("/".join)


@given(state=st.sets(NAMES, max_size=12), parameters=st.sets(NAMES, max_size=4))
def test_what_is_taken_apart_can_be_put_together(state, parameters):
    leaf = Leaf(lazy.from_array(np.zeros(3)), (None,), Origin("restored"))
    named = dict.fromkeys(parameters, leaf)
    leaves = {f"opt_state/{path}": leaf for path in state}
    moments, counters = split_state(leaves, named)
    assert join_state(moments, counters) == leaves
    assert all(path in named for entries in moments.values() for path in entries)
    assert not any(path.endswith(tuple(f"/{name}" for name in named)) for path in counters)


def test_a_path_belongs_to_the_longer_parameter():
    leaf = Leaf(lazy.from_array(np.zeros(3)), (None,), Origin("restored"))
    moments, _ = split_state({"opt_state/0/mu/norm/scale": leaf}, {"scale": leaf, "norm/scale": leaf})
    assert list(moments) == ["opt_state/0/mu"]


def test_a_stack_of_other_length_is_not_called_layers():
    weights = toy.make_weights(toy.make_architecture())
    path = "decoder/layers/pre_norm/scale"
    leaf = Leaf(lazy.from_array(np.zeros((2, 8))), (None, None), Origin("restored"))
    moments, _ = split_state({f"opt_state/0/mu/{path}": leaf}, weights.leaves)
    assert moments["opt_state/0/mu"][path].axes == (None, None)
