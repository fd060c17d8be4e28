"""Ring attention on simulated devices against the dense formula, forward and backward, in both orders of the length."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.layers.masks import make_mask
from t5x_scale.layers.ops.attention import BLOCK, attention, ring, ring_splash, tiles
from t5x_scale.layers.ops.attention.notices import warn_once
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.length_order import places
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.shardings import activation_rules

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
B, L, N, H = 4, 48, 4, 6
# Splash wants at least 128 of each device.
LONG = 512
MESHES = {
    "context=4": MeshConfig(fsdp=1, context=4),
    "context=8": MeshConfig(fsdp=1, context=8),
    "fsdp=2 context=2 model=2": MeshConfig(fsdp=2, context=2, model=2),
    "context=2 model=4": MeshConfig(fsdp=1, context=2, model=4),
}


@functools.cache
def documents(length):
    """Three documents a row and padding, a prefix in each: segments and prefix, [B, length]."""
    rng = np.random.default_rng(1)
    segments, prefix = np.zeros((B, length), np.int32), np.zeros((B, length), np.int32)
    for row in range(B):
        ends = np.sort(rng.choice(np.arange(4, length - 2), 3, replace=False))
        for number, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            segments[row, begin:end] = number + 1
            prefix[row, begin : rng.integers(begin, end + 1)] = 1
    return segments, prefix


CASES = {
    # name: kv heads, segments, prefix, window, window of the layer, soft cap
    "causal": (1, False, False, None, None, None),
    "causal, cap": (4, False, False, None, None, 2.0),
    "packed": (2, True, False, None, None, None),
    "window": (2, False, False, 5, None, None),
    "packed, both windows, cap": (1, True, False, 9, 6, 1.5),
    "prefix": (4, False, True, None, None, None),
    "packed prefix": (2, True, True, None, None, None),
    "packed prefix window cap": (1, True, True, 4, None, 3.0),
}


def dense(segments, prefix, window, length):
    """bool [B, length, length] from the words of the definition."""
    i, j, shape = np.arange(length)[:, None], np.arange(length)[None], (B, length, length)
    same = np.ones(shape, bool) if segments is None else segments[:, :, None] == segments[:, None, :]
    last = np.broadcast_to(i, shape).copy()
    if prefix is not None:
        ends = np.where(same & (prefix != 0)[:, None, :], j, -1).max(axis=-1, keepdims=True)
        last = np.maximum(last, ends)
    seen = same & (j <= last)
    return seen if window is None else seen & (j > i - window)


def naive(q, k, v, allowed, scale, soft_cap):
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    logits = jnp.einsum("bind,bjnd->bnij", q, k) * scale
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    logits = jnp.where(allowed[:, None], logits, -jnp.inf)
    return jnp.einsum("bnij,bjnd->bind", jax.nn.softmax(logits, axis=-1), v)


@functools.partial(jax.jit, static_argnums=1, compiler_options=FAST)
def run_naive(allowed, soft_cap, *args):
    """Output and gradients of float32 queries, keys and values, with the gradient of the output behind them."""
    *inputs, d_out = args
    out, pull = jax.vjp(lambda *inputs: naive(*inputs, allowed, 0.37, soft_cap), *inputs)
    return out, *pull(d_out)


def draw(kv_heads, dtype, length):
    rng = np.random.default_rng(0)
    shapes = [(B, length, number, H) for number in (N, kv_heads, kv_heads, N)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def compare(mesh, case, order, dtype=np.float32, length=L, part="tiles"):
    """Output and gradients of queries, keys and values, of the ring and of the naive formula in float32."""
    kv_heads, packed, prefixed, window, own_window, soft_cap = CASES[case]
    segments, prefix = (
        x if is_given else None for x, is_given in zip(documents(length), (packed, prefixed), strict=True)
    )
    *inputs, d_out = draw(kv_heads, dtype, length)
    smallest = min((size for size in (window, own_window) if size is not None), default=None)
    allowed = dense(segments, prefix, smallest, length)
    mesh = MESHES[mesh].make_mesh(jax.devices()[: MESHES[mesh].make_abstract_mesh().size])
    index = places(length, mesh.shape["context"], order)
    back = np.argsort(index)

    def on_mesh(d_out, *inputs):
        moved = [None if x is None else jnp.asarray(x)[:, index] for x in (segments, prefix)]
        mask = make_mask(*moved, None if order == "contiguous" else jnp.broadcast_to(index, (B, length)))
        mask = dataclasses.replace(mask, window=None if own_window is None else jnp.int32(own_window))

        def op(*inputs):
            return ring.attention_ring(*inputs, mask, scale=0.37, window=window, soft_cap=soft_cap, part=part)

        with activation_rules(mesh, rules.fsdp_model()):
            out, pull = jax.vjp(op, *(x[:, index] for x in inputs))
            return [x[:, back] for x in (out, *pull(d_out[:, index]))]

    got = jax.jit(on_mesh, compiler_options=FAST)(d_out, *inputs)
    return got, run_naive(allowed, soft_cap, *(x.astype(jnp.float32) for x in (*inputs, d_out)))


@pytest.mark.parametrize("order", ["zigzag", "contiguous"])
@pytest.mark.parametrize(
    ("mesh", "case"),
    [
        *(("context=4", case) for case in CASES),
        *(("fsdp=2 context=2 model=2", case) for case in ("causal", "causal, cap", "packed prefix")),
        *(("context=2 model=4", case) for case in ("causal", "packed prefix", "prefix")),
        ("context=8", "packed prefix window cap"),
    ],
)
def test_equals_the_dense_formula(mesh, case, order):
    got, expected = compare(mesh, case, order)
    for name, one, other in zip(("out", "d_q", "d_k", "d_v"), got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6, err_msg=name)


@pytest.mark.parametrize("order", ["zigzag", "contiguous"])
def test_bfloat16(order):
    got, expected = compare("fsdp=2 context=2 model=2", "packed prefix", order, jnp.bfloat16)
    for name, one, other in zip(("out", "d_q", "d_k", "d_v"), got, expected, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(np.float32), other, rtol=0.02, atol=0.03, err_msg=name)


@pytest.mark.parametrize(
    ("mesh", "case", "order"),
    [
        ("context=4", "causal", "zigzag"),
        ("context=4", "packed prefix window cap", "zigzag"),
        ("context=4", "packed", "contiguous"),
        ("fsdp=2 context=2 model=2", "causal, cap", "contiguous"),
        ("fsdp=2 context=2 model=2", "packed prefix", "zigzag"),
        ("context=2 model=4", "packed, both windows, cap", "zigzag"),
    ],
)
def test_splash_on_each_device(mesh, case, order):
    got, expected = compare(mesh, case, order, length=LONG, part="splash")
    for name, one, other in zip(("out", "d_q", "d_k", "d_v"), got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6, err_msg=name)


def test_tiles_are_no_longer_than_halves():
    assert [tiles.tile_length(length) for length in (8192, 1536, 640, 96, 7)] == [512, 384, 320, 48, 7]
    # 2 x 127 tiles of one token each would be many.
    assert tiles.tile_length(2 * 8191) == 8191


def test_parts_that_splash_takes():
    taken = (128, 640, 768, 8192, 32768)
    assert [n for n in (64, *taken, 8200, 65536) if not ring_splash.unsupported(1, n, BLOCK)] == [*taken]
    # The plan of so many blocks does not fit into scalar memory.
    assert ring_splash.unsupported(64, 32768, BLOCK).endswith("exceeds scalar memory; fewer rows at a time would do")
    assert ring_splash.unsupported(16, 32768, BLOCK).endswith("; Attention.block=1024 would do")
    assert ring_splash.unsupported(16, 32768, 2 * BLOCK) is None


@pytest.mark.parametrize(
    ("length", "block", "expected"),
    [(8192, 512, 512), (640, 512, 128), (1280, 512, 256), (1152, 512, 384), (768, 1024, 768)],
)
def test_blocks_of_a_part_pad_nothing(length, block, expected):
    assert ring_splash.whole_block(length, block) == expected


def trace_on_tpus(length, rows=1, block=BLOCK):
    """The program of ring attention on a slice that is not here, of rows with parts of `length` tokens."""
    mesh = MeshConfig(fsdp=1, context=4).make_abstract_mesh(4, "tpu")
    q = jax.ShapeDtypeStruct((rows, 4 * length, 2, 64), jnp.bfloat16)
    with activation_rules(mesh, rules.context()):
        return str(jax.make_jaxpr(lambda q: attention(q, q, q, make_mask(), scale=1.0, block=block))(q))


@pytest.mark.parametrize(
    ("length", "rows", "reason"),
    [
        (130, 1, "a device's part of a row, 130 tokens, is no multiple of 128"),
        (65536, 1, "a device's part of a row, 65536 tokens, is longer than 32768"),
        (
            32768,
            16,
            "the plan of 16 x 32768 tokens in blocks of 512 exceeds scalar memory; Attention.block=1024 would do",
        ),
    ],
)
def test_what_splash_does_not_take_of_a_ring_is_said_once(length, rows, reason, caplog):
    warn_once.cache_clear()
    for _ in range(2):
        assert "pallas_call" not in trace_on_tpus(length, rows)
    assert caplog.messages == [
        f"ring attention goes by tiles of plain array operations, not by the splash kernel: {reason}"
    ]


def test_a_block_that_does_not_divide_a_part_is_made_smaller(caplog):
    warn_once.cache_clear()
    assert "grid=(2, 1, 5, 5)" in trace_on_tpus(1280)
    assert caplog.messages == []


@pytest.mark.parametrize(("block", "blocks"), [(128, 8), (512, 2), (1024, 1)])
def test_the_kernel_of_each_device_has_blocks_of_the_size_asked_for(block, blocks):
    mesh = MeshConfig(fsdp=1, context=4).make_abstract_mesh(4, "tpu")
    q = jnp.zeros((1, 4096, 2, 64))

    def loss(q):
        options = {"scale": 1.0, "implementation": "ring", "block": block}
        return jnp.sum(attention(q, q, q, make_mask(), **options))

    with activation_rules(mesh, rules.context()):
        program = str(jax.make_jaxpr(jax.grad(loss))(q))
    # Forward, keys and values, queries: heads, then blocks.
    expected = [f"grid=(2, 1, {blocks}, {blocks})", f"grid=(2, {blocks}, 1, {blocks})"]
    assert sorted(re.findall(r"grid=\([\d, ]*\)", program)) == sorted([*expected, expected[0]])


def test_heads_that_devices_share_unevenly():
    """Six query heads on two devices read three kv heads: the first device 0, 0, 1, the other 1, 2, 2."""
    mesh = MeshConfig(fsdp=1, context=2, model=2).make_mesh(jax.devices()[:4])
    rng = np.random.default_rng(0)
    *inputs, d_out = (jnp.asarray(rng.standard_normal((B, L, n, H)), jnp.float32) for n in (6, 3, 3, 6))

    def on_mesh(d_out, *inputs):
        with activation_rules(mesh, rules.context()):
            out, pull = jax.vjp(lambda *x: ring.attention_ring(*x, make_mask(), scale=0.37), *inputs)
            return out, *pull(d_out)

    got = jax.jit(on_mesh, compiler_options=FAST)(d_out, *inputs)
    expected = run_naive(dense(None, None, None, L), None, *inputs, d_out)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6)


@pytest.mark.parametrize("part", ["tiles", "splash"])
def test_stages_of_a_pipeline_side_by_side(part):
    mesh = MeshConfig(fsdp=2, stage=2, context=2).make_mesh()
    length = L if part == "tiles" else LONG // 2
    one, other = (draw(2, np.float32, length), [-x for x in draw(2, np.float32, length)])
    segments = jnp.asarray(documents(length)[0])

    def both(d_out, *inputs):
        def op(d_out, *inputs):
            mask = make_mask(segments)
            out, pull = jax.vjp(lambda *x: ring.attention_ring(*x, mask, scale=0.37, part=part), *inputs)
            return out, *pull(d_out)

        with activation_rules(mesh, rules.context()):
            return jax.vmap(op, spmd_axis_name="stage")(d_out, *inputs)

    *inputs, d_out = (jnp.stack(pair) for pair in zip(one, other, strict=True))
    got = jax.jit(both, compiler_options=FAST)(d_out, *inputs)
    allowed = dense(np.asarray(segments), None, None, length)
    for stage, (*inputs, d_out) in enumerate((one, other)):
        for result, expected in zip(got, run_naive(allowed, None, *inputs, d_out), strict=True):
            np.testing.assert_allclose(result[stage], expected, rtol=0, atol=5e-6)
