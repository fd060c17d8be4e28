"""Windows that differ by layer, against layers put one after another by hand with windows known while compiling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError
from t5x_scale.layers.attention import Attention
from t5x_scale.layers.masks import NO_WINDOW, Mask, make_mask
from t5x_scale.models.blocks import SandwichBlock, SerialBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder
from t5x_scale.models.interface import DecoderModel, unstack_layers

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
CONFIG = ModelConfig(
    num_layers=3, embed_dim=8, mlp_dim=12, num_heads=4, num_kv_heads=2, head_dim=4, vocab_size=13, dtype="float32"
)
TOKENS = np.random.default_rng(0).integers(0, 13, (2, 7)).astype(np.int32)


def make_model(windows, block=SerialBlock, **options):
    return DecoderModel(CONFIG, functools.partial(Decoder, block=block, windows=windows, **options))


@functools.partial(jax.jit, static_argnums=(1, 2), compiler_options=FAST)
def by_hand(params, windows, block, prefix):
    """The hidden states before the final norm."""
    mask = make_mask(prefix=prefix)
    x, positions = params["token_embedder"]["embedding"][TOKENS], jnp.arange(TOKENS.shape[1])[None]
    for index, window in enumerate(windows):
        layer = block(CONFIG, attention=functools.partial(Attention, window=window))
        own = jax.tree.map(lambda leaf, i=index: leaf[i], params["decoder"]["layers"])
        x, _ = layer.apply({"params": own}, x, mask, positions)
    return x


@pytest.mark.parametrize(("block", "remat"), [(SerialBlock, "none"), (SandwichBlock, "full")])
@pytest.mark.parametrize("prefix", [None, np.array([[1, 1, 1, 0, 0, 0, 0]] * 2)])
def test_every_layer_has_its_own(block, remat, prefix):
    model = make_model((2, None), block, remat=remat)
    params = jax.jit(model.init, compiler_options=FAST)(jax.random.key(1))
    batch = {fields.INPUT_TOKENS: TOKENS} | ({} if prefix is None else {fields.PREFIX: prefix})
    got = np.asarray(jax.jit(lambda p, b: model.hidden(p, b).hidden, compiler_options=FAST)(params, batch))
    expected, unlike = (
        np.asarray(by_hand(params, windows, block, prefix)) for windows in ((2, None, 2), (None, 2, None))
    )
    # The final norm's scale is still 1.
    rms = np.sqrt(np.mean(np.square(expected), axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, expected / rms, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - unlike).max() > 1e-2


def test_gradients_pass_a_loop_with_windows():
    model = make_model((2, None), remat="full")
    params = jax.jit(model.init, compiler_options=FAST)(jax.random.key(1))
    batch = {fields.INPUT_TOKENS: TOKENS}
    apart = make_model((2, None, 2), scan_layers=False)

    @functools.partial(jax.jit, static_argnums=1, compiler_options=FAST)
    @jax.grad
    def gradient(params, model):
        return jnp.sum(model.hidden(params, batch).hidden[..., :3] ** 2)

    got = unstack_layers(gradient(params, model), 3)
    expected = gradient(unstack_layers(params, 3), apart)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


@pytest.mark.parametrize("window", [1, 3, 7, 100])
def test_a_mask_with_a_window_is_one_with_a_static_window(window):
    for mask in (Mask(), Mask(query_index=jnp.array([[4, -1], [0, 6]]))):
        length = 7 if mask.query_index is None else 2
        held = Mask(query_index=mask.query_index, window=jnp.int32(window))
        np.testing.assert_array_equal(held.allowed(length, 7), mask.allowed(length, 7, window))
        none = Mask(query_index=mask.query_index, window=jnp.int32(NO_WINDOW))
        np.testing.assert_array_equal(none.allowed(length, 7), mask.allowed(length, 7))


@pytest.mark.parametrize("windows", [(0, None), (2, "3"), (True, 2.5)])
def test_errors(windows):
    with pytest.raises(UserError, match=r"Decoder\.windows must be positive integers or None"):
        make_model(windows).abstract_params()
