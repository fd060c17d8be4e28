"""`Weights` as a Hugging Face directory: any family that can carry them, with tokenizer and model card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from t5x_scale.core import files, lazy
from t5x_scale.core.errors import UserError
from t5x_scale.core.leaves import Leaf
from t5x_scale.core.staging import check_target
from t5x_scale.data.tokenizer_conversion import with_tokenizer_json
from t5x_scale.interop.carrying import name_refused
from t5x_scale.interop.families import FAMILIES
from t5x_scale.interop.hugging_face import GENERATION_FILE, Progress, write_directory
from t5x_scale.interop.model_card import make_model_card
from t5x_scale.interop.reader import check_tokenizer, open_vocabularies
from t5x_scale.interop.registry import write_weights
from t5x_scale.interop.safetensors_files import MAX_BLOCK_BYTES, MAX_SHARD_BYTES
from t5x_scale.models.weights import Weights, cast_weights

_ROLES = ("bos", "eos", "pad")


def write_hugging_face(
    path: str | os.PathLike,
    weights: Weights,
    family: str | None = None,
    dtype: str | None = None,
    vocab_size: int | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    max_block_bytes: int = MAX_BLOCK_BYTES,
    card_facts: Mapping[str, Any] = {},
    on_progress: Progress | None = None,
) -> files.Path:
    """Writes a directory that `transformers` loads, once every bit of it has been read back and compared.

    Args:
      path: a directory that does not exist yet; local or `gs://`.
      weights: what to write, block by block. Moments of an optimiser stay behind.
      family: as `model_type` in a config.json. By default the one they were read from, if it can carry them still, or
        else the first that can.
      dtype: of all tensors, one of `models.weights.STORED_DTYPES`; as they are by default.
      vocab_size: rows of the embedding to keep, for tables that were padded; all by default.
      max_shard_bytes: of data in a file.
      max_block_bytes: held at once.
      card_facts: see `model_card.make_model_card`.
      on_progress: called with bytes done and bytes in all; each byte counts twice.

    Raises:
      UserError: no family can carry the weights, the tokenizer does not fit, the directory exists or cannot be
        written, or a number is too large for `dtype`.
    """
    target = check_target(path)
    weights = cast_weights(trim_vocabulary(weights, vocab_size), dtype)
    config, tensors = write_weights(weights, family or _family_on_record(weights))
    tokenizer = dict(weights.tokenizer)
    generation = _parse_generation(tokenizer.pop(GENERATION_FILE, None))
    check_tokenizer(tokenizer, weights.architecture.config.vocab_size, "the tokenizer")
    ids = _special_ids(tokenizer, generation)
    if generation is None and any(value is not None for value in ids.values()):
        generation = {name: value for name, value in ids.items() if value is not None}
    config = {**config, **ids}
    card = make_model_card(target.name, weights, config, card_facts)
    return write_directory(
        target,
        config,
        generation,
        tensors,
        with_tokenizer_json(tokenizer),
        card,
        max_shard_bytes=max_shard_bytes,
        max_block_bytes=max_block_bytes,
        on_progress=on_progress,
    )


def _family_on_record(weights: Weights) -> str | None:
    names = [step["family"] for step in weights.recipe if step.get("family") in FAMILIES]
    if not names or weights.architecture is None or name_refused(FAMILIES[names[-1]], weights.architecture):
        return None
    return names[-1]


def trim_vocabulary(weights: Weights, vocab_size: int | None) -> Weights:
    """The weights with the first `vocab_size` rows of every table of the vocabulary.

    Raises:
      UserError: there are fewer rows, or it is not known which dimensions are the vocabulary's.
    """
    if vocab_size is None:
        return weights
    if weights.architecture is None:
        raise UserError("this checkpoint does not say what its model computes, so its vocabulary cannot be trimmed")
    rows = weights.architecture.config.vocab_size
    if not 0 < vocab_size <= rows:
        raise UserError(
            f"vocab_size={vocab_size} of {rows} rows: an export keeps rows or leaves them out, it adds none"
        )
    if vocab_size == rows:
        return weights
    leaves = {path: _trim(leaf, vocab_size) for path, leaf in weights.leaves.items()}
    return weights.replace(leaves=leaves, architecture=weights.architecture.with_config(vocab_size=vocab_size))


def _trim(leaf: Leaf, vocab_size: int) -> Leaf:
    if "vocab" not in leaf.axes:
        return leaf
    axis = leaf.axes.index("vocab")
    detail = f"rows {vocab_size}-{leaf.shape[axis] - 1} left out"
    return leaf.changed(lazy.take_slice(leaf.array, axis, 0, vocab_size), "copied", detail)


def _parse_generation(content: bytes | None) -> dict[str, Any] | None:
    if content is None:
        return None
    try:
        value = json.loads(content)
    except ValueError as error:
        raise UserError(f"{GENERATION_FILE} is not valid JSON: {error}") from error
    return value if isinstance(value, dict) else None


def _special_ids(tokenizer: Mapping[str, bytes], generation: Mapping[str, Any] | None) -> dict[str, Any]:
    """Ids for config.json: the generation config's, else the tokenizer's; None where there is none.

    None is written too: what a config.json leaves out, `transformers` fills with the family's own numbers.
    """
    ids: dict[str, Any] = {}
    vocabularies = open_vocabularies(tokenizer, "the tokenizer").values()
    for role in _ROLES:
        stated = [(generation or {}).get(f"{role}_token_id")]
        stated += [getattr(vocabulary, f"{role}_id") for vocabulary in reversed(list(vocabularies))]
        ids[f"{role}_token_id"] = next((value for value in stated if value is not None), None)
    return ids
