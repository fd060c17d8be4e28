"""Supervised learning: inputs are read, targets are learnt."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives.interface import Example, OneToOne, Piece, RowKeys
from t5x_scale.data.objectives.layout import shift_sequence


@dataclasses.dataclass(frozen=True)
class Supervised(OneToOne):
    """Loss on the targets of supervised documents alone, the separator that ends them included.

    The token before the document is its first input. Of m tokens of inputs, the first m predictions are not learnt;
    the first target is predicted by the position that is fed the last of them. A document without inputs is learnt as
    a whole. Documents are never cut: delivery leaves those out that are too long, and counts them.

    Attributes:
      prefix_bidirectional: whether the inputs see one another in both directions, instead of backwards only.
    """

    prefix_bidirectional: bool = False

    splits_documents: ClassVar[bool] = False

    @property
    def has_prefix(self) -> bool:  # As in the interface; here a configuration decides.
        return self.prefix_bidirectional

    def raw_length(self, length: int) -> int:
        raise UserError(
            "Supervised needs whole documents, and windows cut them: pack documents (PackDocuments), "
            "or choose another objective"
        )

    def __call__(self, tokens: np.ndarray, keys: RowKeys, length: int) -> dict[str, np.ndarray]:
        # The message of raw_length holds here too.
        raise AssertionError(self.raw_length(length))

    def example(self, piece: Piece, choice: int, generator: np.random.Generator) -> Example:
        del choice, generator
        if not 0 <= piece.target_start < len(piece.tokens):
            raise ValueError(f"target_start {piece.target_start} of a document of {len(piece.tokens)} tokens")
        sequence = np.concatenate([[piece.previous], piece.tokens]).astype(np.int32)
        example = shift_sequence(sequence, piece.target_start)
        return example if self.prefix_bidirectional else dataclasses.replace(example, prefix=0)
