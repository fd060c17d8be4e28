"""Vocabulary: tokens more, rows more or fewer, or another vocabulary altogether.

The tokenizer's files travel with the model and are changed with it, so that what is written afterwards fits together.
A table often has more rows than its tokenizer has ids; those rows are used before the table grows.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError, check_choice, did_you_mean
from t5x_scale.core.leaves import Leaves
from t5x_scale.data.vocabulary import (
    Vocabulary,
    has_tokenizer,
    load_vocabulary,
    tokenizer_files,
    vocabulary_from_files,
)
from t5x_scale.data.vocabulary_codecs import MODES
from t5x_scale.data.vocabulary_extension import extend_tokenizer
from t5x_scale.data.vocabulary_remapping import remap_pieces, subword_ids
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.weights import Weights
from t5x_scale.surgery.checks import check_at_least, check_range
from t5x_scale.surgery.interface import Slot, Surgery
from t5x_scale.surgery.vocabulary_rows import VOCAB, RowPlan, change_rows

LOGGER = logging.getLogger("t5x_scale.surgery")
INITIALISE = ("mean", "copy", "subwords", "normal")


@dataclasses.dataclass(frozen=True)
class VocabularyChange(Surgery):
    """A surgery on the vocabulary, once it is known which row is which.

    Attributes:
      plan: the rows of every table.
      tokenizer: its files afterwards.
      found: what the recipe says of the rows.
    """

    plan: RowPlan
    tokenizer: Mapping[str, bytes]
    found: Mapping[str, Any]

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same with another number of rows."""
        return architecture.with_config(vocab_size=self.plan.kept.size)

    def change_leaves(self, leaves: Leaves, architecture: Architecture | None, slot: Slot) -> Leaves:
        """See `Surgery.change_leaves`."""
        return {
            path: change_rows(leaf, self.plan, slot, path) if VOCAB in leaf.axes else leaf
            for path, leaf in leaves.items()
        }

    def change_tokenizer(self, tokenizer: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """The files that were made with the plan."""
        return self.tokenizer

    def facts(self) -> dict[str, Any]:
        """Counts of rows, and tokens that were added."""
        return {"rows": self.plan.count(), **self.found}


@dataclasses.dataclass(frozen=True)
class VocabularySurgery(Surgery):
    """What surgeries on the vocabulary share: they are bound to a model by its tokenizer and the rows it has."""

    def bind(self, weights: Weights) -> VocabularyChange:
        """See `Surgery.bind`; `change` says what is done."""
        rows = self.need_architecture(weights.architecture).config.vocab_size
        vocabulary = open_tokenizer(weights.tokenizer)[0] if has_tokenizer(weights.tokenizer) else None
        plan, tokenizer, found = self.change(rows, vocabulary, weights.tokenizer)
        return VocabularyChange(plan, tokenizer, found, optimizer=self.optimizer)

    def change(
        self, rows: int, vocabulary: Vocabulary | None, tokenizer: Mapping[str, bytes]
    ) -> tuple[RowPlan, Mapping[str, bytes], dict[str, Any]]:
        """The rows, the tokenizer's files and what the recipe says of them.

        Args:
          rows: of the tables.
          vocabulary: of the model, None if it carries no tokenizer.
          tokenizer: its files.

        Raises:
          UserError: the surgery does not fit this vocabulary.
        """
        raise NotImplementedError

    def need_vocabulary(self, vocabulary: Vocabulary | None, rows: int) -> Vocabulary:
        """The vocabulary, for surgeries that cannot do without.

        Raises:
          UserError: the model carries no tokenizer, or one that has more ids than the tables have rows.
        """
        name = type(self).__name__
        if vocabulary is None:
            raise UserError(
                f"{name} must know the model's tokenizer, and this checkpoint carries none; put tokenizer.model or "
                "tokenizer.json beside it"
            )
        if vocabulary.size > rows:
            raise UserError(
                f"{name}: the tokenizer has {vocabulary.size} ids and the model {rows} rows; if they belong together, "
                f"ResizeVocabulary(vocab_size={vocabulary.size}) makes the others"
            )
        return vocabulary


@dataclasses.dataclass(frozen=True)
class ExtendVocabulary(VocabularySurgery):
    """New control tokens, in the tokenizer and as rows of the tables. Tokens that are there already stay as they are.

    Attributes:
      tokens: names, such as `<|user|>`.
      num_sentinels: how many `<extra_id_0>`, `<extra_id_1>`, ... there must be.
      ul2: whether there must be UL2's modes, `[S2S] [NLU] [NLG]`.
      initialise: `mean` of all rows that mean something; `copy` of another token's; the mean of the `subwords` that
        the name is spelled with; or drawn from a `normal` distribution with mean and variance of every feature.
      copy_from: for `copy`, the piece whose rows are copied: one for all, or one for each new token.
      pad_to_multiple: if the tables grow, to a multiple of this.
      noise: see `RowPlan`; `normal` takes no notice of it.
      seed: of what is drawn.
    """

    tokens: Sequence[str] = ()
    num_sentinels: int = 0
    ul2: bool = False
    initialise: str = "mean"
    copy_from: str | Mapping[str, str] | None = None
    pad_to_multiple: int = 128
    noise: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("ExtendVocabulary.initialise", self.initialise, INITIALISE)
        check_at_least(self, 0, "num_sentinels")
        check_at_least(self, 1, "pad_to_multiple")
        check_range(self, 0.0, math.inf, "noise")
        if (self.initialise == "copy") != (self.copy_from is not None):
            raise UserError("ExtendVocabulary.copy_from and initialise = 'copy' need each other")
        if isinstance(self.tokens, str):
            raise UserError(f"ExtendVocabulary.tokens is the text {self.tokens!r}; expected a list of names")

    def change(
        self, rows: int, vocabulary: Vocabulary | None, tokenizer: Mapping[str, bytes]
    ) -> tuple[RowPlan, Mapping[str, bytes], dict[str, Any]]:
        """See `VocabularySurgery.change`."""
        vocabulary = self.need_vocabulary(vocabulary, rows)
        names = [*self.tokens, *(MODES if self.ul2 else ()), *(f"<extra_id_{i}>" for i in range(self.num_sentinels))]
        files, ids = extend_tokenizer(tokenizer, names)
        added = {name: index for name, index in ids.items() if index >= vocabulary.size}
        if not added:
            LOGGER.warning("ExtendVocabulary adds nothing: %s", _why_nothing(names))
            return _plan_rows(rows, rows, vocabulary.size), tokenizer, {"added": []}
        size = vocabulary.size + len(added)
        sources = {index: found for name, index in added.items() if (found := self._sources(vocabulary, name))}
        noise = 1.0 if self.initialise == "normal" else self.noise
        plan = RowPlan(
            kept=_keep(rows, rows if size <= rows else _round_up(size, self.pad_to_multiple), added.values()),
            sources=sources,
            real=vocabulary.size,
            noise=noise,
            seed=self.seed,
        )
        return plan, files, {"added": list(added)}

    def _sources(self, vocabulary: Vocabulary, name: str) -> list[int]:
        if self.initialise == "subwords":
            return _spell(vocabulary, name.encode())
        if self.initialise != "copy":
            return []
        if isinstance(self.copy_from, Mapping) and name not in self.copy_from:
            near = did_you_mean(name, self.copy_from)
            raise UserError(f"ExtendVocabulary.copy_from says nothing of the new token '{name}'{near}")
        piece = self.copy_from[name] if isinstance(self.copy_from, Mapping) else self.copy_from
        return [_find_piece(vocabulary, piece)]


@dataclasses.dataclass(frozen=True)
class ResizeVocabulary(VocabularySurgery):
    """Another number of rows for the same tokenizer: padding more, or less.

    Attributes:
      vocab_size: rows after the surgery; not below the number of the tokenizer's ids.
    """

    vocab_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "vocab_size")

    def change(
        self, rows: int, vocabulary: Vocabulary | None, tokenizer: Mapping[str, bytes]
    ) -> tuple[RowPlan, Mapping[str, bytes], dict[str, Any]]:
        """See `VocabularySurgery.change`."""
        if vocabulary is not None and self.vocab_size < vocabulary.size:
            raise UserError(
                f"ResizeVocabulary.vocab_size is {self.vocab_size}, and row {self.vocab_size} is the token "
                f"{vocabulary.piece(self.vocab_size)!r}; the tokenizer needs {vocabulary.size} rows"
            )
        real = rows if vocabulary is None else min(rows, vocabulary.size)
        return _plan_rows(rows, self.vocab_size, real), tokenizer, {}


