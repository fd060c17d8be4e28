"""Position schemes against formulas written another way: complex rotations, explicit loops."""

import jax
import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.layers.positions import LearnedPositions, NoPositions, RelativePositions, Rope

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
B, L, N, H, D = 2, 5, 2, 8, 12
SHAPES = {"embed_dim": D, "num_heads": N, "head_dim": H}


def features(seed=0, heads=N):
    return np.random.default_rng(seed).standard_normal((B, L, heads, H)).astype(np.float32)


def turn(x, positions, base, rotated, interleaved):
    """Multiplies complex numbers made of pairs of features by exp(i position base^(-2k/rotated))."""
    out = x.astype(np.float64)
    for pair in range(rotated // 2):
        a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + rotated // 2)
        angle = positions[..., None] * base ** (-2 * pair / rotated)
        z = (x[..., a] + 1j * x[..., b]) * np.exp(1j * angle)
        out[..., a], out[..., b] = z.real, z.imag
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rope_is_a_complex_rotation(fraction, interleaved):
    rope = Rope(**SHAPES, base=100.0, fraction=fraction, interleaved=interleaved)
    positions = np.array([[0, 1, 2, 0, 1], [3, 40, 500, 7, 8]], np.int32)
    x = features()
    expected = turn(x, positions, 100.0, int(H * fraction), interleaved)
    keys = rope.apply({}, x, positions, method="encode_keys")
    queries, bias = rope.apply({}, x, positions, positions, method="encode_queries")
    assert bias is None
    np.testing.assert_allclose(keys, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(keys, queries)


def test_rope_takes_keys_with_fewer_heads_and_one_row_of_positions():
    rope = Rope(**SHAPES)
    positions = np.arange(L, dtype=np.int32)[None]
    x = features(heads=1)
    got = rope.apply({}, x, positions, method="encode_keys")
    np.testing.assert_allclose(got, turn(x, np.repeat(positions, B, 0), 10000.0, H, False), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_rope_logits_depend_on_differences_only(fraction):
    rope = Rope(**SHAPES, fraction=fraction)

    def logits(shift):
        positions = np.array([[0, 3, 4, 9, 20]], np.int32) + shift
        q, _ = rope.apply({}, features(1), positions, positions, method="encode_queries")
        k = rope.apply({}, features(2), positions, method="encode_keys")
        return np.einsum("bind,bjnd->bnij", q, k)

    np.testing.assert_allclose(logits(0), logits(37), rtol=0, atol=2e-5)
    unturned = np.einsum("bind,bjnd->bnij", features(1), features(2))
    assert np.abs(logits(0) - unturned).max() > 0.1


def test_rope_completes_an_odd_number_of_features_to_pairs():
    positions = np.arange(L, dtype=np.int32)[None]
    got = Rope(**SHAPES, base=100.0, fraction=0.4).apply({}, features(), positions, method="encode_keys")
    expected = features().astype(np.float64)
    for pair in range(2):  # 3 of 8 features: exponents are thirds, and the fourth turns with the second.
        angle = positions[..., None] * 100.0 ** (-2 * pair / 3)
        z = (expected[..., pair] + 1j * expected[..., pair + 2]) * np.exp(1j * angle)
        expected[..., pair], expected[..., pair + 2] = z.real, z.imag
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("head_dim", "fraction", "share"), [(7, 1.0, 7), (8, 0.1, 0)])
def test_rope_refuses_features_that_are_not_pairs(head_dim, fraction, share):
    rope = Rope(embed_dim=D, num_heads=N, head_dim=head_dim, fraction=fraction)
    with pytest.raises(UserError, match=f"{share} of {head_dim} features would turn.*: change ModelConfig.head_dim or"):
        rope.apply({}, features()[..., :head_dim], np.zeros((1, L), np.int32), method="encode_keys")


def test_no_positions():
    x, positions = features(), np.arange(L)[None]
    scheme = NoPositions(**SHAPES)
    assert scheme.apply({}, x, positions, method="encode_keys") is x
    q, bias = scheme.apply({}, x, positions, positions, method="encode_queries")
    assert q is x
    assert bias is None


def relative_params(seed=3):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (D, N, H), "content_bias": (N, H), "position_bias": (N, H)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", ["indices", "packed", "cached"])
def test_relative_positions_are_transformer_xl(kind):
    """The logit of (i, j) is (q_i + u) . k_j + (q_i + v) . (W r_{i-j}), term by term in a loop."""
    queries, keys = {
        "indices": (np.arange(L)[None], np.arange(L)[None]),
        "packed": (np.array([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]),) * 2,
        "cached": (np.array([[8], [3]]), np.arange(9)[None]),
    }[kind]
    rng = np.random.default_rng(5)
    q = rng.standard_normal((B, queries.shape[1], N, H)).astype(np.float32)
    k = rng.standard_normal((B, keys.shape[1], N, H)).astype(np.float32)
    params = relative_params()
    scheme = RelativePositions(**SHAPES)
    new_q, bias = scheme.apply({"params": params}, q, queries, keys, method="encode_queries")
    assert scheme.apply({"params": params}, k, keys, method="encode_keys") is k
    got = np.einsum("bind,bjnd->bnij", new_q, k) + bias
    w, u, v = (params[name].astype(np.float64) for name in ("kernel", "content_bias", "position_bias"))
    rates = [10000 ** (-2 * i / D) for i in range(D // 2)]
    for b in range(B):
        for i in range(q.shape[1]):
            for j in range(k.shape[1]):
                distance = queries[b % len(queries), i] - keys[b % len(keys), j]
                r = np.array([np.sin(distance * f) for f in rates] + [np.cos(distance * f) for f in rates])
                for n in range(N):
                    logit = (q[b, i, n] + u[n]) @ k[b, j, n] + (q[b, i, n] + v[n]) @ (w[:, n].T @ r)
                    assert got[b, n, i, j] == pytest.approx(logit, rel=1e-4, abs=1e-4), (b, i, j, n)


def test_relative_positions_begin_as_configured():
    args = (np.zeros((1, 2, 4, 32), np.float32), np.arange(2)[None], np.arange(2)[None])
    scheme = RelativePositions(64, 4, 32)
    init = jax.jit(lambda key: scheme.init(key, *args, method="encode_queries"), compiler_options=FAST)
    boxed = init(jax.random.key(0))["params"]
    assert boxed["kernel"].names == ("embed", "heads", "kv")
    assert boxed["content_bias"].names == ("heads", "kv")
    assert np.std(boxed["kernel"].value) == pytest.approx(64**-0.5, rel=0.04)
    assert np.std(boxed["position_bias"].value) == pytest.approx(0.02, rel=0.2)


def test_learned_positions():
    table = np.arange(21, dtype=np.float32).reshape(7, 3)
    scheme = LearnedPositions(max_length=7, embed_dim=3)
    got = scheme.apply({"params": {"embedding": table}}, np.array([[0, 6, 2]]))
    np.testing.assert_array_equal(got[0], table[[0, 6, 2]])
