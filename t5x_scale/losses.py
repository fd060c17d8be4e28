"""Token-weighted cross-entropy with z-loss that never forms the logits of a whole batch.

The product with the output table, the softmax and both gradients are computed chunk by chunk along the
length, and the gradients already in the forward pass: three matrix products a token, as in the plain formula,
where recomputing the logits in a backward pass would make four.

On a mesh each device goes through the chunks of its own tokens, with the part of the vocabulary that falls to it, and
the gradient of the table is summed over devices once in the end.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from t5x_scale.partitioning.shardings import constrain, gather
from t5x_scale.partitioning.tables import plan_table


class TokenLosses(NamedTuple):
    """Sums over tokens, each float32 and weighted; divide by `weight` once, after all sums are made.

    Attributes:
      total: cross-entropy plus z-loss: the only field that carries a gradient.
      cross_entropy: in nats.
      z_loss: `z_loss * (log Z)^2`.
      correct: tokens whose target has the largest logit.
      weight: of all tokens.
    """

    total: jax.Array
    cross_entropy: jax.Array
    z_loss: jax.Array
    correct: jax.Array
    weight: jax.Array


class Projection(NamedTuple):
    """Static facts of the output head: `logits = soft_cap * tanh(scale * h @ table / soft_cap)`."""

    scale: float = 1.0
    vocab_first: bool = True
    soft_cap: float | None = None


def cross_entropy(
    hidden_BLD: jax.Array,
    table: jax.Array,
    targets_BL: jax.Array,
    weights_BL: jax.Array,
    *,
    projection: Projection = Projection(),
    z_loss: float = 0.0,
    chunk_length: int = 128,
) -> TokenLosses:
    """Sums of `w * (log Z - logit[target] + z_loss * (log Z)^2)` over all tokens (PaLM, section 5).

    Args:
      hidden_BLD: final hidden states; matrix products run in their dtype, everything else in float32.
      table: [V, D], or [D, V] if not `projection.vocab_first`.
      targets_BL: int32 token ids.
      weights_BL: float32; 0 is no loss.
      projection: how hidden states become logits.
      z_loss: coefficient of the square of log Z.
      chunk_length: positions whose logits exist at once, for all rows of the batch.
    """
    total, sums = _summed(projection, z_loss, chunk_length, hidden_BLD, table, targets_BL, weights_BL)
    return TokenLosses(total, *sums)


class _Head(NamedTuple):
    """The output table as one device uses it, and what it exchanges with others to use it.

    Attributes:
      table: [D, v], in the compute dtype.
      first: number of the first of its v tokens.
      end: logits of tokens from here on are none; None where all are some.
      over_vocabulary: mesh axes over which the vocabulary is split.
      over_tokens: mesh axes over which tokens are.
    """

    table: jax.Array
    first: jax.Array | int = 0
    end: jax.Array | None = None
    over_vocabulary: tuple[str, ...] = ()
    over_tokens: tuple[str, ...] = ()

    def sum(self, x):
        return jax.lax.psum(x, self.over_vocabulary) if self.over_vocabulary else x

    def max(self, x):
        return jax.lax.pmax(x, self.over_vocabulary) if self.over_vocabulary else x

    def scatter(self, x):
        """The sum over parts of the vocabulary, each device keeping some of the last dimension if it divides."""
        if not self.over_vocabulary or x.shape[-1] % jax.lax.axis_size(self.over_vocabulary):
            return self.sum(x)
        return jax.lax.psum_scatter(x, self.over_vocabulary, scatter_dimension=x.ndim - 1, tiled=True)

    def total(self, sums):
        return jax.lax.psum(sums, self.over_tokens) if self.over_tokens else sums


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _summed(projection, z_loss, chunk_length, hidden, table, targets, weights):
    plan = _plan(projection, targets)
    scan = functools.partial(_scan_losses, projection, z_loss, chunk_length)
    if plan is None:
        return scan(_Head(_gather_DV(projection, table.astype(hidden.dtype))), hidden, targets, weights)

    def on_device(hidden, table, targets, weights):
        return scan(_share(projection, plan, hidden.dtype, table)[0], hidden, targets, weights)

    return _sharded(plan, on_device, (P(), P()))(hidden, table, targets, weights)


def _summed_forward(projection, z_loss, chunk_length, hidden, table, targets, weights):
    plan = _plan(projection, targets)
    scan = functools.partial(_scan_gradients, projection, z_loss, chunk_length)
    if plan is None:
        head = _Head(_gather_DV(projection, table.astype(hidden.dtype)))
        result, d_hidden, d_table = scan(head, hidden, targets, weights)
        d_table = _scatter_DV(projection, d_table)
        return result, (d_hidden, _turn(projection, d_table).astype(table.dtype))

    def on_device(hidden, table, targets, weights):
        head, to_stored = _share(projection, plan, hidden.dtype, table)
        result, d_hidden, d_table = scan(head, hidden, targets, weights)
        return result, (d_hidden, to_stored(d_table).astype(table.dtype))

    scattered = hidden.shape[-1] % math.prod(plan.mesh.shape[name] for name in plan.idle_axes) == 0
    d_hidden = P(*_padded(plan.tokens), plan.idle_axes if scattered else None)
    return _sharded(plan, on_device, ((P(), P()), (d_hidden, plan.stored)))(hidden, table, targets, weights)


def _summed_backward(projection, z_loss, chunk_length, gradients, cotangents):
    # The sums beside the total are reports: their cotangents are ignored.
    d_total, _ = cotangents
    d_hidden, d_table = gradients
    return (d_hidden * d_total).astype(d_hidden.dtype), (d_table * d_total).astype(d_table.dtype), None, None


_summed.defvjp(_summed_forward, _summed_backward)


def _plan(projection, targets):
    return plan_table(_stored_axes(projection), 0 if projection.vocab_first else 1, targets.shape)


def _sharded(plan, function, out_specs):
    in_specs = (P(*_padded(plan.tokens), None), plan.stored, plan.tokens, plan.tokens)
    return jax.shard_map(function, mesh=plan.mesh, in_specs=in_specs, out_specs=out_specs)


def _padded(tokens):
    return (*tokens, None, None)[:2]


def _share(projection, plan, dtype, table):
    """A device's share of the head, and the way of its float32 gradient to where the table is stored.

    The gradient is summed over the tokens of all devices on this way: once, whatever the number of chunks.
    """
    # Turned while it is a shard: of the whole table, and of its gradient, there is no second copy.
    shard, plan = _turn(projection, table), plan.turned if projection.vocab_first else plan
    part = plan.share(shard.astype(dtype))

    def to_stored(d_table: jax.Array) -> jax.Array:
        d_shard = plan.give_share(d_table, like=shard.astype(jnp.float32))
        # A compiler that adds up gradients of a shared table before it sums over devices would keep this one whole, by
        # the vocabulary, until the backward pass ends.
        return jax.lax.optimization_barrier(_turn(projection, d_shard))

    return _Head(part.array, part.first, part.end, plan.idle_axes, plan.token_axes), to_stored


def _scan_losses(projection, z_loss, chunk_length, head, hidden, targets, weights):
    def add(sums, chunk):
        losses, _ = _chunk_losses(projection, z_loss, head, *chunk)
        return jax.tree.map(jnp.add, sums, losses), None

    chunks = _to_chunks(chunk_length, hidden, targets, weights)
    sums = head.total(jax.lax.scan(add, _copies(_zeros(), head.over_tokens), chunks)[0])
    return sums[0] + sums[1], sums


def _scan_gradients(projection, z_loss, chunk_length, head, hidden, targets, weights):
    """(total, sums), the gradient of `hidden`, and that of `head.table` from this device's tokens, float32."""

    def add(carry, chunk):
        sums, d_table = carry
        losses, d_logits = _chunk_losses(projection, z_loss, head, *chunk)
        d_logits = d_logits.astype(hidden.dtype)
        d_hidden = jax.lax.dot_general(d_logits, head.table, (((2,), (1,)), ((), ())))
        over_tokens = (((0, 1), (0, 1)), ((), ()))
        d_table += jax.lax.dot_general(chunk[0], d_logits, over_tokens, preferred_element_type=jnp.float32)
        return (jax.tree.map(jnp.add, sums, losses), d_table), head.scatter(d_hidden)

    zeros = _copies(jnp.zeros(head.table.shape, jnp.float32), head.over_tokens + head.over_vocabulary)
    start = (_copies(_zeros(), head.over_tokens), zeros)
    (sums, d_table), d_hidden = jax.lax.scan(add, start, _to_chunks(chunk_length, hidden, targets, weights))
    sums = head.total(sums)
    return (sums[0] + sums[1], sums), _from_chunks(d_hidden, hidden.shape[1]), d_table


