"""Whether models are alike in all but their values, so that they can be merged."""

from __future__ import annotations

from collections.abc import Mapping

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.core.leaves import Leaves
from t5x_scale.data.vocabulary import has_tokenizer, vocabulary_from_files
from t5x_scale.models.records import name_differences
from t5x_scale.models.weights import Weights


def check_alike(first: Weights, other: Weights, first_name: str, other_name: str) -> None:
    """Checks that two models can be merged: the same decoder, the same tensors, the same pieces of text.

    Raises:
      UserError: naming the first difference.
    """
    both = f"'{first_name}' and '{other_name}'"
    if first.architecture and other.architecture:
        differences = name_differences(first.architecture.normalized(), other.architecture.normalized())
        if differences:
            raise UserError(f"{both} are different decoders and cannot be merged: {differences[0]}")
    _check_paths(first.leaves, other.leaves, first_name, other_name)
    _check_paths(other.leaves, first.leaves, other_name, first_name)
    for path, leaf in first.leaves.items():
        if leaf.shape != other.leaves[path].shape:
            shapes = f"{list(leaf.shape)} and {list(other.leaves[path].shape)}"
            raise UserError(f"{both} cannot be merged: {path} has the shapes {shapes}")
    check_tokenizers(first.tokenizer, other.tokenizer, first_name, other_name)


def check_tokenizers(first: Mapping[str, bytes], other: Mapping[str, bytes], first_name: str, other_name: str) -> None:
    """Checks that an id is the same piece of text in two models; one without a tokenizer is taken at its word.

    Raises:
      UserError: naming the first id that is not.
    """
    if not has_tokenizer(first) or not has_tokenizer(other) or first == other:
        return
    one = vocabulary_from_files(first, f"the tokenizer of '{first_name}'")
    two = vocabulary_from_files(other, f"the tokenizer of '{other_name}'")
    if one == two:
        return
    remedy = "RemapVocabulary gives a model the vocabulary of another"
    for index in range(min(one.size, two.size)):
        if one.piece(index) != two.piece(index):
            pieces = f"id {index} is {one.piece(index)!r} in '{first_name}' and {two.piece(index)!r} in '{other_name}'"
            raise UserError(f"models of different vocabularies cannot be merged: {pieces}; {remedy}")
    if one.size != two.size:
        sizes = f"{one.size} ids in '{first_name}', {two.size} in '{other_name}'"
        raise UserError(f"models of different vocabularies cannot be merged: {sizes}; {remedy}")


def _check_paths(some: Leaves, others: Leaves, name: str, other_name: str) -> None:
    for path in some:
        if path not in others:
            near = did_you_mean(path, others)
            raise UserError(f"'{name}' and '{other_name}' cannot be merged: the latter has no {path}{near}")
