"""Ring attention: the length is split over a mesh axis, and keys travel around it (Liu et al. 2023, arXiv 2310.01889).

Each device keeps its queries. Keys and values, with the vectors that say who sees them, go from device to device, and
after as many steps as there are devices every query has met every key. The next keys are on their way while those
that are here are attended to. The backward pass sends them around again, followed by their gradients, and makes the
weights anew from log Z. A device holds O(L / devices) of everything and the scores of two tiles.

What is masked is skipped, so the order of the length decides who works: see `partitioning.length_order`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_scale.core.errors import UserError
from t5x_scale.layers.masks import Mask
from t5x_scale.layers.ops.attention import ring_splash, tiles
from t5x_scale.layers.ops.attention.case import SAVED, Case
from t5x_scale.layers.ops.attention.notices import warn_once
from t5x_scale.layers.ops.attention.online import Settings, Vectors
from t5x_scale.layers.ops.attention.splash import BLOCK
from t5x_scale.partitioning.length_order import length_axis
from t5x_scale.partitioning.shardings import current_platform, current_rules, dividing, to_spec

Entry = str | tuple[str, ...] | None

# What attends on a device: modules with the same functions.
PARTS = {"tiles": tiles, "splash": ring_splash}


class _Layout(NamedTuple):
    """Where queries [B, L, N, H] lie: mesh axes of each dimension; of kv heads None where they do not divide."""

    mesh: Mesh
    batch: Entry
    ring: str
    heads: Entry
    kv_heads: Entry
    settings: Settings
    part: str

    @property
    def queries(self) -> P:
        return P(self.batch, self.ring, self.heads)

    @property
    def keys(self) -> P:
        return P(self.batch, self.ring, self.kv_heads)

    @property
    def log_z(self) -> P:
        return P(self.batch, self.heads, self.ring)

    def of_vectors(self, vectors: Any) -> Any:
        return jax.tree.map(lambda x: P(self.batch if x.shape[0] > 1 else None, self.ring), vectors)


def unsupported(case: Case) -> str | None:
    """Why ring attention does not cover `case`."""
    context = current_rules()
    if context is None or length_axis(*context) is None:
        return "the length is not split over the mesh"
    if case.is_cached:
        return "queries stand at places in a cache"
    if case.has_bias:
        return "something is added to the logits (relative positions), which is L x L already"
    return None


def attention_ring(
    q_BLNH: jax.Array,
    k_BLKH: jax.Array,
    v_BLKH: jax.Array,
    mask: Mask,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    bias_BNLS: None = None,
    block: int = BLOCK,
    part: str | None = None,
) -> jax.Array:
    """`attention` of a sequence to itself, its length split over a mesh axis; the arguments are those of `attention`.

    A query that sees no key gets 0.

    Args:
      block: queries and keys of a block of the splash kernel, at most; a multiple of 128. Tiles have their own size.
      part: a key of `PARTS`; by default splash on TPUs, and tiles elsewhere and, with a warning, for what splash does
        not take.

    Returns:
      [B, L, N, H] in the dtype of `q_BLNH`, split as it is.

    Raises:
      UserError: the length does not divide over the axis.
    """
    layout = _layout(q_BLNH.shape, k_BLKH.shape[2], Settings(soft_cap, block), part)
    q = (q_BLNH * scale).astype(q_BLNH.dtype)
    return _attend(layout, q, k_BLKH, v_BLKH, _vectors(mask, q.shape[1], window))


def _layout(shape: tuple[int, ...], kv_heads: int, settings: Settings, part: str | None) -> _Layout:
    mesh, rules = current_rules()
    ring = length_axis(mesh, rules)
    if shape[1] % mesh.shape[ring]:
        raise UserError(f"a length of {shape[1]} does not divide over {ring}={mesh.shape[ring]}")
    specs = dividing(mesh, to_spec(rules, ("batch", "length", "act_heads"), mesh), shape)
    batch, _, heads = (*specs, None, None, None)[:3]
    of_keys = dividing(mesh, P(heads), (kv_heads,))[0]
    if part is None:
        own = NamedSharding(mesh, P(batch, ring)).shard_shape(shape[:2])
        part = _part_for(*own, settings.block)
    return _Layout(mesh, batch, ring, heads, of_keys, settings, part)


def _part_for(rows: int, length: int, block: int) -> str:
    """What attends on a device of this platform; says so where that is not the fastest there is."""
    if current_platform() != "tpu":
        return "tiles"
    reason = ring_splash.unsupported(rows, length, block)
    if reason is None:
        return "splash"
    warn_once(f"ring attention goes by tiles of plain array operations, not by the splash kernel: {reason}")
    return "tiles"


def _vectors(mask: Mask, length: int, window: int | None) -> Vectors:
    natural = jnp.arange(length, dtype=jnp.int32)[None]
    index = natural if mask.query_index is None else mask.query_index
    sizes = [size for size in (window, mask.window) if size is not None]
    return Vectors(
        first=index - functools.reduce(jnp.minimum, sizes) + 1 if sizes else None,
        last=index if mask.last_visible is None else mask.last_visible,
        query_segments=mask.query_segments,
        index=natural if mask.key_index is None else mask.key_index,
        key_segments=mask.key_segments,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(layout: _Layout, q: jax.Array, k: jax.Array, v: jax.Array, vectors: Vectors) -> jax.Array:
    return _forward(layout, q, k, v, vectors)[0]


def _forward(layout: _Layout, q: jax.Array, k: jax.Array, v: jax.Array, vectors: Vectors):
    # A loop over layers would otherwise find that masks are the same in all of them, and make them, L x L, beforehand.
    q, vectors = jax.lax.optimization_barrier((q, vectors))
    out, log_z = jax.shard_map(
        functools.partial(_forward_shard, layout),
        mesh=layout.mesh,
        in_specs=(layout.queries, layout.keys, layout.keys, layout.of_vectors(vectors)),
        out_specs=(layout.queries, layout.log_z),
        check_vma=False,
    )(q, k, v, vectors)
    out = checkpoint_name(out, SAVED)
    return out, (q, k, v, vectors, out, checkpoint_name(log_z, SAVED))


def _backward(layout: _Layout, saved: Any, d_out: jax.Array):
    q, k, v, vectors, out, log_z = saved
    gradients = jax.shard_map(
        functools.partial(_backward_shard, layout),
        mesh=layout.mesh,
        in_specs=(
            *(layout.queries, layout.keys, layout.keys, layout.of_vectors(vectors)),
            *(layout.queries, layout.log_z, layout.queries),
        ),
        out_specs=(layout.queries, layout.keys, layout.keys),
        check_vma=False,
    )(q, k, v, vectors, out, log_z, d_out)
    return *gradients, None


_attend.defvjp(_forward, _backward)


def _forward_shard(layout: _Layout, q: jax.Array, k: jax.Array, v: jax.Array, vectors: Vectors):
    part, heads = PARTS[layout.part], _heads_of_shard(layout, q.shape[2], k.shape[2])
    queries, keys = part.prepare(q, *(jnp.take(x, heads, axis=2) for x in (k, v)), vectors)

    def step(carry: Any, _: None) -> Any:
        keys, seen = carry
        # Does not wait for the attention below. The last turn brings everything home, where nobody needs it.
        following = _pass_on(layout, keys)
        return (following, part.attend(layout.settings, queries, keys, seen)), None

    (_, seen), _ = jax.lax.scan(step, (keys, part.nothing_seen(queries)), length=layout.mesh.shape[layout.ring])
    return part.finish(queries, seen)


def _backward_shard(
    layout: _Layout,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    vectors: Vectors,
    out: jax.Array,
    log_z: jax.Array,
    d_out: jax.Array,
):
    part, heads = PARTS[layout.part], _heads_of_shard(layout, q.shape[2], k.shape[2])
    queries, keys = part.prepare(q, *(jnp.take(x, heads, axis=2) for x in (k, v)), vectors)
    saved = part.save(queries, out, log_z, d_out)

    def step(carry: Any, _: None) -> Any:
        keys, d_q, made, so_far = carry
        # Gradients follow their keys one turn behind, so that they too need not wait for the attention below.
        so_far = _pass_on(layout, jax.tree.map(jnp.add, so_far, made))
        following = _pass_on(layout, keys)
        d_q, made = part.attend_backward(layout.settings, queries, saved, keys, d_q)
        return (following, d_q, made, so_far), None

    none = tuple(jnp.zeros(x.shape, jnp.float32) for x in (keys.k, keys.v))
    start = (keys, jnp.zeros(queries.q.shape, jnp.float32), none, none)
    (_, d_q, *rest), _ = jax.lax.scan(step, start, length=layout.mesh.shape[layout.ring])
    d_q, d_k, d_v = part.restore(queries, d_q, *_pass_on(layout, jax.tree.map(jnp.add, *rest)))
    d_k, d_v = (_all_heads(layout, x, heads, k.shape[2]).astype(k.dtype) for x in (d_k, d_v))
    return d_q.astype(q.dtype), d_k, d_v


def _pass_on(layout: _Layout, arrays: Any) -> Any:
    size = layout.mesh.shape[layout.ring]
    return jax.lax.ppermute(arrays, layout.ring, [(i, (i + 1) % size) for i in range(size)])


def _heads_of_shard(layout: _Layout, query_heads: int, kv_heads: int) -> jax.Array:
    """Which of a shard's `kv_heads` its `query_heads` read: each of them an equal, consecutive share."""
    if layout.heads == layout.kv_heads:
        return jnp.arange(kv_heads)
    # The kv heads are all here, the query heads of this device are `query_heads` of them all.
    names = layout.heads if isinstance(layout.heads, tuple) else (layout.heads,)
    devices = functools.reduce(lambda size, name: size * layout.mesh.shape[name], names, 1)
    group = query_heads * devices // kv_heads
    first = jax.lax.axis_index(names) * query_heads
    if group % query_heads == 0:
        return first[None] // group
    return (first + jnp.arange(query_heads)) // group


def _all_heads(layout: _Layout, x: jax.Array, heads: jax.Array, kv_heads: int) -> jax.Array:
    """Gradients [B, L, heads, H] of a shard's kv heads to [B, L, K, H], those of the other devices added."""
    if layout.heads == layout.kv_heads:
        return x
    x = jnp.zeros((*x.shape[:2], kv_heads, x.shape[3]), x.dtype).at[:, :, heads].add(x)
    return jax.lax.psum(x, layout.heads)