def _turn(projection, table):
    # Transposed once, and its gradient once back: with [V, D] inside the loop, the CPU backend would transpose the
    # logits of every chunk instead.
    return table.T if projection.vocab_first else table


def _stored_axes(projection):
    return ("vocab", "embed") if projection.vocab_first else ("embed", "vocab")


def _gather_DV(projection, table):
    # Gathered in the order in which it is stored: a rule may give the first dimension what the second would take.
    return _turn(projection, gather(table, _stored_axes(projection)))


def _scatter_DV(projection, d_table):
    return _turn(projection, constrain(_turn(projection, d_table), _stored_axes(projection)))


def _copies(x, axes):
    return jax.lax.pcast(x, axes, to="varying") if axes else x


def _zeros() -> tuple[jax.Array, ...]:
    return (jnp.zeros((), jnp.float32),) * 4


def _chunk_losses(projection, z_loss, head, x, targets, weights):
    """Sums of one chunk, and the gradient of their total with respect to `x @ head.table`, both float32."""
    raw = jax.lax.dot_general(x, head.table, (((2,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    logits = projection.scale * raw
    if projection.soft_cap is not None:
        capped = jnp.tanh(logits / projection.soft_cap)
        logits = projection.soft_cap * capped
    tokens = head.first + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2)
    if head.end is not None:
        logits = jnp.where(tokens < head.end, logits, -jnp.inf)
        tokens = jnp.where(tokens < head.end, tokens, -1)
    largest = head.max(jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    exponentials = jnp.exp(logits - largest)
    # A comparison with an iota, not a gather: it fuses, and a sharded vocabulary needs no exchange of rows.
    is_target = tokens == targets[..., None]
    normaliser, target_logits = head.sum(
        (
            jnp.sum(exponentials, axis=-1, keepdims=True),
            jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1),
        )
    )
    log_z = jnp.log(normaliser[..., 0]) + largest[..., 0]
    sums = (
        jnp.sum(weights * (log_z - target_logits)),
        jnp.sum(weights * z_loss * jnp.square(log_z)),
        jnp.sum(weights * (target_logits >= largest[..., 0])),
        jnp.sum(weights),
    )
    factor = weights * (1.0 + 2.0 * z_loss * log_z) / normaliser[..., 0] * projection.scale
    d_logits = exponentials * factor[..., None] - jnp.where(is_target, (weights * projection.scale)[..., None], 0.0)
    if projection.soft_cap is not None:
        d_logits *= 1.0 - jnp.square(capped)
    return sums, d_logits


def _to_chunks(chunk_length, hidden, targets, weights):
    """[B, L, ...] to [L / chunk, B, chunk, ...], the tail padded with weight 0."""
    length = hidden.shape[1]
    chunk = min(chunk_length, length)
    padding = -length % chunk

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
        x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])
        return jnp.swapaxes(x, 0, 1)

    return split(hidden), split(targets), split(weights.astype(jnp.float32))


def _from_chunks(x, length):
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
