"""Clocks of schedules are told apart from the counts that moments need."""

import jax
import jax.numpy as jnp
import pytest

from t5x_scale.checkpoint.layout import flatten_leaves
from t5x_scale.optim import adafactor, adamw, history, lion, muon, palm_adafactor, schedules
from t5x_scale.optim.continuing import clock_mask

AXES = {"decoder": {"layers": {"mlp": {"wi": {"kernel": ("layers", "embed", "mlp")}}}}}
PARAMS = {"decoder": {"layers": {"mlp": {"wi": {"kernel": jnp.ones((2, 3, 4))}}}}}
RATE = schedules.Constant(0.5)


@pytest.mark.parametrize(
    ("optimizer", "clocks"),
    [
        (palm_adafactor.PalmAdafactor(RATE), {"1/count", "5/count"}),
        (adafactor.Adafactor(RATE), {"1/count"}),
        (adamw.AdamW(RATE), {"2/count"}),
        (lion.Lion(RATE), {"2/count"}),
        (history.NormHistory(adamw.AdamW(RATE)), {"inner/2/count"}),
        (muon.Muon(RATE), {"2/count"}),
    ],
)
def test_only_positions_of_schedules_are_clocks(optimizer, clocks):
    state = jax.eval_shape(optimizer.make(AXES).init, PARAMS)
    mask = flatten_leaves(clock_mask(state))
    assert mask.keys() == flatten_leaves(state).keys()
    assert {path for path, is_clock in mask.items() if is_clock} == clocks


def test_a_zeroed_clock_begins_the_schedule_again():
    schedule = schedules.Cosine(peak=1.0, total_steps=10, warmup_steps=0, floor_ratio=0.0)
    transformation = adamw.AdamW(schedule, weight_decay=0.0).make(AXES)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    state = transformation.init(PARAMS)
    for _ in range(5):
        _, state = transformation.update(grads, state, PARAMS)
    rewound = jax.tree.map(lambda leaf, clock: jnp.zeros_like(leaf) if clock else leaf, state, clock_mask(state))
    update = jax.tree.leaves(transformation.update(grads, rewound, PARAMS)[0])[0]
    # Moments of equal gradients give a step of the whole rate: 1 at the schedule's beginning.
    assert jnp.allclose(update, -1.0, atol=1e-5)
