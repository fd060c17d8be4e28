"""From logits to tokens: greedy, temperature, top-k and nucleus sampling, as pure functions."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from t5x_scale.core.errors import UserError
from t5x_scale.core.rng import make_root_key, stream_key

# Logits divided by less than this run out of float32; 0 says what is meant.
MIN_TEMPERATURE = 1e-4


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen.

    The filters come first and look at the model's own distribution: top-k keeps the k likeliest tokens, top-p
    keeps the nucleus of those, and the temperature reshapes what is left. So a higher temperature never lets in a
    token that the filters keep out.

    Attributes:
      temperature: divides the logits; 0 is greedy: the likeliest token, without randomness.
      top_k: keep the k likeliest tokens; None or 0 keeps all.
      top_p: keep the fewest likeliest tokens that together have at least this probability (Holtzman et al. 2019);
        None or 1 keeps all.
      max_new_tokens: a completion ends after so many tokens.
      seed: decides every draw.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        is_finite = _is_number(self.temperature) and math.isfinite(self.temperature)
        if not is_finite or not (self.temperature == 0 or self.temperature >= MIN_TEMPERATURE):
            raise UserError(f"temperature is {self.temperature!r}; it must be 0 (greedy) or at least {MIN_TEMPERATURE}")
        if self.top_k is not None and not (_is_integer(self.top_k) and self.top_k >= 0):
            raise UserError(
                f"top_k is {self.top_k!r}; it must be a positive integer, or None (or 0) to keep all tokens"
            )
        if self.top_p is not None and not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise UserError(f"top_p is {self.top_p!r}; it must be above 0 and at most 1, or None to keep all tokens")
        if not (_is_integer(self.max_new_tokens) and self.max_new_tokens >= 1):
            raise UserError(f"max_new_tokens is {self.max_new_tokens!r}; it must be an integer of 1 or more")
        # A larger seed would lose its upper bits without a word.
        if not (_is_integer(self.seed) and 0 <= self.seed < 2**32):
            raise UserError(f"seed is {self.seed!r}; it must be an integer from 0 to {2**32 - 1}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def filter_logits(logits_BV: jax.Array, config: SamplingConfig) -> jax.Array:
    """Replaces the logits of tokens that top-k and top-p keep out by -inf; of equals, the lower id is kept."""
    size = logits_BV.shape[-1]
    top_k = min(config.top_k or size, size)
    if top_k == size and (config.top_p or 1.0) >= 1.0:
        return logits_BV
    likeliest, ids = jax.lax.top_k(logits_BV, top_k)  # Descending; equals by their ids.
    if config.top_p is not None:
        probabilities = jax.nn.softmax(likeliest, axis=-1)
        # What all likelier tokens have together: while it falls short, the nucleus needs one more.
        before = jnp.cumsum(probabilities, axis=-1)[..., :-1]
        outside = jnp.insert(before >= config.top_p, 0, False, axis=-1)
        likeliest = jnp.where(outside, -jnp.inf, likeliest)
    return jnp.put_along_axis(jnp.full_like(logits_BV, -jnp.inf), ids, likeliest, axis=-1, inplace=False)


def sample(logits_BV: jax.Array, config: SamplingConfig, rows_B: jax.Array, positions_B: jax.Array) -> jax.Array:
    """Draws one token for every row.

    The randomness of a draw is a function of (seed, row, position) and of nothing else: not of the batch a row
    happens to be in, nor of its size.

    Args:
      logits_BV: float32.
      config: how to choose.
      rows_B: the number of each row's prompt among all prompts.
      positions_B: where the drawn token will stand in its sequence.

    Returns:
      int32 [B] tokens.
    """
    if config.is_greedy:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    key = stream_key(make_root_key(config.seed), "sampling")
    # Noise belongs to an id, not to a rank: two tokens that change places by a rounding error change no draw.
    noise = jax.vmap(lambda row, position: _noise(key, row, position, logits_BV.shape[-1]))(rows_B, positions_B)
    filtered = filter_logits(logits_BV, config)
    return jnp.argmax(filtered / config.temperature + noise, axis=-1).astype(jnp.int32)


def _noise(key: jax.Array, row: jax.Array, position: jax.Array, size: int) -> jax.Array:
    # The largest of logits with Gumbel noise is a draw from their softmax.
    return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, row), position), (size,))


def log_probabilities(logits_BV: jax.Array, tokens_B: jax.Array) -> jax.Array:
    """float32 [B]: what the model itself, unfiltered and at temperature 1, gives the chosen tokens."""
    chosen = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits_BV, axis=-1)
