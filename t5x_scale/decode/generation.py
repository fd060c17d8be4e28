"""Completions of prompts through a key-value cache: the same tokens as from the whole sequence each time.

A batch of prompts is padded on the right and fed in one call (prefill); then a compiled loop feeds one token a row and
chooses the next. A token's slot in the cache is its position, and position -1 is padding, so rows of any lengths
share a batch and a finished row costs nothing but its place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten
from t5x_scale.decode.sampling import SamplingConfig, log_probabilities, sample
from t5x_scale.models.interface import DecoderModel, Params
from t5x_scale.partitioning.rules import Rules
from t5x_scale.partitioning.shardings import activation_rules, constrain

PADDING = -1
END_OF_TEXT, MAX_NEW_TOKENS, CONTEXT_FULL = "end_of_text", "max_new_tokens", "context_full"
_CACHE_AXES = (None, "batch", "kv_length", "act_kv_heads", None)
_SHORTEST_BUCKET = 16


class Piece(NamedTuple):
    """New tokens of one prompt.

    Attributes:
      row: the number of the prompt.
      tokens: the new tokens; the one that ends the text is not among them.
      log_probability: natural logarithm of what the model gives these tokens (and the one that ends the text).
      finish: None while there is more to come, else `end_of_text`, `max_new_tokens` or `context_full`.
    """

    row: int
    tokens: list[int]
    log_probability: float
    finish: str | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _State:
    """What the decoding loop carries: the cache, and int32 or bool [B] of every row.

    `token` was chosen for `position` and is not in the cache yet; no token is chosen beyond `last`.
    """

    cache: Any
    token: jax.Array
    position: jax.Array
    last: jax.Array
    row: jax.Array
    done: jax.Array


class Generator:
    """A model ready to complete prompts. Compiled functions are kept from one call of `generate` to the next."""

    def __init__(
        self,
        model: DecoderModel,
        config: SamplingConfig,
        *,
        context_length: int,
        eos_ids: Sequence[int] = (),
        batch_size: int = 8,
        prefix_lm: bool = False,
        num_tokens: int | None = None,
        steps_per_call: int = 8,
        mesh: Mesh | None = None,
        rules: Rules | None = None,
    ):
        """Args:
          model: the model.
          config: how tokens are chosen, and how many.
          context_length: prompt and completion together have at most so many tokens.
          eos_ids: tokens that end a text.
          batch_size: prompts decoded together; fewer when there are fewer.
          prefix_lm: the tokens of a prompt see each other in both directions (UL2R).
          num_tokens: only ids below it are chosen; a model's table is often longer than its vocabulary.
          steps_per_call: tokens a row gets between two looks of the host.
          mesh, rules: where activations and the cache lie, for parameters that are sharded.

        Raises:
          UserError: a number makes no sense, or the model has no positions for `context_length`.
        """
        for name, value in (("context_length", context_length), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be 1 or more")
        _check_positions(model, context_length)
        self.model, self.config, self.context_length = model, config, context_length
        self.eos_ids, self.batch_size, self.prefix_lm = tuple(eos_ids), batch_size, prefix_lm
        self.num_tokens = min(num_tokens or model.config.vocab_size, model.config.vocab_size)
        self.steps_per_call = steps_per_call
        # Not along the embedding: that saves memory between layers when training, of which decoding has plenty, and the
        # partitioner has been seen to mix up rows of small batches that are split both ways (XLA of jax 0.10.2).
        self._rules = None if rules is None else {name: axes for name, axes in rules.items() if name != "act_embed"}
        self._mesh = mesh
        self._prefill = jax.jit(self._constrained(self._start), static_argnames="capacity")
        self._decode = jax.jit(self._constrained(self._continue), donate_argnums=1)

    def generate(self, params: Params, prompts: Sequence[Sequence[int]]) -> Iterator[Piece]:
        """Completes prompts, batch by batch, and yields new tokens as they come.

        Args:
          params: of the model.
          prompts: token ids, at least one each; all are checked before anything is computed. An empty text begins
            with the token that separates documents: after it, and only there, the model has seen texts begin.

        Raises:
          UserError: as `check` does; or the model gives logits that are not finite.
        """
        self.check(prompts)
        return self._batches(params, prompts)

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Checks prompts, for which no parameters are needed.

        Raises:
          UserError: a prompt has no tokens, fills the context, or holds an id the model does not know. The message
            names the prompt, counted from 1.
        """
        for number, prompt in enumerate(prompts):
            self._check_prompt(number, prompt)

    def _check_prompt(self, number: int, prompt: Sequence[int]) -> None:
        where = f"prompt {number + 1}"
        if not prompt:
            raise UserError(f"{where} has no tokens: begin an empty text with the token that separates documents")
        if len(prompt) >= self.context_length:
            raise UserError(
                f"{where} has {len(prompt)} tokens and the context {self.context_length}, which leaves no room for "
                f"a completion: shorten the prompt to at most {self.context_length - 1} tokens"
            )
        wrong = next((token for token in prompt if not 0 <= token < self.model.config.vocab_size), None)
        if wrong is not None:
            raise UserError(
                f"{where} holds the id {wrong}, and the model knows {self.model.config.vocab_size} ids: "
                "it was trained with another vocabulary"
            )

    def _batches(self, params: Params, prompts: Sequence[Sequence[int]]) -> Iterator[Piece]:
        size = min(self.batch_size, len(prompts))
        for first in range(0, len(prompts), size or 1):
            yield from self._batch(params, prompts[first : first + size], first, size)

    def _batch(self, params: Params, prompts: Sequence[Sequence[int]], first: int, size: int) -> Iterator[Piece]:
        """Decodes one batch; rows that have no prompt are finished from the beginning."""
        longest = max(map(len, prompts))
        length = _bucket(longest, self.context_length)
        tokens = np.zeros((size, length), np.int32)
        lengths = np.zeros(size, np.int32)
        for index, prompt in enumerate(prompts):
            tokens[index, : len(prompt)] = prompt
            lengths[index] = len(prompt)
        capacity = min(length + self.config.max_new_tokens, self.context_length)
        rows = np.arange(first, first + size, dtype=np.int32)
        state, new, scores = self._prefill(params, tokens, lengths, rows, capacity=capacity)
        counts = dict.fromkeys(range(len(prompts)), 0)
        while True:
            new, scores = jax.device_get((new, scores))
            for index in list(counts):
                piece = self._piece(
                    first + index, new[index], scores[index], lengths[index] + counts[index], counts[index]
                )
                counts[index] += len(piece.tokens)
                if piece.finish is not None:
                    del counts[index]
                yield piece
            if not counts:
                return
            state, new, scores = self._decode(params, state)

    def _piece(self, row: int, new: np.ndarray, scores: np.ndarray, position: int, count: int) -> Piece:
        """What one call gave one row, which stood at `position` with `count` new tokens before."""
        tokens = [int(token) for token in new if token != PADDING]
        score = float(np.sum(scores[: len(tokens)], dtype=np.float64))
        if not np.isfinite(score):
            raise UserError(f"prompt {row + 1}: the model's logits are not finite; its parameters are damaged")
        finish = None
        if tokens and tokens[-1] in self.eos_ids:
            tokens.pop()
            finish = END_OF_TEXT
        elif count + len(tokens) >= self.config.max_new_tokens:
            finish = MAX_NEW_TOKENS
        elif position + len(tokens) >= self.context_length:
            finish = CONTEXT_FULL
        return Piece(row, tokens, score, finish)

    def _start(
        self, params: Params, tokens: jax.Array, lengths: jax.Array, rows: jax.Array, *, capacity: int
    ) -> tuple[_State, jax.Array, jax.Array]:
        """Feeds prompts [B, L] and chooses the first new token; `capacity` is the length of the cache."""
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        positions = jnp.where(positions < lengths[:, None], positions, PADDING)
        cache = self._place(self.model.make_cache(tokens.shape[0], capacity))
        prefix = lengths if self.prefix_lm else None
        hidden, cache = self.model.extend(params, tokens, positions, cache, prefix)
        # Only the last token's logits are formed: those of a whole prompt are the largest array there is.
        end = jnp.maximum(lengths - 1, 0)[:, None, None]
        logits = self._logits(params, jnp.take_along_axis(hidden, end, axis=1)[:, 0])
        last = jnp.minimum(lengths + self.config.max_new_tokens, self.context_length) - 1
        state = _State(self._place(cache), end[:, 0, 0], lengths - 1, last, rows, lengths == 0)
        state, token, score = self._choose(state, logits)
        return state, self._replicate(token[:, None]), self._replicate(score[:, None])

    def _continue(self, params: Params, state: _State) -> tuple[_State, jax.Array, jax.Array]:
        """Up to `steps_per_call` further tokens of every row: [B, steps], padded behind the end of a row."""
        shape = (state.token.shape[0], self.steps_per_call)

        def is_going_on(carry: Any) -> jax.Array:
            index, state, _, _ = carry
            return (index < self.steps_per_call) & ~jnp.all(state.done)

        def step(carry: Any) -> Any:
            index, state, tokens, scores = carry
            positions = jnp.where(state.done, PADDING, state.position)
            hidden, cache = self.model.extend(params, state.token[:, None], positions[:, None], state.cache)
            state = dataclasses.replace(state, cache=self._place(cache))
            state, token, score = self._choose(state, self._logits(params, hidden[:, 0]))
            return index + 1, state, tokens.at[:, index].set(token), scores.at[:, index].set(score)

        empty = (jnp.full(shape, PADDING, jnp.int32), jnp.zeros(shape, jnp.float32))
        _, state, tokens, scores = jax.lax.while_loop(is_going_on, step, (jnp.zeros((), jnp.int32), state, *empty))
        return state, self._replicate(tokens), self._replicate(scores)

    def _choose(self, state: _State, logits: jax.Array) -> tuple[_State, jax.Array, jax.Array]:
        """Chooses the token after `state.position`; of finished rows the token is padding."""
        position = state.position + 1
        token = sample(logits, self.config, state.row, position)
        score = log_probabilities(logits, token)
        ends = jnp.isin(token, jnp.array(self.eos_ids, jnp.int32)) | (position >= state.last)
        shown = jnp.where(state.done, PADDING, token)
        state = dataclasses.replace(state, token=token, position=position, done=state.done | ends)
        return state, shown, score

    def _logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        logits = self.model.head(params).logits(hidden)
        known = jnp.arange(logits.shape[-1]) < self.num_tokens
        return jnp.where(known, logits, -jnp.inf)

    def _place(self, cache: Any) -> Any:
        return jax.tree.map(lambda leaf: constrain(leaf, _CACHE_AXES) if leaf.ndim == 5 else leaf, cache)

    def _replicate(self, x: jax.Array) -> jax.Array:
        # Every process reads the tokens of all rows.
        if self._mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self._mesh, PartitionSpec()))

    def _constrained(self, function: Any) -> Any:
        @functools.wraps(function)
        def traced(*args: Any, **options: Any) -> Any:
            pinned = self._mesh is not None and self._rules is not None
            with activation_rules(self._mesh, self._rules) if pinned else contextlib.nullcontext():
                return function(*args, **options)

        return traced


def generate(
    model: DecoderModel,
    params: Params,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    context_length: int,
    eos_ids: Sequence[int] = (),
    **options: Any,
) -> Iterator[Piece]:
    """`Generator(...).generate(params, prompts)` for those who need it once."""
    return Generator(model, config, context_length=context_length, eos_ids=eos_ids, **options).generate(params, prompts)


def _bucket(length: int, limit: int) -> int:
    """The next power of two: a handful of compiled shapes serve prompts of every length."""
    return min(max(_SHORTEST_BUCKET, 1 << (length - 1).bit_length()), limit)


def _check_positions(model: DecoderModel, context_length: int) -> None:
    # A table of positions would silently repeat its last row beyond its end.
    table = flatten(model.abstract_params()).get("position_embedder/embedding")
    if table is not None and table.shape[0] < context_length:
        raise UserError(f"context_length is {context_length}, and the model has {table.shape[0]} learned positions")
