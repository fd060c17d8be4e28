"""A Hugging Face directory as `Weights`: config, tensors and tokenizer, checked against each other."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data.vocabulary import JSON_FILE, MODEL_FILE, Vocabulary, vocabulary_from_files
from t5x_scale.interop.hugging_face import GENERATION_FILE, read_directory
from t5x_scale.interop.registry import find_family, read_weights
from t5x_scale.models.weights import Weights

LOGGER = logging.getLogger("t5x_scale.interop")


def read_hugging_face(path: str | os.PathLike) -> Weights:
    """Opens a model; no tensor is read before somebody reads a leaf.

    What a generation config says travels as one of the tokenizer's files.

    Raises:
      UserError: the family is not known, config and tensors do not fit each other, a file is damaged, or the
        tokenizer has more ids than the embedding has rows.
    """
    found = read_directory(path)
    try:
        weights = read_weights(found.config, found.tensors)
    except UserError as error:
        raise UserError(f"{files.to_path(path)}: {error}") from error
    check_tokenizer(found.tokenizer, weights.architecture.config.vocab_size, str(files.to_path(path)))
    tokenizer = dict(found.tokenizer)
    if found.generation_config is not None:
        tokenizer[GENERATION_FILE] = (files.to_path(path) / GENERATION_FILE).read_bytes()
    step = {"read": files.to_path(path).name, "format": "Hugging Face", "family": find_family(found.config).name}
    return weights.replace(tokenizer=tokenizer, recipe=(step,))


def check_tokenizer(tokenizer: Mapping[str, bytes], rows: int, where: str) -> None:
    """Checks that every id of a tokenizer has a row in the embedding; rows to spare are padding and allowed.

    Raises:
      UserError: there are more ids than rows; names both numbers and the token with the highest id.
    """
    for name, vocabulary in open_vocabularies(tokenizer, where).items():
        if vocabulary.size > rows:
            last = vocabulary.size - 1
            raise UserError(
                f"{where}: {name} has {vocabulary.size} ids, the embedding {rows} rows: id {last}, "
                f"'{vocabulary.piece(last)}', has none; is this another model's tokenizer?"
            )


def open_vocabularies(tokenizer: Mapping[str, bytes], where: str) -> dict[str, Vocabulary]:
    """The vocabularies among a tokenizer's files, by file. One that cannot be opened is left out with a warning."""
    found = {}
    for name in (MODEL_FILE, JSON_FILE):
        if name in tokenizer:
            others = {other: content for other, content in tokenizer.items() if other not in (MODEL_FILE, JSON_FILE)}
            try:
                found[name] = vocabulary_from_files({**others, name: tokenizer[name]}, f"{where}/{name}")
            except UserError as error:
                LOGGER.warning("not compared with the model: %s", error)
    if tokenizer and not found:
        LOGGER.warning(
            "%s has neither %s nor %s that can be opened: no text can be encoded", where, MODEL_FILE, JSON_FILE
        )
    return found