@dataclasses.dataclass(frozen=True)
class PadVocabulary(VocabularySurgery):
    """As many rows more as it takes to a multiple, so that the tables can be sharded.

    Attributes:
      multiple: of which the number of rows becomes one.
    """

    multiple: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "multiple")

    def change(
        self, rows: int, vocabulary: Vocabulary | None, tokenizer: Mapping[str, bytes]
    ) -> tuple[RowPlan, Mapping[str, bytes], dict[str, Any]]:
        """See `VocabularySurgery.change`."""
        real = rows if vocabulary is None else self.need_vocabulary(vocabulary, rows).size
        return _plan_rows(rows, _round_up(rows, self.multiple), real), tokenizer, {}


@dataclasses.dataclass(frozen=True)
class RemapVocabulary(VocabularySurgery):
    """Another vocabulary: rows go to the ids that their pieces have in it.

    A piece that the old vocabulary has keeps its row; another begins at the mean of the rows of the old pieces that
    spell it; control tokens without a counterpart, and padding, at the mean of all.

    Attributes:
      vocabulary: the new one, as in `data.vocabulary.load_vocabulary`.
      initialise: `subwords`, or `mean` for all pieces that are not kept.
      pad_to_multiple: rows become a multiple of this.
      noise: see `RowPlan`.
      seed: of the noise.
    """

    vocabulary: str
    initialise: str = "subwords"
    pad_to_multiple: int = 128
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("RemapVocabulary.initialise", self.initialise, ("subwords", "mean"))
        check_at_least(self, 1, "pad_to_multiple")
        check_range(self, 0.0, math.inf, "noise")

    def change(
        self, rows: int, vocabulary: Vocabulary | None, tokenizer: Mapping[str, bytes]
    ) -> tuple[RowPlan, Mapping[str, bytes], dict[str, Any]]:
        """See `VocabularySurgery.change`."""
        old = self.need_vocabulary(vocabulary, rows)
        files = tokenizer_files(self.vocabulary)
        new = open_tokenizer(files)[0] if files else load_vocabulary(self.vocabulary)
        kept = np.full(_round_up(new.size, self.pad_to_multiple), -1, np.int64)
        kept[: new.size] = remap_pieces(old, new)
        sources = {}
        if self.initialise == "subwords":
            for index in np.flatnonzero(kept[: new.size] < 0).tolist():
                spelling = new.spelling(index)
                if found := _spell(old, spelling) if spelling else []:
                    sources[index] = found
        return RowPlan(kept, sources, old.size, self.noise, self.seed), files, {}


