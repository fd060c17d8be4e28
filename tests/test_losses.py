"""The chunked loss against the plain formula on full logits, and that full logits never exist."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.losses import Projection, cross_entropy

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
B, L, D, V = 3, 7, 5, 11


def draw(seed, vocab_first, dtype=np.float32, shape=(B, L, D, V)):
    b, length, d, v = shape
    rng = np.random.default_rng(seed)
    hidden = 2 * rng.standard_normal((b, length, d))
    table = rng.standard_normal((v, d) if vocab_first else (d, v))
    targets = rng.integers(0, v, (b, length)).astype(np.int32)
    weights = (rng.random((b, length)) * (rng.random((b, length)) < 0.7)).astype(np.float32)
    return jnp.asarray(hidden, dtype), jnp.asarray(table, dtype), targets, weights


def plain(hidden, table, targets, weights, projection, z_loss):
    """Sums as the words say, all logits at once."""
    kernel = table.T if projection.vocab_first else table
    logits = projection.scale * (hidden @ kernel)
    if projection.soft_cap is not None:
        logits = projection.soft_cap * jnp.tanh(logits / projection.soft_cap)
    log_z = jax.scipy.special.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    entropy = jnp.sum(weights * (log_z - chosen))
    z = jnp.sum(weights * z_loss * log_z**2)
    correct = jnp.sum(weights * (jnp.argmax(logits, axis=-1) == targets))
    return entropy + z, (entropy, z, correct, jnp.sum(weights))


def ours(hidden, table, targets, weights, projection, z_loss, chunk_length):
    losses = cross_entropy(
        hidden, table, targets, weights, projection=projection, z_loss=z_loss, chunk_length=chunk_length
    )
    return losses.total, tuple(losses[1:])


def value_and_grad(function, *static):
    def total(hidden, table, targets, weights):
        # A cotangent that is not 1: the gradients must be multiplied by it.
        value, sums = function(hidden, table, targets, weights, *static)
        return value / 7.0, sums

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True), compiler_options=FAST)


@pytest.mark.parametrize(
    ("vocab_first", "scale", "soft_cap", "z_loss", "chunk_length"),
    [
        (True, D**-0.5, None, 1e-4, 3),  # PaLM; the last chunk is padded
        (True, 1.0, 2.0, 0.3, 4),
        (False, 1.0, None, 0.0, 128),  # longer than the batch
        (False, 0.7, 1.5, 0.1, 7),
        (False, 0.7, None, 0.5, 1),
    ],
)
def test_value_and_gradients(vocab_first, scale, soft_cap, z_loss, chunk_length):
    args = draw(0, vocab_first)
    projection = Projection(scale, vocab_first, soft_cap)
    (total, sums), gradients = value_and_grad(ours, projection, z_loss, chunk_length)(*args)
    (expected, expected_sums), expected_gradients = value_and_grad(plain, projection, z_loss)(*args)
    assert total == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-5, atol=1e-6)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    assert (np.asarray(gradients[0])[args[3] == 0] == 0).all()


def test_forward_only_is_the_same():
    args, projection = draw(1, True), Projection(0.5)
    losses = cross_entropy(*args, projection=projection, z_loss=0.2, chunk_length=3)
    (total, sums), _ = value_and_grad(ours, projection, 0.2, 3)(*args)
    assert float(losses.total) == pytest.approx(7 * float(total), rel=1e-6)
    np.testing.assert_allclose(losses[1:], sums, rtol=1e-6)


def test_no_weight_is_no_loss():
    hidden, table, targets, weights = draw(2, True)
    losses = cross_entropy(hidden, table, targets, 0 * weights)
    assert [float(x) for x in losses] == [0] * 5


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    _, table, targets, _ = draw(2, True)
    losses = cross_entropy(jnp.zeros((B, L, D)), table, targets, np.ones((B, L), np.float32), z_loss=0.5)
    assert float(losses.cross_entropy) == pytest.approx(B * L * math.log(V), rel=1e-6)
    assert float(losses.z_loss) == pytest.approx(0.5 * B * L * math.log(V) ** 2, rel=1e-6)


def test_bfloat16_hidden_states():
    args, projection = draw(3, True, jnp.bfloat16), Projection(0.5)
    (total, _), gradients = value_and_grad(ours, projection, 1e-4, 3)(*args)
    wide = [x.astype(jnp.float32) for x in args[:2]]
    (expected, _), expected_gradients = value_and_grad(plain, projection, 1e-4)(*wide, *args[2:])
    # Products of bfloat16 numbers are exact in float32, and everything after the product is float32.
    assert total.dtype == jnp.float32
    assert total == pytest.approx(float(expected), rel=1e-5)
    for got, wanted in zip(gradients, expected_gradients, strict=True):
        assert got.dtype == jnp.bfloat16
        # The gradient of the logits and the result are rounded to 8 bits each.
        assert np.abs(np.asarray(got, np.float32) - wanted).max() < 2 * 2**-8 * np.abs(wanted).max()


@pytest.mark.parametrize("vocab_first", [True, False])
def test_full_logits_never_exist(vocab_first):
    b, length, d, v, chunk = 4, 64, 8, 2048, 8
    args = draw(0, vocab_first, shape=(b, length, d, v))
    full = b * length * v  # elements
    projection = Projection(1.0, vocab_first)

    def look(function):
        compiled = function.lower(*args).compile()
        shapes = re.findall(r"\b(?:f32|bf16|pred)\[([\d,]+)\]", compiled.as_text())
        largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
        return largest, compiled.memory_analysis().temp_size_in_bytes

    # The plain formula shows that the measure sees them.
    largest, temporary = look(value_and_grad(plain, projection, 1e-4))
    assert largest >= full
    assert temporary >= 4 * full
    largest, temporary = look(value_and_grad(ours, projection, 1e-4, chunk))
    assert largest <= full * chunk / length
    # Two chunks of logits, and a few tables of [V, D].
    assert temporary < 4 * full / 2
