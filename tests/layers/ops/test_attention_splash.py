"""The splash kernel, interpreted, against a dense formula in float32: every mask, forward and all gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_scale.layers.masks import NO_WINDOW, Mask, make_mask
from t5x_scale.layers.ops.attention import splash
from t5x_scale.layers.ops.attention.splash import attention_splash, fitting_block
from t5x_scale.partitioning.axes import MESH_AXES
from t5x_scale.partitioning.rules import fsdp_model
from t5x_scale.partitioning.shardings import activation_rules

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
B, N, H = 2, 4, 32
SCALE = 0.3


def packed_rows(length, rng):
    """Segments 1, 2, ... of random lengths, padding behind, and a prefix of random length in each."""
    segments, prefix = np.zeros((2, B, length), np.int32)
    for b in range(B):
        ends = np.sort(rng.choice(np.arange(1, length), 4, replace=False))
        for number, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), 1):
            segments[b, begin:end] = number
            prefix[b, begin : begin + rng.integers(0, end - begin + 1)] = 1
    return segments, prefix


def dense(length, segments, prefix, windows):
    """Which keys are seen, from the definition: bool [B, L, L]."""
    i, j = np.arange(length)[:, None], np.arange(length)
    together = np.ones((B, length, length), bool) if segments is None else segments[:, :, None] == segments[:, None]
    seen = np.broadcast_to(j <= i, together.shape)
    if prefix is not None:
        # A later key is seen up to the last position of the prefix of the query's segment.
        last = np.where(together & (prefix[:, None] != 0), j, -1).max(-1)
        seen = seen | (j <= last[:, :, None])
    for window in windows:
        if window is not None:
            seen = seen & (j > i - window)
    return seen & together


def naive(q, k, v, seen, soft_cap):
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    logits = jnp.einsum("bind,bjnd->bnij", q, k, precision="highest") * SCALE
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    weights = jax.nn.softmax(jnp.where(seen[:, None], logits, -jnp.inf), axis=-1)
    return jnp.einsum("bnij,bjnd->bind", weights, v, precision="highest")


def run(function, d_out, *args):
    """Output and gradients."""
    out, pull = jax.vjp(function, *args)
    return out, *pull(d_out)


@functools.partial(jax.jit, static_argnums=1, compiler_options=FAST)
def run_naive(seen, soft_cap, d_out, *args):
    return run(lambda *a: naive(*a, seen, soft_cap), d_out, *args)


def draw(length, kv_heads, dtype, rng, head_dim=H):
    shapes = [(B, length, heads, head_dim) for heads in (N, N, kv_heads, kv_heads)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def both(length, kv_heads, *, packed=False, prefixed=False, window=None, layers=None, soft_cap=None, dtype=np.float32):
    """Output, dq, dk and dv of the kernel with blocks of 128, and of the formula in float32 on the same values."""
    rng = np.random.default_rng(length + kv_heads)
    segments, prefix = packed_rows(length, rng)
    segments, prefix = segments if packed else None, prefix if prefixed else None
    seen = dense(length, segments, prefix, (window, layers))
    values = draw(length, kv_heads, dtype, rng)

    def kernel(layers, q, k, v):
        made = make_mask(segments, prefix)
        mask = Mask(made.query_index, made.last_visible, segments, segments, layers)
        return attention_splash(q, k, v, mask, scale=SCALE, window=window, soft_cap=soft_cap, block=128)

    got = jax.jit(lambda layers, *a: run(functools.partial(kernel, layers), *a), compiler_options=FAST)(layers, *values)
    expected = run_naive(seen, soft_cap, *(x.astype(np.float32) for x in values))
    return got, expected


CASES = {
    "causal, multi-query": (256, 1, {}),
    "causal, multi-head, odd length": (131, 4, {}),
    "causal, shorter than a register": (5, 2, {}),
    "causal, grouped, cap, odd length": (300, 2, {"soft_cap": 2.0}),
    "packed, grouped": (384, 2, {"packed": True}),
    "window, multi-query": (512, 1, {"window": 100}),
    "window of one key": (256, 2, {"window": 1}),
    "packed window, odd length": (301, 4, {"packed": True, "window": 130}),
    "layer's window": (256, 2, {"layers": 70}),
    "layer's window of all keys, odd length": (257, 1, {"layers": NO_WINDOW}),
    "prefix": (256, 4, {"prefixed": True}),
    "packed prefix, multi-query": (384, 1, {"packed": True, "prefixed": True}),
    "packed prefix, grouped, odd length": (290, 2, {"packed": True, "prefixed": True}),
    "packed prefix window, cap": (384, 2, {"packed": True, "prefixed": True, "window": 40, "soft_cap": 1.5}),
    "packed prefix, both windows, odd": (300, 1, {"packed": True, "prefixed": True, "window": 90, "layers": 60}),
}


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case):
    length, kv_heads, options = CASES[case]
    got, expected = both(length, kv_heads, **options)
    for name, x, y in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=name)


def test_bfloat16_is_as_near_as_its_rounding():
    got, expected = both(300, 2, packed=True, prefixed=True, dtype=jnp.bfloat16)
    for name, x, y in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
        assert x.dtype == jnp.bfloat16
        # Queries times scale, weights, logit gradients and results are each rounded to 8 bits (half an ulp: 2^-9 of the
        # value), and a sum keeps the error of its largest terms: 4 roundings of the largest entry bound it.
        bound = 4 * 2**-8 * np.abs(y).max()
        assert np.abs(np.asarray(x, np.float32) - y).max() < bound, name


def test_large_logits_stay_finite():
    q, d_out, k, v = draw(200, 2, np.float32, np.random.default_rng(0))
    mask = make_mask(*(jnp.asarray(x) for x in packed_rows(200, np.random.default_rng(1))))
    results = jax.jit(
        lambda d, *a: run(lambda *a: attention_splash(*a, mask, scale=1.0, block=128), d, *a), compiler_options=FAST
    )(d_out, 300 * q, 300 * k, v)
    assert all(np.isfinite(x).all() for x in results)


@pytest.mark.parametrize(("batch", "heads", "kv_heads"), [(4, 8, 1), (4, 8, 2), (4, 8, 4), (4, 12, 3), (3, 8, 2)])
def test_on_a_mesh(batch, heads, kv_heads):
    """Two ways over the batch and four over heads: kv heads split, shared, and read by heads of two devices."""
    length, rng = 150, np.random.default_rng(heads + kv_heads)
    shapes = [(batch, length, n, 16) for n in (heads, heads, kv_heads, kv_heads)]
    d_out, q, k, v = (jnp.asarray(rng.standard_normal(shape), np.float32) for shape in shapes)
    segments = jnp.asarray(np.sort(rng.integers(1, 4, (batch, length))), jnp.int32)
    mask = make_mask(segments, jnp.asarray(rng.integers(0, 2, (batch, length)), jnp.int32))

    def attend(*args):
        return run(lambda *a: attention_splash(*a, mask, scale=SCALE, block=128), *args)

    expected = jax.jit(attend, compiler_options=FAST)(d_out, q, k, v)
    devices = np.array(jax.devices()[:8]).reshape(1, 2, 1, 1, 1, 4)
    mesh = Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    if batch == 4:
        d_out, q = (jax.device_put(x, NamedSharding(mesh, P("fsdp", None, "model"))) for x in (d_out, q))
    with activation_rules(mesh, fsdp_model()):
        compiled = jax.jit(attend, compiler_options=FAST).lower(d_out, q, k, v).compile()
    got = compiled(d_out, q, k, v)
    for name, x, y in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=name)
    if batch == 4:
        # Each device has 2 rows and a quarter of the heads, and nobody gathers them.
        assert f"f32[{batch},{length},{heads},16]" not in compiled.as_text()


def test_batches_whose_plans_do_not_fit_go_in_turns(monkeypatch):
    """Here not even those of one row would, so each row has a turn of its own."""
    expected, _ = both(384, 2, packed=True, prefixed=True, layers=200)
    rows = []

    def attend(static, q, *args, original=splash._attend):
        rows.append(q.shape[0])
        return original(static, q, *args)

    monkeypatch.setattr(splash, "TABLE_BYTES", 0)
    monkeypatch.setattr(splash, "_attend", attend)
    got, _ = both(384, 2, packed=True, prefixed=True, layers=200)
    assert set(rows) == {1}
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def test_on_stages_that_work_side_by_side():
    """Under vmap over an axis of the mesh, as in a pipeline: each stage has rows and segments of its own."""
    rng = np.random.default_rng(0)
    stages = [draw(130, 2, np.float32, rng) for _ in range(2)]
    d_out, q, k, v = (jnp.stack(values) for values in zip(*stages, strict=True))
    segments = jnp.asarray(np.stack([packed_rows(130, rng)[0] for _ in range(2)]))

    def stage(segments, d_out, *args):
        return run(lambda *a: attention_splash(*a, make_mask(segments), scale=SCALE, block=128), d_out, *args)

    devices = np.array(jax.devices()[:8]).reshape(1, 2, 2, 1, 1, 2)
    mesh = Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    with activation_rules(mesh, fsdp_model()):
        got = jax.jit(jax.vmap(stage, spmd_axis_name="stage"), compiler_options=FAST)(segments, d_out, q, k, v)
    one = jax.jit(stage, compiler_options=FAST)
    expected = [one(*args) for args in zip(segments, d_out, q, k, v, strict=True)]
    for name, x, y in zip(("out", "dq", "dk", "dv"), got, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(x, np.stack(y), rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("length", "block"),
    [(1, 128), (128, 128), (129, 256), (512, 512), (513, 384), (1535, 512), (2048, 512), (2049, 512)],
)
def test_blocks_leave_little_to_padding(length, block):
    assert fitting_block(length) == block


@pytest.mark.parametrize("model", [1, 2])
def test_the_backward_pass_finds_what_remat_saves(model):
    """With the output and its log-sum-exp saved the forward kernel does not run again, on a mesh neither."""
    devices = np.array(jax.devices()[:model]).reshape(1, 1, 1, 1, 1, model)
    mesh = Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))

    def layer(q, k):
        return attention_splash(q, k, k, make_mask(), scale=SCALE)

    def count(*names):
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        loss = jax.grad(lambda *a: jnp.sum(jax.checkpoint(layer, policy=policy)(*a) ** 2))
        shapes = [jax.ShapeDtypeStruct((1, 128, n, 16), np.float32) for n in (8, 1)]
        with activation_rules(mesh, fsdp_model()):
            return jax.jit(loss, compiler_options=FAST).lower(*shapes).compile().as_text().count("while(")

    # An interpreted kernel is a loop over its blocks.
    assert count("context") == count() - 1
