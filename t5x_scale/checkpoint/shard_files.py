"""The shards of one process as they lie in its memory: two files in a directory, for a restart on the same machine.

    1200/
      shards               the bytes of all shards, one after the other, in C order, as they are in memory
      metadata/metadata    the document of the checkpoint (see layout.py), its metadata wrapped:
                           {"metadata": ..., "shards": [[leaf path, [[start, stop], ...], offset], ...]}

Whatever mesh they were made on: a restore asks for the boxes that its own devices need, and finds them or does not.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from t5x_scale.checkpoint import layout, plain_form
from t5x_scale.checkpoint.block_files import commit_directory, describe_failures, write_file
from t5x_scale.checkpoint.layout import DamagedError, Document
from t5x_scale.checkpoint.plain_files import check_plain_files
from t5x_scale.core import files, lazy
from t5x_scale.core.errors import describe_unreadable

_SHARDS = "shards"
_STAGING_SUFFIX = ".orbax-checkpoint-tmp"

Box = tuple[tuple[int, int], ...]


def copy_shards(leaves: Mapping[str, Any]) -> dict[tuple[str, Box], np.ndarray]:
    """The different shards of this process, in its memory: afterwards the leaves may be donated."""
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    copies = {}
    for path, leaf in leaves.items():
        for index, data in _list_shards(leaf):
            key = (path, to_box(index, leaf.shape if hasattr(leaf, "shape") else ()))
            if key not in copies:
                copies[key] = np.array(data, copy=True, order="C")
    return copies


def write_shards(directory: files.Path, document: Document, shards: Mapping[tuple[str, Box], np.ndarray]) -> None:
    """Writes a step, whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    target = layout.step_directory(directory, document.step)
    staging = directory / f"{document.step}{_STAGING_SUFFIX}"
    shutil.rmtree(staging, ignore_errors=True)
    table, offset = [], 0
    with describe_failures(staging):
        staging.mkdir(parents=True)
        with open(staging / _SHARDS, "wb", buffering=0) as file:
            for (path, box), array in shards.items():
                view = memoryview(array.reshape(-1).view(np.uint8)) if array.size else memoryview(b"")
                while view:
                    view = view[file.write(view) :]
                table.append([path, box, offset])
                offset += array.nbytes
            os.fsync(file.fileno())
    wrapped = {"metadata": document.metadata, "shards": table}
    rendered = layout.render_document(dataclasses.replace(document, metadata=wrapped))
    write_file(staging / layout.METADATA_ITEM / layout.METADATA_ITEM, plain_form.to_bytes(rendered))
    shutil.rmtree(target, ignore_errors=True)
    commit_directory(staging, target)


class ShardReader:
    """One step as `write_shards` left it.

    Attributes:
      document: with the caller's metadata.

    Raises:
      DamagedError: its document cannot be trusted.
    """

    def __init__(self, path: files.Path):
        check_plain_files(path)
        document = layout.read_document(path)
        self._file = path / _SHARDS
        try:
            self._offsets = {
                (name, tuple((start, stop) for start, stop in box)): offset
                for name, box, offset in document.metadata["shards"]
            }
            self.document = dataclasses.replace(document, metadata=document.metadata["metadata"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError("its table of shards cannot be read") from error

    def read(self, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Leaves by path, in the shardings of `abstract`; not verified.

        Raises:
          DamagedError: a shard that a device of this process needs is not here, or cannot be read.
        """
        for path, leaf in abstract.items():
            record = self.document.leaves.get(path)
            if record is None or (record.shape, record.dtype) != (tuple(leaf.shape), str(leaf.dtype)):
                raise DamagedError(f"its leaf '{path}' is not the one that this run has")
            boxes = leaf.sharding.addressable_devices_indices_map(tuple(leaf.shape)).values()
            if any((path, to_box(index, leaf.shape)) not in self._offsets for index in boxes):
                raise DamagedError("it is of another mesh, or of another number of processes")
        return {path: self._read_leaf(path, leaf) for path, leaf in abstract.items()}

    def _read_leaf(self, path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        def read(index: tuple[slice, ...]) -> np.ndarray:
            box = to_box(index, leaf.shape)
            shape, dtype = tuple(stop - start for start, stop in box), lazy.to_dtype(str(leaf.dtype))
            count = math.prod(shape)
            try:
                values = np.fromfile(self._file, dtype, count, offset=self._offsets[path, box])
            except OSError as error:
                # Whatever keeps it from being read: there is another copy, where it does not matter.
                raise DamagedError(f"its {_SHARDS} cannot be read: {describe_unreadable(error)}") from None
            if values.size != count:
                raise DamagedError(f"its leaf '{path}' ends early")
            return values.reshape(shape)

        return jax.make_array_from_callback(tuple(leaf.shape), leaf.sharding, read)


def to_box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    """Starts and stops of the slices by which JAX names a shard."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def _list_shards(leaf: Any) -> Iterator[tuple[tuple[slice, ...], Any]]:
    if isinstance(leaf, jax.Array):
        yield from ((shard.index, shard.data) for shard in leaf.addressable_shards)
    else:
        whole = np.asarray(leaf)
        yield (slice(None),) * whole.ndim, whole
