"""What objectives made of denoisers share: which row or document meets which denoiser, and the accounts of it."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives.denoisers import (
    FEWEST_TOKENS,
    Controls,
    Denoiser,
    PrefixDenoiser,
    SpanDenoiser,
    sentinel_ids,
)
from t5x_scale.data.objectives.interface import Example, Objective, Piece, RowKeys
from t5x_scale.data.objectives.layout import Rows, shift_sequence
from t5x_scale.data.objectives.noise_lengths import Lengths, noise_count_arrays
from t5x_scale.data.objectives.randomness import draw_words, to_below, to_unit
from t5x_scale.data.vocabulary import Vocabulary

# What becomes of a document too short for the denoiser drawn for it.
SHORT_PREFIX, SHORT_CAUSAL = PrefixDenoiser(0.5), "too short: causal"


@dataclasses.dataclass(frozen=True)
class Denoising(Objective):
    """Every row, or document, meets one denoiser, drawn from its key.

    Windows: all rows own raw slices of one length, the longest that a denoiser takes. One that takes fewer tokens
    gets them from a random one of the fewest evenly spaced places that cover the slice, so that no part of the text
    is left out systematically; `statistics` says how much is left out.

    Documents: the denoiser is drawn from the piece's `choice`. A document of 2 tokens is split as a prefix and a
    target, one of 1 token is predicted from the mode token (or the token before it); `count_denoisers` counts them.

    Attributes:
      mode_tokens: whether a mode token tells the denoiser, in front of the inputs.
      inputs_length: T5's budget of raw tokens (see `noise_lengths.halved_lengths`): rows keep empty positions. None
        joins inputs and targets first, and fills rows to the last position.
      examples_per_row: into how many equally long examples, each a segment of its own, a row is divided. More of them
        need fewer sentinels.
      in_place: spans are predicted at their places in the text, from the token before the hole (see `spans`).
    """

    mode_tokens: bool = True
    inputs_length: int | None = None
    examples_per_row: int = 1
    in_place: bool = False

    has_prefix: ClassVar[bool] = True

    @functools.cached_property
    @abc.abstractmethod
    def mixture(self) -> tuple[tuple[Denoiser, float], ...]:
        """(denoiser, share of the rows) of those whose share is not 0; the shares sum to 1."""

    @property
    def name(self) -> str:
        """As in the interface, but short: checkpoints and logs hold it."""
        settings = f"mode_tokens={self.mode_tokens}, inputs_length={self.inputs_length}"
        if self.examples_per_row != 1:
            settings += f", examples_per_row={self.examples_per_row}"
        if self.in_place:
            settings += ", in_place=True"
        parts = [f"{rate:.9g} {denoiser.label}{denoiser.mode}" for denoiser, rate in self.mixture]
        return f"{type(self).__name__}({settings}: {' + '.join(parts)})"

    @property
    def has_positions(self) -> bool:
        return self.in_place

    def check_vocabulary(self) -> None:
        vocabulary = self.need_vocabulary()
        _ = self.separator
        if self.mode_tokens:
            for mode in sorted({denoiser.mode for denoiser, _ in self.mixture} | {SHORT_PREFIX.mode}):
                self._mode_id(vocabulary, mode)
        if vocabulary.num_sentinels == 0 and any(isinstance(d, SpanDenoiser) for d, _ in self.mixture):
            raise UserError(
                f"{type(self).__name__} needs sentinels <extra_id_0>, <extra_id_1>, …, and the vocabulary "
                f"'{vocabulary.spec}' has none: use one that has (tools/train_vocabulary.py makes them)"
            )

    def raw_length(self, length: int) -> int:
        return self.examples_per_row * self._slice(length)

    def denoiser_lengths(self, length: int) -> list[dict[str, Any]]:
        """A table of what each denoiser makes of a row (or of each example of one) of `length` positions.

        Returns:
          Rows of {"denoiser", "mode", "rate", "raw", "noise", "spans", "inputs", "targets", "positions"}: tokens, as
          in `noise_lengths.Lengths`.
        """
        return [
            {
                "denoiser": denoiser.label,
                "mode": denoiser.mode if self.mode_tokens else None,
                "rate": rate,
                **{
                    name: getattr(lengths, name) for name in ("raw", "noise", "spans", "inputs", "targets", "positions")
                },
            }
            for (denoiser, rate), lengths in zip(self.mixture, self._window_lengths(length), strict=True)
        ]

    def statistics(self, length: int) -> dict[str, float]:
        """Mean shares of a window: raw tokens used, positions that are no padding, positions that are learnt."""
        table, owned = self.denoiser_lengths(length), self._slice(length)
        positions = length // self.examples_per_row
        return {
            "raw_tokens_used": sum(row["rate"] * row["raw"] for row in table) / owned,
            "real_positions": sum(row["rate"] * row["positions"] for row in table) / positions,
            "targets": sum(row["rate"] * row["targets"] for row in table) / positions,
        }

    def choose(self, words: np.ndarray) -> np.ndarray:
        """Which denoiser of `mixture` each random word, uint64 [n], stands for: int64 [n]."""
        return np.searchsorted(self._ends, to_unit(np.asarray(words, np.uint64)), side="right")

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """Where the shares of all denoisers but the last end, float64 in [0, 1]."""
        return np.cumsum([rate for _, rate in self.mixture])[:-1]

    def __call__(self, tokens: np.ndarray, keys: RowKeys, length: int) -> dict[str, np.ndarray]:
        self.check_windows(tokens, length)
        all_lengths = self._window_lengths(length)
        parts = self.examples_per_row
        tokens = tokens.reshape(len(tokens) * parts, -1)
        if parts > 1:
            keys = keys.split(parts)
        full = all(lengths.positions == length // parts for lengths in all_lengths)
        rows = Rows(len(tokens), length // parts, full=full, own_positions=self.in_place)
        generators = list(keys)
        words = draw_words(generators, 2)
        chosen = self.choose(words[:, 0])
        for index, ((denoiser, _), lengths) in enumerate(zip(self.mixture, all_lengths, strict=True)):
            mine = np.flatnonzero(chosen == index)
            if len(mine):
                texts = _take_places(tokens[mine], lengths.raw, words[mine, 1])
                own_generators = [generators[row] for row in mine]
                rows.put(mine, *denoiser.sequences(texts, lengths, own_generators, self._controls(denoiser)))
        return rows.fields if parts == 1 else _join_examples(rows.fields, parts)

    def packed_length(self, num_tokens: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """As in the interface. Spans add two sentinels each, and a mode token; what is only split keeps its length."""
        num_tokens = np.asarray(num_tokens, np.int64)
        chosen = self.choose(choices)
        lengths = num_tokens.copy()
        for index, (denoiser, _) in enumerate(self.mixture):
            if isinstance(denoiser, SpanDenoiser):
                mine = np.flatnonzero((chosen == index) & (num_tokens >= FEWEST_TOKENS))
                lengths[mine] = self._span_positions(denoiser, num_tokens[mine])
        return lengths

    def longest_piece(self, length: int) -> int:
        return int(self._longest_texts(length).min())

    def longest_pieces(self, length: int, choices: np.ndarray) -> np.ndarray:
        return self._longest_texts(length)[self.choose(choices)]

    def example(self, piece: Piece, choice: int, generator: np.random.Generator) -> Example:
        """As in the interface, by the denoiser that `choice` draws, or a split where the piece is too short for it.

        Raises:
          UserError: the vocabulary lacks the mode token, or sentinels for so long a piece.
        """
        denoiser = self.mixture[int(self.choose(np.array([choice], np.uint64))[0])][0]
        num_tokens = len(piece.tokens)
        if num_tokens < FEWEST_TOKENS:
            denoiser = SHORT_PREFIX
        is_span = isinstance(denoiser, SpanDenoiser)
        # Where nothing is moved, the token before the piece stands in for a missing mode token.
        mode = int(self.mode_tokens or not is_span)
        lengths = denoiser.text_lengths(num_tokens, mode)
        self._check_sentinels(denoiser, lengths)
        controls = self._controls(denoiser)
        if controls.mode is None:
            controls = dataclasses.replace(controls, mode=piece.previous)
        texts = np.asarray(piece.tokens, np.int32)[None]
        made = denoiser.sequences(texts, lengths, [generator], controls)
        example = shift_sequence(made.tokens[0], int(made.loss_free[0]))
        if made.fed is not None:
            example = dataclasses.replace(example, inputs=made.fed[0], positions=made.positions[0])
        return example

    def count_denoisers(self, num_tokens: np.ndarray, choices: np.ndarray) -> dict[str, int]:
        """How many pieces meet each denoiser, those too short for theirs counted apart: {label: pieces}."""
        num_tokens, chosen = np.asarray(num_tokens), self.choose(choices)
        long_enough = num_tokens >= FEWEST_TOKENS
        counts = {
            denoiser.label: int(np.sum((chosen == index) & long_enough))
            for index, (denoiser, _) in enumerate(self.mixture)
        }
        counts["too short: prefix"] = int(np.sum(num_tokens == 2))
        counts[SHORT_CAUSAL] = int(np.sum(num_tokens == 1))
        return counts

    def _example_length(self, length: int) -> int:
        if self.examples_per_row < 1 or length % self.examples_per_row:
            raise UserError(f"a row of {length} positions does not divide into {self.examples_per_row} examples")
        return length // self.examples_per_row

    def _window_lengths(self, length: int) -> list[Lengths]:
        length = self._example_length(length)
        mode = int(self.mode_tokens)
        found = [denoiser.window_lengths(length, mode, self.inputs_length) for denoiser, _ in self.mixture]
        for (denoiser, _), lengths in zip(self.mixture, found, strict=True):
            self._check_sentinels(denoiser, lengths, length)
        return found

    def _slice(self, length: int) -> int:
        return max(lengths.raw for lengths in self._window_lengths(length))

    def _longest_texts(self, length: int) -> np.ndarray:
        """The most tokens of a piece that each denoiser of `mixture` can lay out in a row, int64 [denoisers]."""
        if self.inputs_length is not None:
            raise UserError(
                f"{type(self).__name__}.inputs_length is a budget of windows: leave it None to pack documents"
            )
        length = self._example_length(length)
        longest = []
        for denoiser, _ in self.mixture:
            fits = length
            if isinstance(denoiser, SpanDenoiser):
                candidates = np.arange(1, length + 1)
                fits = int(np.sum(self._span_positions(denoiser, candidates) <= length))
                if not fits:
                    raise UserError(f"a row of {length} positions is too short for {denoiser.label}")
                self._check_sentinels(denoiser, denoiser.text_lengths(max(fits, FEWEST_TOKENS), 0), length)
            longest.append(fits)
        return np.array(longest, np.int64)

    def _span_positions(self, denoiser: SpanDenoiser, num_tokens: np.ndarray) -> np.ndarray:
        spans = noise_count_arrays(num_tokens, denoiser.noise_density, denoiser.mean_span)[1]
        return num_tokens + 2 * spans + int(self.mode_tokens)

    def _check_sentinels(self, denoiser: Denoiser, lengths: Lengths, length: int | None = None) -> None:
        """Raises UserError if the vocabulary has too few; `length` is that of the examples of a row, if known."""
        if self.vocabulary is None or lengths.spans <= self.vocabulary.num_sentinels:
            return
        parts = self._enough_examples(length) if length else None
        raise UserError(
            f"{denoiser.label} needs {lengths.spans} sentinels for {length or lengths.positions} positions, and the "
            f"vocabulary '{self.vocabulary.spec}' has {self.vocabulary.num_sentinels}: "
            + (f"set {type(self).__name__}.examples_per_row = {parts}, " if parts else "")
            + f"use a longer mean span, or a vocabulary with {lengths.spans} sentinels"
        )

    def _enough_examples(self, length: int) -> int | None:
        """The fewest examples into which a row divides so that the sentinels suffice for each; None if none do."""
        row = length * self.examples_per_row
        for parts in range(self.examples_per_row + 1, row // FEWEST_TOKENS):
            if row % parts:
                continue
            try:
                found = [
                    d.window_lengths(row // parts, int(self.mode_tokens), self.inputs_length) for d, _ in self.mixture
                ]
            except UserError:
                return None
            if max(lengths.spans for lengths in found) <= self.vocabulary.num_sentinels:
                return parts
        return None

    def _controls(self, denoiser: Denoiser) -> Controls:
        if denoiser.mode not in self._controls_by_mode:
            vocabulary = self.need_vocabulary()
            mode = self._mode_id(vocabulary, denoiser.mode) if self.mode_tokens else None
            self._controls_by_mode[denoiser.mode] = Controls(
                mode, self.separator, sentinel_ids(vocabulary), self.in_place
            )
        return self._controls_by_mode[denoiser.mode]

    @functools.cached_property
    def _controls_by_mode(self) -> dict[str, Controls]:
        """Looked up once: documents are many."""
        return {}

    def _mode_id(self, vocabulary: Vocabulary, mode: str) -> int:
        try:
            return vocabulary.mode_token_id(mode)
        except UserError as error:
            raise UserError(
                f"{error}: set {type(self).__name__}.mode_tokens = False, or use a vocabulary that has them"
            ) from error


def check_shares(rates: Sequence[float], count: int, name: str) -> None:
    """Raises UserError unless there are `count` rates, none negative and not all zero."""
    if len(rates) != count:
        raise UserError(f"{name}.rates has {len(rates)} numbers for {count} denoisers")
    if not all(0 <= rate < math.inf for rate in rates) or not any(rates):
        raise UserError(f"{name}.rates must be finite, not be negative, nor all zero: {tuple(rates)}")


def _take_places(tokens: np.ndarray, length: int, words: np.ndarray) -> np.ndarray:
    """A part of `length` tokens of each row, from one of the fewest evenly spaced places that cover the row.

    Every token is then used with a probability of at least one over their number; a uniformly random start would all
    but lose the tokens at both ends.
    """
    spare = tokens.shape[1] - length
    if spare == 0:
        return tokens
    places = -(-tokens.shape[1] // length)
    starts = to_below(words, places) * spare // (places - 1)
    return tokens[np.arange(len(tokens))[:, None], starts[:, None] + np.arange(length)]


def _join_examples(fields: dict[str, np.ndarray], parts: int) -> dict[str, np.ndarray]:
    """Fields of examples, [B parts, L / parts], as rows of `parts` segments, [B, L]."""
    count, length = fields[batch_lib.INPUT_TOKENS].shape
    if batch_lib.SEGMENT_IDS not in fields:
        fields[batch_lib.SEGMENT_IDS] = np.ones((count, length), np.int32)
    if batch_lib.POSITIONS not in fields:
        fields[batch_lib.POSITIONS] = np.tile(np.arange(length, dtype=np.int32), (count, 1))
    fields[batch_lib.SEGMENT_IDS] *= (np.arange(count, dtype=np.int32) % parts + 1)[:, None]
    return {name: field.reshape(count // parts, parts * length) for name, field in fields.items()}
