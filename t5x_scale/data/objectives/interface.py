"""What an objective is: pure numpy functions from tokens to the fields a decoder trains on.

An objective sees tokens and randomness, never models or files, so the same object serves a token store, a live stream
and a SeqIO preprocessor. It takes tokens in one of two forms:

  windows     int32 [B, raw_length(L)], cut from the concatenated stream at a distance of stride(L)  -> `__call__`
  documents   one piece at a time, packed into rows by `data.rows.packing`                                -> `example`
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.vocabulary import Vocabulary


class RowKeys:
    """One independent random generator per row, a pure function of (seed, global row).

    Generators are made when asked for: an objective without randomness pays nothing.
    """

    def __init__(self, seed: int, rows: np.ndarray):
        self._seed = seed % 2**64
        self._rows = np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.random.Generator:
        """The generator of the `index`-th row of this batch, at its beginning."""
        key = np.array([self._seed, self._rows[index]], np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def __iter__(self) -> Iterator[np.random.Generator]:
        return (self[index] for index in range(len(self)))

    @property
    def seed(self) -> int:
        """The seed of all rows, in [0, 2^64)."""
        return self._seed

    @property
    def rows(self) -> np.ndarray:
        """The global rows, int64."""
        return self._rows

    def take(self, indices: np.ndarray) -> RowKeys:
        """The keys of some of the rows."""
        return RowKeys(self._seed, self._rows[indices])

    def split(self, parts: int) -> RowKeys:
        """Keys of the parts of rows that are divided into `parts` each: row after row, part after part."""
        return RowKeys(self._seed, (self._rows[:, None] * parts + np.arange(parts)).ravel())


@dataclasses.dataclass(frozen=True)
class Piece:
    """A document, or a part of one that was too long for a row.

    Attributes:
      tokens: int32 [n], n > 0; the document's last piece ends in the separator.
      previous: the token before the piece in the stream: the separator before a document.
      target_start: index of the first token to be learnt in a supervised document; 0 where all are.
    """

    tokens: np.ndarray
    previous: int
    target_start: int = 0


@dataclasses.dataclass(frozen=True)
class Example:
    """One sequence as a decoder sees it, before it is packed and padded.

    Attributes:
      inputs: int32 [m], the token fed at each position.
      targets: int32 [m], the token to predict at each position.
      weights: float32 [m], of each target in the loss.
      prefix: how many leading positions see one another in both directions.
      positions: int32 [m], at which each token is fed; 0, 1, 2, … when None.
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    prefix: int = 0
    positions: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """From tokens to fields. Subclasses are frozen dataclasses whose fields are what a configuration may set.

    Attributes:
      vocabulary: where sentinels, modes and separators are looked up; set by `with_vocabulary`.
    """

    vocabulary: Vocabulary | None = dataclasses.field(default=None, kw_only=True, repr=False, compare=False)

    # Whether the decoder's positions are the stream's, so that documents can be told apart by their separators.
    keeps_order: ClassVar[bool] = False
    # Whether rows have a bidirectional prefix: such fields hold `decoder_causal_attention`.
    has_prefix: ClassVar[bool] = False
    # Whether rows have positions of their own, full rows without segments too.
    has_positions: ClassVar[bool] = False
    # Whether a document too long for a row may be cut into pieces.
    splits_documents: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Changes whenever the settings do: it is part of the data's fingerprint."""
        settings = [field for field in dataclasses.fields(self) if field.name != "vocabulary"]
        text = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in settings)
        return f"{type(self).__name__}({text})"

    def with_vocabulary(self, vocabulary: Vocabulary) -> Self:
        """This objective with the ids of a run's control tokens.

        Raises:
          UserError: the vocabulary lacks a token that the objective needs.
        """
        bound = dataclasses.replace(self, vocabulary=vocabulary)
        bound.check_vocabulary()
        return bound

    def check_vocabulary(self) -> None:
        """Raises UserError if the vocabulary lacks a token that the objective needs."""
        return

    @property
    def separator(self) -> int:
        """The id that ends a document, and is the first input of a sequence with nothing before it."""
        return self.need_vocabulary().separator_id

    def need_vocabulary(self) -> Vocabulary:
        """The vocabulary, or a UserError that says how an objective gets one."""
        if self.vocabulary is None:
            raise UserError(f"{type(self).__name__} needs control tokens: call with_vocabulary(load_vocabulary(…))")
        return self.vocabulary

    @abc.abstractmethod
    def raw_length(self, length: int) -> int:
        """Raw tokens from which a row of `length` positions is made."""

    def stride(self, length: int) -> int:
        """Distance in the stream between the starts of neighbouring rows."""
        return self.raw_length(length)

    @abc.abstractmethod
    def __call__(self, tokens: np.ndarray, keys: RowKeys, length: int) -> dict[str, np.ndarray]:
        """Turns windows, int32 [B, raw_length(length)], into the [B, length] fields of `core.batch`."""

    def check_windows(self, tokens: np.ndarray, length: int) -> None:
        """Raises ValueError if windows are not of the raw length of rows of `length` positions."""
        expected = self.raw_length(length)
        if tokens.ndim != 2 or tokens.shape[1] != expected:
            raise ValueError(f"{self.name} needs windows of {expected} tokens for length {length}, got {tokens.shape}")

    def packed_length(self, num_tokens: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """Positions that pieces fill, exactly.

        Args:
          num_tokens: int64 [n], tokens of each piece.
          choices: uint64 [n], one fixed random number a piece; whatever the length depends on is drawn from it.

        Returns:
          int64 [n].
        """
        raise UserError(f"{type(self).__name__} has no form for packed documents: deliver windows")

    def longest_piece(self, length: int) -> int:
        """The most tokens of a piece that fit a row of `length` positions, whatever its `choice`."""
        raise UserError(f"{type(self).__name__} has no form for packed documents: deliver windows")

    def longest_pieces(self, length: int, choices: np.ndarray) -> np.ndarray:
        """The most tokens of a piece of each choice, uint64 [n], that fit a row of `length` positions: int64 [n].

        Never less than `longest_piece`; a shorter piece of the same choice fits, too.
        """
        return np.full(len(choices), self.longest_piece(length), np.int64)

    def example(self, piece: Piece, choice: int, generator: np.random.Generator) -> Example:
        """Turns a piece into a sequence of exactly `packed_length` positions.

        Args:
          piece: the tokens.
          choice: the same number that `packed_length` was given.
          generator: of everything random that changes no length.
        """
        raise UserError(f"{type(self).__name__} has no form for packed documents: deliver windows")

    def statistics(self, length: int) -> dict[str, Any]:
        """What a window makes of its raw tokens, for logs: {"raw tokens used": mean share of `stride`, …}."""
        return {"raw_tokens_used": 1.0}


@dataclasses.dataclass(frozen=True)
class OneToOne(Objective):
    """An objective that neither adds tokens to a piece nor takes any away: it fills a position for each."""

    def packed_length(self, num_tokens: np.ndarray, choices: np.ndarray) -> np.ndarray:
        del choices
        return np.asarray(num_tokens, np.int64)

    def longest_piece(self, length: int) -> int:
        return length
