"""Directories as Hugging Face lays them out: config.json, safetensors, the files of a tokenizer, a model card.

What is written has no name of its own before it is whole. On a disk that is a sibling directory
`.NAME.partial-<random>`, read back, compared and then renamed; on an object store, where nothing is renamed,
`config.json` comes last, and what has none is taken for a model by nobody.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.staging import check_target, staged
from t5x_scale.data.vocabulary import tokenizer_files
from t5x_scale.interop.safetensors_files import (
    MAX_BLOCK_BYTES,
    MAX_SHARD_BYTES,
    Written,
    checksum,
    read_tensors,
    write_tensors,
)

CONFIG_FILE, GENERATION_FILE, CARD_FILE = "config.json", "generation_config.json", "README.md"

# Called with bytes done and bytes in all.
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class HuggingFaceFiles:
    """What lies in a directory; of the tensors only their headers have been read.

    Attributes:
      config: `config.json`.
      generation_config: `generation_config.json`, or None.
      tensors: theirs, by name.
      tokenizer: the files of the tokenizer, by name.
    """

    config: dict[str, Any]
    generation_config: dict[str, Any] | None
    tensors: dict[str, LazyArray]
    tokenizer: dict[str, bytes]


def is_hugging_face(path: str | os.PathLike) -> bool:
    """Whether `path` is a directory with a `config.json` in it."""
    return files.exists(files.to_path(path) / CONFIG_FILE)


def read_directory(path: str | os.PathLike) -> HuggingFaceFiles:
    """Opens a directory with a model.

    Raises:
      UserError: it is no directory, has no valid config.json, or its tensors are not whole.
    """
    directory = files.to_path(path)
    if not files.is_directory(directory):
        raise UserError(f"{directory} is no directory; models are read from a disk or gs://, not by name from a hub")
    config = _read_object(directory / CONFIG_FILE)
    has_generation = files.exists(directory / GENERATION_FILE)
    generation = _read_object(directory / GENERATION_FILE) if has_generation else None
    tokenizer = {name: content for name, content in tokenizer_files(str(directory)).items() if name != GENERATION_FILE}
    return HuggingFaceFiles(config, generation, read_tensors(directory), tokenizer)


def _read_object(path: files.Path) -> dict[str, Any]:
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is no JSON object")
    return value


def write_directory(
    path: str | os.PathLike,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any] | None,
    tensors: Mapping[str, LazyArray],
    tokenizer: Mapping[str, bytes],
    card: str,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    max_block_bytes: int = MAX_BLOCK_BYTES,
    on_progress: Progress | None = None,
) -> files.Path:
    """Writes a model, reads it back and compares it, and only then gives it its name.

    Args:
      path: a directory that does not exist yet or is empty; local or `gs://`.
      config: `config.json`.
      generation_config: `generation_config.json`, or None for none.
      tensors: written as they are.
      tokenizer: files by name.
      card: `README.md`.
      max_shard_bytes: of data in a file.
      max_block_bytes: held at once.
      on_progress: called with bytes done and bytes in all; each byte counts twice.

    Raises:
      UserError: the directory is not empty or cannot be written, or what was written does not read back.
    """
    target = check_target(path)
    for name in tokenizer:
        if os.path.basename(name) != name or name in (CONFIG_FILE, GENERATION_FILE, CARD_FILE):
            raise UserError(f"{name!r} is no name for a file of a tokenizer")
    count = _counter(2 * sum(tensor.nbytes for tensor in tensors.values()), on_progress)
    with staged(target) as directory:
        written = write_tensors(directory, tensors, max_shard_bytes, max_block_bytes=max_block_bytes, on_block=count)
        check_directory(directory, written, on_block=count)
        for name, content in tokenizer.items():
            (directory / name).write_bytes(content)
        files.write_text(directory / CARD_FILE, card)
        if generation_config is not None:
            files.write_json(directory / GENERATION_FILE, dict(generation_config))
        files.write_json(directory / CONFIG_FILE, dict(config))
    return target


def check_directory(
    path: str | os.PathLike, written: Mapping[str, Written], on_block: Callable[[int], None] = lambda count: None
) -> None:
    """Reads the tensors of a directory back and compares them with what was written, block by block.

    Args:
      path: the directory.
      written: what `write_tensors` returned.
      on_block: called with the bytes of each block that was compared.

    Raises:
      UserError: a tensor is missing, left over or not what it should be; the message names it and where it differs.
    """
    found = read_tensors(path)
    for name in (*written, *found):
        if name not in found or name not in written:
            what = "is missing from" if name in written else "should not be in"
            raise UserError(f"tensor '{name}' {what} {path}{did_you_mean(name, found)}")
    for name, expected in written.items():
        where, tensor = f"{path}: tensor '{name}'", found[name]
        if (expected.shape, expected.dtype) != (tensor.shape, tensor.dtype):
            said = f"{tensor.dtype}{list(tensor.shape)}, not {expected.dtype}{list(expected.shape)}"
            raise UserError(f"{where} is {said}: write it again")
        for region, known in expected.checksums:
            block = tensor.read(region)
            if checksum(block) != known:
                box = ", ".join(f"{part.start}:{part.stop}" for part in region)
                raise UserError(f"{where} does not read back as it was written, in [{box}]: the storage is not sound")
            on_block(block.nbytes)


def _counter(total: int, on_progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if on_progress is not None:
            on_progress(done, total)

    return count
