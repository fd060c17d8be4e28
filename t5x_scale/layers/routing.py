"""Which experts a token goes to, with what weight, and what is asked of the choice over many tokens.

All of it in float32: the order of nearly equal scores, and sums over thousands of tokens, do not survive bfloat16.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from t5x_scale.core.errors import UserError, did_you_mean

ROUTERS = ("softmax_topk", "topk_softmax")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """The experts of every token, best first.

    Attributes:
      expert: int32 [B, L, k]; E, the number of experts, where a position is padding.
      gate: float32 [B, L, k].
      chosen: float32 [B, L, E], 1 where an expert was chosen.
      scores: float32 [B, L, E], softmax over all experts.
    """

    expert: jax.Array
    gate: jax.Array
    chosen: jax.Array
    scores: jax.Array


def check_router(name: str) -> None:
    """Checks the name of a router.

    Raises:
      UserError: naming the nearest known one.
    """
    if name not in ROUTERS:
        near = did_you_mean(name, ROUTERS) or f"; known are {', '.join(ROUTERS)}"
        raise UserError(f"unknown router '{name}'{near}")


def choose(
    logits_BLE: jax.Array, k: int, is_token_BL: jax.Array | None, *, router: str, normalize: bool, scale: float
) -> Choice:
    """The k experts with the largest logits; of equal ones, those with the smaller number.

    Args:
      logits_BLE: float32.
      k: experts a token.
      is_token_BL: False at padding, which goes to no expert; None is no padding.
      router: `softmax_topk`, the gates are the scores of the chosen among all experts (Switch, GShard), or
        `topk_softmax`, among the chosen (Shazeer et al. 2017). Both choose alike.
      normalize: of `softmax_topk`: divides the gates of a token by their sum, which makes them those of
        `topk_softmax` (GShard, Mixtral).
      scale: multiplies the gates in the end.
    """
    num_experts = logits_BLE.shape[-1]
    scores = jax.nn.softmax(logits_BLE, axis=-1)
    one_hots = _largest(logits_BLE, k)
    if router == "topk_softmax":
        gate = jax.nn.softmax(jnp.stack([jnp.sum(hot * logits_BLE, axis=-1) for hot in one_hots], axis=-1), axis=-1)
    else:
        gate = jnp.stack([jnp.sum(hot * scores, axis=-1) for hot in one_hots], axis=-1)
        if normalize:
            gate /= jnp.sum(gate, axis=-1, keepdims=True)
    expert = jnp.stack([jnp.argmax(hot, axis=-1) for hot in one_hots], axis=-1).astype(jnp.int32)
    if is_token_BL is not None:
        expert = jnp.where(is_token_BL[..., None], expert, num_experts)
    return Choice(expert, scale * gate, sum(one_hots), scores)


def _largest(logits: jax.Array, k: int) -> list[jax.Array]:
    # Not top_k, a sort that a partitioner may bring together on one device: k is small.
    numbers = jnp.arange(logits.shape[-1])
    left = jax.lax.stop_gradient(logits)
    one_hots = []
    for _ in range(k):
        is_best = numbers == jnp.argmax(left, axis=-1, keepdims=True)
        one_hots.append(is_best.astype(logits.dtype))
        left = jnp.where(is_best, -jnp.inf, left)
    return one_hots


def balance_loss(choice: Choice, is_token_BL: jax.Array | None) -> jax.Array:
    """`E * sum_e f_e P_e` over the tokens of each row: float32 [B], 1 when all experts are used alike.

    f_e is the share of the row's choices, all k of them, that fell on expert e and carries no gradient; P_e is the
    mean score of e (Switch Transformer, arXiv 2101.03961, section 2.2).

    The group over which use is to be even is a row, as GShard's groups are (arXiv 2006.16668, section 2.2), and not a
    batch: a mean over rows is the same however a batch is split into micro-batches or over devices.
    """
    num_experts = choice.scores.shape[-1]
    share = _token_mean(choice.chosen, is_token_BL) / choice.expert.shape[-1]
    return num_experts * jnp.sum(jax.lax.stop_gradient(share) * _token_mean(choice.scores, is_token_BL), axis=-1)


def router_z_loss(logits_BLE: jax.Array, is_token_BL: jax.Array | None) -> jax.Array:
    """The mean of `(log sum_e exp logit_e)^2` over the tokens of each row: float32 [B] (ST-MoE, arXiv 2202.08906)."""
    return _token_mean(jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1))[..., None], is_token_BL)[..., 0]


def _token_mean(x_BLE: jax.Array, is_token_BL: jax.Array | None) -> jax.Array:
    """The mean over the tokens of each row, [B, E]; of a row without tokens 0."""
    if is_token_BL is None:
        return jnp.mean(x_BLE, axis=1)
    weight = is_token_BL.astype(x_BLE.dtype)[..., None]
    return jnp.sum(weight * x_BLE, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)