def open_tokenizer(files: Mapping[str, bytes]) -> tuple[Vocabulary, dict[str, bytes]]:
    """The vocabulary of all ids that any of the files has, and the files with these filled in.

    Raises:
      UserError: there is no tokenizer among the files, or they contradict each other.
    """
    filled, _ = extend_tokenizer(files, ())
    return vocabulary_from_files(filled), filled


def _why_nothing(names: Sequence[str]) -> str:
    if not names:
        return "set its tokens, num_sentinels or ul2"
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the tokenizer has '{names[0]}'{others} already"


def _spell(vocabulary: Vocabulary, text: bytes) -> list[int]:
    """Ids that spell a text; none where all that is known of it is the white space around it."""
    ids = subword_ids(vocabulary, text)
    known = b"".join(vocabulary.spelling(index) or b"" for index in ids)
    return ids if known.strip() or not text.strip() else []


def _plan_rows(before: int, after: int, real: int) -> RowPlan:
    return RowPlan(_keep(before, after, ()), {}, real)


def _keep(before: int, after: int, new: Any) -> np.ndarray:
    """Row i is row i, but for those behind the old ones and those in `new`."""
    kept = np.arange(after, dtype=np.int64)
    kept[before:] = -1
    kept[list(new)] = -1
    return kept


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _find_piece(vocabulary: Vocabulary, piece: str) -> int:
    found = vocabulary.control_id(piece)
    if found is None:
        found = next((index for index in range(vocabulary.size) if vocabulary.piece(index) == piece), None)
    if found is None:
        ids = subword_ids(vocabulary, piece)
        found = ids[0] if len(ids) == 1 else None
    if found is None:
        raise UserError(f"ExtendVocabulary.copy_from: {piece!r} is no piece of the model's vocabulary")
    return found
