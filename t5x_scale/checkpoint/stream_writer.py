"""Writing a checkpoint from lazy arrays, block by block: memory holds a few blocks, whatever the size of the model.

Each block is read, fingerprinted and written by one thread as one chunk of a zarr array, so that nothing is done
twice and a sharded restore reads little more than its shards. The result is a step that `CheckpointManager.restore`,
`restore_parameters` and Orbax read; until it is whole it has a name that does not count (`layout.list_leftovers`).
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from t5x_scale.checkpoint import integrity, layout, plain_form
from t5x_scale.checkpoint.block_files import commit_directory, make_buffer, write_file
from t5x_scale.checkpoint.layout import Document, LeafRecord
from t5x_scale.core import files, lazy, parallel
from t5x_scale.core.contiguous import copy_into
from t5x_scale.core.environment import describe_environment
from t5x_scale.core.errors import UserError
from t5x_scale.core.lazy import LazyArray, Region
from t5x_scale.core.storage_errors import explained

# Of one chunk: a layer of a small model, a part of a matrix of a large one.
MAX_BLOCK_BYTES = 1 << 25
# Orbax's name for a save that is under way.
_STAGING_SUFFIX = ".orbax-checkpoint-tmp"

Progress = Callable[[int, int], None]


class _Chunk(NamedTuple):
    path: str
    array: LazyArray
    region: Region
    shape: tuple[int, ...]


def write_stream(
    model_dir: str | os.PathLike,
    step: int,
    leaves: Mapping[str, LazyArray],
    metadata: Mapping[str, Any],
    *,
    max_block_bytes: int = MAX_BLOCK_BYTES,
    on_progress: Progress | None = None,
) -> files.Path:
    """Writes `MODEL_DIR/checkpoints/<step>`.

    Args:
      model_dir: local, or `gs://`.
      step: the name of the checkpoint.
      leaves: by leaf path (`params/decoder/...`); read by several threads at once, each element once.
      metadata: JSON values, as `CheckpointManager.save` takes them.
      max_block_bytes: of one chunk, and so of one file.
      on_progress: called with the bytes done and the bytes of all, after every block.

    Returns:
      The directory of the step.

    Raises:
      UserError: the step is there already, or it cannot be written; nothing half-written is left behind.
    """
    directory = files.to_path(model_dir) / layout.CHECKPOINTS
    target = layout.step_directory(directory, step)
    _check_names(leaves)
    with explained(f"what is at {target}"):
        is_there = layout.is_committed(target)
    if is_there:
        raise UserError(f"{target} is there already; nothing was overwritten: name another MODEL_DIR or step")
    files.make_directory(directory)
    for leftover in layout.list_leftovers(directory):
        if leftover.name.split(".")[0] == target.name:
            leftover.rmtree()
    # An object store renames by copying: there the marker that is written last makes the checkpoint.
    staging = target if files.is_remote(target) else directory / f"{step}{_STAGING_SUFFIX}"
    try:
        _write_step(staging, step, leaves, metadata, max_block_bytes, on_progress)
        _commit(staging, target)
    except BaseException:
        _remove(staging)
        raise
    return target


def _write_step(
    staging: files.Path,
    step: int,
    leaves: Mapping[str, LazyArray],
    metadata: Mapping[str, Any],
    max_block_bytes: int,
    on_progress: Progress | None,
) -> None:
    began, state = time.time_ns(), staging / layout.STATE_ITEM
    chunks = {path: _chunk_shape(array, max_block_bytes) for path, array in leaves.items()}
    metadata = {"environment": describe_environment(), **metadata}
    layout.render_document(Document(step, {}, metadata))  # What JSON does not hold is found before the work.
    _describe_arrays(state, leaves, chunks)
    fingerprints = _write_chunks(state, leaves, chunks, max_block_bytes, on_progress)
    records = {
        path: LeafRecord(array.shape, str(array.dtype), integrity.to_text(fingerprints[path]))
        for path, array in leaves.items()
    }
    document = layout.render_document(Document(step, records, metadata))
    write_file(staging / layout.METADATA_ITEM / layout.METADATA_ITEM, plain_form.to_bytes(document))
    write_file(state / plain_form.TREE_FILE, plain_form.to_bytes(plain_form.render_tree(leaves)))
    write_file(staging / plain_form.STEP_FILE, plain_form.to_bytes(plain_form.render_step(began, time.time_ns())))


def _describe_arrays(state: files.Path, leaves: Mapping[str, LazyArray], chunks: Mapping[str, tuple[int, ...]]) -> None:
    def write(path: str) -> None:
        document = plain_form.render_array(leaves[path].shape, chunks[path], leaves[path].dtype)
        write_file(state / plain_form.array_name(path) / plain_form.ARRAY_FILE, plain_form.to_bytes(document))

    # By threads: a small file costs the wait for the disk and nothing else.
    for _ in parallel.map_bounded(write, leaves):
        pass


def _write_chunks(
    state: files.Path,
    leaves: Mapping[str, LazyArray],
    chunks: Mapping[str, tuple[int, ...]],
    max_block_bytes: int,
    on_progress: Progress | None,
) -> dict[str, int]:
    """Writes all arrays and returns their fingerprints."""
    largest = max(math.prod(chunks[path]) * array.dtype.itemsize for path, array in leaves.items())
    buffers = threading.local()

    def write(chunk: _Chunk) -> tuple[str, int, int]:
        if not hasattr(buffers, "bytes"):
            buffers.bytes = make_buffer(largest)
        data, block = _read_chunk(chunk, buffers.bytes)
        fingerprint = integrity.fingerprint_region(block, chunk.region, chunk.array.shape)
        index = [part.start // size for part, size in zip(chunk.region, chunk.shape, strict=True)]
        write_file(state / plain_form.array_name(chunk.path) / plain_form.chunk_name(index), data)
        return chunk.path, fingerprint, block.nbytes

    def split() -> Iterator[_Chunk]:
        for path, array in leaves.items():
            for region in lazy.blocks(array, max_block_bytes):
                yield _Chunk(path, array, region, chunks[path])

    fingerprints = dict.fromkeys(leaves, 0)
    done, total = 0, sum(array.nbytes for array in leaves.values())
    with contextlib.closing(parallel.map_bounded(write, split())) as written:
        for path, fingerprint, size in written:
            fingerprints[path] = integrity.combine((fingerprints[path], fingerprint))
            done += size
            if on_progress:
                on_progress(done, total)
    return fingerprints


def _chunk_shape(array: LazyArray, max_block_bytes: int) -> tuple[int, ...]:
    """Of the zarr array: the grid of `lazy.blocks`. An empty dimension has chunks of size 1 too."""
    return tuple(max(1, size) for size in lazy.block_shape(array, max_block_bytes))


def _read_chunk(chunk: _Chunk, buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a chunk, uint8 [n], and its elements that are in the array: both views of `buffer`."""
    data = buffer[: math.prod(chunk.shape) * chunk.array.dtype.itemsize]
    block = data.view(chunk.array.dtype).reshape(chunk.shape)
    inside = block[(*(slice(0, part.stop - part.start) for part in chunk.region), ...)]
    if inside.shape != block.shape:
        data[:] = 0  # Zarr stores whole chunks, at the ends of dimensions too.
    copy_into(inside, chunk.array.read(chunk.region))
    return data, inside


def _commit(staging: files.Path, target: files.Path) -> None:
    message = f"Checkpoint commit was successful to {target}".encode()
    for item in (layout.STATE_ITEM, layout.METADATA_ITEM):
        write_file(staging / item / layout.COMMIT_MARKER, message)
    write_file(staging / layout.COMMIT_MARKER, message)
    if staging != target:
        commit_directory(staging, target)


def _remove(staging: files.Path) -> None:
    try:
        if staging.exists():
            staging.rmtree()
    except OSError as error:
        layout.LOGGER.warning("%s is not a checkpoint and could not be deleted: %s", staging, error)


def _check_names(leaves: Mapping[str, LazyArray]) -> None:
    """Checks that no two leaves would lie in one directory.

    Raises:
      ValueError: they would, or a path has an empty part.
    """
    names = {plain_form.array_name(path) for path in leaves}
    if not leaves or len(names) != len(leaves) or not all(all(path.split("/")) for path in leaves):
        raise ValueError("leaf paths must be unique with dots for slashes, and their parts not empty")
