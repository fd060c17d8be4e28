"""The door into models/: caches, heads, stacking, and what the parameters mean."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten, unflatten
from t5x_scale.layers.attention import Attention
from t5x_scale.layers.moe import MoeMlp
from t5x_scale.layers.positions import LearnedPositions, NoPositions, RelativePositions, Rope
from t5x_scale.layers.rope_scaling import LinearScaling
from t5x_scale.models.blocks import ParallelBlock, SandwichBlock, SerialBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder, Head
from t5x_scale.models.interface import DecoderModel, stack_layers, unstack_layers

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
CONFIG = ModelConfig(
    num_layers=2, embed_dim=8, mlp_dim=12, num_heads=4, num_kv_heads=2, head_dim=4, vocab_size=13, dtype="float32"
)
LENGTH = 6


def make_model(positions=Rope, block=ParallelBlock, config=CONFIG, **options):
    attention = functools.partial(Attention, positions=positions, window=options.pop("window", None))
    return DecoderModel(
        config, functools.partial(Decoder, block=functools.partial(block, attention=attention), **options)
    )


def make_experts(**options):
    config = dataclasses.replace(CONFIG, num_experts=4, num_experts_per_token=2)
    return make_model(block=functools.partial(SerialBlock, mlp=MoeMlp), config=config, **options)


MODELS = {
    "rope": make_model(),
    "rope, window, own head": make_model(block=SerialBlock, head=Head, window=3),
    "windows by layer": make_model(block=SandwichBlock, windows=[2, None]),
    "windows by layer, unscanned": make_model(windows=(None, 3), scan_layers=False),
    "relative": make_model(RelativePositions, remat="full"),
    "learned, unscanned": make_model(
        NoPositions, position_embedder=functools.partial(LearnedPositions, max_length=LENGTH), scan_layers=False
    ),
    "experts": make_experts(),
    "experts, unscanned": make_experts(scan_layers=False, remat="full"),
}


@functools.cache
def setting(name):
    """A model, its parameters, tokens [2, LENGTH] and the hidden states of the full forward pass."""
    model = MODELS[name]
    params = jax.jit(model.init, compiler_options=FAST)(jax.random.key(1))
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, LENGTH)).astype(np.int32)
    hidden = jax.jit(lambda p, t: model.hidden(p, {fields.INPUT_TOKENS: t}).hidden, compiler_options=FAST)
    return model, params, tokens, np.asarray(hidden(params, tokens))


@pytest.mark.parametrize("name", MODELS)
def test_token_by_token_equals_the_full_forward_pass(name):
    model, params, tokens, expected = setting(name)
    extend = jax.jit(model.extend, compiler_options=FAST)
    cache = model.make_cache(2, LENGTH)
    for i in range(LENGTH):
        hidden, cache = extend(params, tokens[:, i : i + 1], np.full((2, 1), i, np.int32), cache)
        np.testing.assert_allclose(hidden[:, 0], expected[:, i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["rope", "windows by layer", "relative", "experts"])
def test_prompts_of_different_lengths_in_a_longer_cache(name):
    """Row 0 has 4 tokens; row 1 has 2 between padding; then both go on."""
    model, params, tokens, expected = setting(name)
    extend = jax.jit(model.extend, compiler_options=FAST)
    fed = np.array([tokens[0, :4], [7, *tokens[1, :2], 7]], np.int32)
    positions = np.array([[0, 1, 2, 3], [-1, 0, 1, -1]], np.int32)
    hidden, cache = extend(params, fed, positions, model.make_cache(2, LENGTH + 3))
    np.testing.assert_allclose(hidden[0], expected[0, :4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(hidden[1, 1:3], expected[1, :2], rtol=1e-4, atol=1e-5)
    # Padding wrote nothing: slots that no token owns are still zero.
    for leaf in jax.tree.leaves(cache):
        assert not np.asarray(leaf)[:, 1, 2:].any()
        assert not np.asarray(leaf)[:, 0, 4:].any()
    following = np.stack([tokens[0, 4:6], tokens[1, 2:4]])
    hidden, _ = extend(params, following, np.array([[4, 5], [2, 3]], np.int32), cache)
    np.testing.assert_allclose(hidden[0], expected[0, 4:6], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(hidden[1], expected[1, 2:4], rtol=1e-4, atol=1e-5)


def test_bidirectional_prefix_in_the_cache():
    model, params, tokens, causal = setting("rope")
    lengths = np.array([3, 2], np.int32)
    prefix = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    batch = {fields.INPUT_TOKENS: tokens, fields.PREFIX: prefix}
    expected = np.asarray(jax.jit(lambda p, b: model.hidden(p, b).hidden, compiler_options=FAST)(params, batch))
    assert np.abs(expected - causal).max() > 1e-2
    extend = jax.jit(model.extend, compiler_options=FAST)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (2, LENGTH))
    hidden, cache = extend(params, tokens[:, :4], positions[:, :4], model.make_cache(2, LENGTH), lengths)
    np.testing.assert_allclose(hidden, expected[:, :4], rtol=1e-4, atol=1e-5)
    hidden, _ = extend(params, tokens[:, 4:], positions[:, 4:], cache, lengths)
    np.testing.assert_allclose(hidden, expected[:, 4:], rtol=1e-4, atol=1e-5)


class TestAuxiliary:
    """What layers ask for beside the cross-entropy."""

    NAMES = ("balance_loss", "router_z_loss")

    @staticmethod
    def of(model, params, batch):
        return jax.jit(lambda p, b: model.hidden(p, b).auxiliary, compiler_options=FAST)(params, batch)

    def test_a_dense_model_asks_for_nothing(self):
        model, params, tokens, _ = setting("rope")
        assert model.auxiliary_names == ()
        assert model.hidden(params, {fields.INPUT_TOKENS: tokens}).auxiliary == {}

    def test_scanned_and_unscanned(self):
        model, params, tokens, _ = setting("experts")
        batch = {fields.INPUT_TOKENS: tokens}
        scanned = self.of(model, params, batch)
        assert model.auxiliary_names == tuple(scanned) == self.NAMES
        unscanned = MODELS["experts, unscanned"]
        assert unscanned.auxiliary_names == self.NAMES
        got = self.of(unscanned, unstack_layers(params, CONFIG.num_layers), batch)
        for name, loss in scanned.items():
            assert loss.shape == (2,)
            np.testing.assert_allclose(got[name], loss, rtol=1e-5)

    def test_mean_over_layers_of_each_row(self):
        """With a router that prefers nobody the z-loss of every layer is 1e-3 (log E)^2, and the balance loss 1e-2."""
        model, params, tokens, _ = setting("experts")
        flat = flatten(params)
        flat["decoder/layers/mlp/router/kernel"] = 0 * flat["decoder/layers/mlp/router/kernel"]
        got = self.of(model, unflatten(flat), {fields.INPUT_TOKENS: tokens})
        np.testing.assert_allclose(got["router_z_loss"], 1e-3 * np.log(4) ** 2, rtol=1e-5)
        np.testing.assert_allclose(got["balance_loss"], 1e-2, rtol=1e-5)

    def test_padding_is_in_no_loss(self):
        model, params, tokens, _ = setting("experts")
        segments = np.ones((2, LENGTH), np.int32)
        segments[1, 4:] = 0
        other = tokens.copy()
        other[1, 4:] = (other[1, 4:] + 5) % CONFIG.vocab_size
        first, second = (
            self.of(model, params, {fields.INPUT_TOKENS: fed, fields.SEGMENT_IDS: segments}) for fed in (tokens, other)
        )
        short = self.of(model, params, {fields.INPUT_TOKENS: tokens[:, :4]})
        for name in self.NAMES:
            np.testing.assert_array_equal(first[name], second[name])
            np.testing.assert_allclose(first[name][1], short[name][1], rtol=1e-5)

    def test_parameters_alone_are_initialised(self):
        model, params, *_ = setting("experts")
        assert flatten(params).keys() == flatten(model.axes()).keys()
        assert "decoder/layers/mlp/experts/wi_0/kernel" in flatten(params)


def test_cache_shapes():
    cache = make_model().make_cache(3, 5)
    assert {leaf.shape for leaf in jax.tree.leaves(cache)} == {(2, 3, 5, 2, 4)}
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype("float32")}


class TestHead:
    hidden = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)

    def head(self, **options):
        own = options.pop("head", None)
        model = DecoderModel(CONFIG, functools.partial(Decoder, head=own), **options)
        params = {"token_embedder": {"embedding": np.random.default_rng(1).standard_normal((13, 8))}}
        if own:
            params["logits"] = {"kernel": np.random.default_rng(2).standard_normal((8, 13))}
        return model.head(jax.tree.map(lambda x: x.astype(np.float32), params))

    def test_shared(self):
        head = self.head()
        assert (head.scale, head.vocab_first, head.soft_cap) == (8**-0.5, True, None)
        np.testing.assert_allclose(
            head.logits(self.hidden), self.hidden @ head.table.T / np.sqrt(8), rtol=1e-5, atol=1e-5
        )

    def test_own_with_a_cap(self):
        head = self.head(head=Head, logit_soft_cap=2.0)
        assert (head.scale, head.vocab_first) == (1.0, False)
        expected = 2 * np.tanh(self.hidden @ head.table / 2)
        np.testing.assert_allclose(head.logits(self.hidden), expected, rtol=1e-5, atol=1e-5)

    def test_scale_as_asked(self):
        assert self.head(logit_scale=0.25).scale == 0.25
        assert self.head(logit_scale=0.25, head=Head).scale == 0.25


def test_stacking_is_the_inverse_of_unstacking():
    _, params, _, _ = setting("rope")
    apart = unstack_layers(params, 2)
    assert flatten(apart).keys() == flatten(make_model(scan_layers=False).abstract_params()).keys()
    jax.tree.map(np.testing.assert_array_equal, stack_layers(apart, 2), params)


def test_abstract_parameters_are_those_of_init():
    model, params, _, _ = setting("rope, window, own head")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), model.abstract_params()
    )
    assert flatten(model.axes()).keys() == flatten(params).keys()


def test_architecture_tells_what_shapes_do_not():
    plain = make_model().architecture()
    assert plain == make_model(remat="full").architecture()
    other = make_model(functools.partial(Rope, base=500.0)).architecture()
    assert [path for path in plain if plain[path] != other[path]] == ["decoder/layers/self_attention/positions"]
    assert plain != make_model(block=SerialBlock).architecture()
    scaled = make_model(functools.partial(Rope, scaling=LinearScaling(2.0))).architecture()
    assert scaled["decoder/layers/self_attention/positions"]["scaling"] == {"class": "LinearScaling", "factor": 2.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 is not a multiple of num_kv_heads=2"),
        ({"mlp_dim": 0}, "ModelConfig.mlp_dim must be a positive integer, not 0"),
        ({"embed_dim": 8.0}, "ModelConfig.embed_dim must be a positive integer, not 8.0"),
        ({"dtype": "bf16"}, "ModelConfig.dtype is 'bf16'"),
        ({"num_experts": -1}, "ModelConfig.num_experts must be 0 or a positive integer, not -1"),
        ({"num_experts": 4}, "num_experts_per_token=0 must lie between 1 and num_experts=4"),
        ({"num_experts": 4, "num_experts_per_token": 5}, "num_experts_per_token=5 must lie between 1 and"),
        ({"num_experts_per_token": 1}, "num_experts_per_token=1 must lie between 0 and num_experts=0"),
    ],
)
def test_config_errors(changes, message):
    values = {field: getattr(CONFIG, field) for field in CONFIG.__dataclass_fields__}
    with pytest.raises(UserError, match=message):
        ModelConfig(**{**values, **changes})
