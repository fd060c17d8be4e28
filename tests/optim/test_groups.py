"""Groups: frozen parameters, decay and rates by regex, and errors that name the rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.groups import Groups
from t5x_scale.optim.interface import LeafOptions, frozen_paths
from t5x_scale.optim.schedules import Constant

ADAMW = AdamW(Constant(0.1), weight_decay=0.5)
AXES = {"a": {"kernel": ("embed", "mlp"), "bias": ("mlp",)}, "b": {"kernel": ("mlp", "embed")}}


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    flat = {"kernel": rng.standard_normal((4, 6)), "bias": rng.standard_normal(6)}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {"a": flat, "b": {"kernel": flat["kernel"].T}})


def test_frozen_parameters_do_not_change_in_any_bit_and_have_no_state(trees):
    groups = Groups(ADAMW, [("a/.*", {"freeze": True})])
    params = arrays()
    params["a"]["bias"] = params["a"]["bias"].at[0].set(-0.0)
    params["a"]["kernel"] = params["a"]["kernel"].astype(jnp.bfloat16)
    grads = arrays(1)
    grads["a"]["bias"] = jnp.full((6,), jnp.nan)
    after, state = trees.run(groups, params, AXES, [grads] * 3)
    for name, old in params["a"].items():
        assert np.asarray(old).tobytes() == after["a"][name].tobytes()
    assert not np.array_equal(params["b"]["kernel"], after["b"]["kernel"])
    assert set(state[0].mu) == {"b"}
    assert frozen_paths(groups, AXES) == {"a/kernel", "a/bias"}
    assert frozen_paths(ADAMW, AXES) == frozenset()


def test_the_rest_trains_as_without_groups(trees):
    params, grads = arrays(), [arrays(seed) for seed in range(1, 4)]
    plain, _ = trees.run(ADAMW, params, AXES, grads)
    grouped, _ = trees.run(Groups(ADAMW, [("a/kernel", {"freeze": True})]), params, AXES, grads)
    np.testing.assert_array_equal(grouped["b"]["kernel"], plain["b"]["kernel"])
    np.testing.assert_array_equal(grouped["a"]["bias"], plain["a"]["bias"])


def test_no_decay_and_decay(trees):
    params, grads = arrays(), [jax.tree.map(jnp.zeros_like, arrays())]
    groups = Groups(ADAMW, [(".*", {"no_decay": True}), ("a/bias", {"no_decay": False})])
    after, _ = trees.run(groups, params, AXES, grads)
    np.testing.assert_array_equal(after["a"]["kernel"], params["a"]["kernel"])
    np.testing.assert_allclose(after["a"]["bias"], 0.95 * params["a"]["bias"], rtol=1e-6)


@settings(deadline=None, max_examples=10)
@given(factor=st.floats(0, 4, width=32))
def test_a_rate_multiplier_scales_the_update(factor):
    params, grads = arrays(), arrays(1)
    groups = Groups(ADAMW, [("b/.*", {"lr_multiplier": factor})])
    plain, grouped = ADAMW.make(AXES), groups.make(AXES)
    expected, _ = plain.update(grads, plain.init(params), params)
    found, _ = grouped.update(grads, grouped.init(params), params)
    np.testing.assert_allclose(found["b"]["kernel"], factor * expected["b"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(found["a"]["kernel"], expected["a"]["kernel"])


def test_rules_add_up_and_later_ones_win():
    rules = [(".*", {"lr_multiplier": 0.5}), ("a/.*", {"no_decay": True}), ("a/bias", {"lr_multiplier": 2.0})]
    seen = {}

    class Spy(AdamW):
        def make(self, axes, options):
            seen.update(options)
            return optax.identity()

    Groups(Spy(Constant(0.1)), rules).make(AXES)
    assert seen == {
        "a/kernel": LeafOptions(0.5, False),
        "a/bias": LeafOptions(2.0, False),
        "b/kernel": LeafOptions(0.5, None),
    }


def test_groups_can_be_nested(trees):
    inner = Groups(ADAMW, [("a/bias", {"lr_multiplier": 0.5})])
    outer = Groups(inner, [("a/bias", {"lr_multiplier": 0.5}), ("b/.*", {"freeze": True})])
    flat = Groups(ADAMW, [("a/bias", {"lr_multiplier": 0.25}), ("b/.*", {"freeze": True})])
    params, grads = arrays(), [arrays(1)]
    nested_params, nested_state = trees.run(outer, params, AXES, grads)
    flat_params, flat_state = trees.run(flat, params, AXES, grads)
    assert jax.tree.structure(nested_state) == jax.tree.structure(flat_state)
    for path, value in flatten(nested_params).items():
        np.testing.assert_array_equal(value, flatten(flat_params)[path])
    assert frozen_paths(Groups(outer, []), AXES) == {"b/kernel"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("a/kernal", {"freeze": True})], "'a/kernal' matches no parameter; the nearest path is 'a/kernel'"),
        ([("kernel", {"freeze": True})], "must match the whole path"),
        ([("a/(", {"freeze": True})], "'a/(' is no regular expression"),
        ([("a/.*", {"frozen": True})], "sets 'frozen'; known are freeze, no_decay, lr_multiplier (did you mean 'fre"),
        ([("a/.*", {"lr_multiplier": -1})], "lr_multiplier is -1"),
        ([("a/.*", {"lr_multiplier": "0.1"})], "lr_multiplier is '0.1'"),
        ([("a/.*", {"freeze": 1})], "freeze is 1; expected True or False"),
        ([("a/.*", "freeze")], "is no rule"),
        ([(".*", {"freeze": True})], "freeze every parameter"),
    ],
)
def test_wrong_rules_are_named(rules, message):
    with pytest.raises(UserError) as error:
        Groups(ADAMW, rules).make(AXES)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
