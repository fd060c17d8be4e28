"""One-dimensional zarr3 arrays through TensorStore: written as a stream anywhere, read where they cannot be mapped.

On a local disk an array is plain `bytes` chunks, which `data.mapped_array` maps. In an object store it is sharded
(`sharding_indexed`): an object is large, because each one written or listed is a request, and the inner chunks in it
are small, because each window read is a request for one of them. Inner chunks carry a CRC-32C, so damage is found
where it is read.
"""

from __future__ import annotations

import functools
import os
import zlib
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data.mapped_array import check_ragged_ranges, check_ranges

# Elements of one file or object. The writer holds one of them in memory.
LOCAL_CHUNK = 2**24
REMOTE_SHARD = 2**24
# Elements of an inner chunk of a shard: what a read of a few tokens fetches.
INNER_CHUNK = 2**16
# Of all arrays that are read, together.
_REMOTE_CACHE_BYTES = 2**29


def default_chunk(directory: str | os.PathLike) -> int:
    """Elements of one file of the arrays of a store in `directory`."""
    return REMOTE_SHARD if files.is_remote(directory) else LOCAL_CHUNK


class ArrayWriter:
    """Appends to an array, one file or one whole shard at a time, and sums its blocks on the way."""

    def __init__(self, path: files.Path, dtype: np.dtype, chunk: int, block: int | None, *, sharded: bool = False):
        """Args:
        path: directory of the array; what an earlier build left there is deleted by the first write.
        dtype: little-endian dtype of an element.
        chunk: elements of one file or shard; of shards, rounded up to whole inner chunks.
        block: elements under one checksum; None for one checksum of all.
        sharded: whether files are shards of `INNER_CHUNK` elements.
        """
        self.dtype = dtype
        self._path = path
        self._chunk, self._inner = _file_layout(chunk, sharded)
        self._block = block
        # Pages of it that are never reached are never allocated.
        self._buffer = np.empty(self._chunk, dtype)
        self._filled = 0
        self._written = 0
        self._array: Any = None
        self._unfinished: Any = None
        self._checksums = [0]
        self._in_block = 0

    def __len__(self) -> int:
        return self._written + self._filled

    def extend(self, values: np.ndarray) -> None:
        """Appends `values` [n].

        Raises:
          UserError: the array cannot be written, for instance because the disk is full.
        """
        while len(values):
            take = min(self._chunk - self._filled, len(values))
            self._buffer[self._filled : self._filled + take] = values[:take]
            self._filled += take
            values = values[take:]
            if self._filled == self._chunk:
                self._write(self._buffer, self._chunk)

    def finish(self) -> list[int]:
        """Writes the rest and returns the checksums of the blocks (of the whole, when there are no blocks)."""
        if self._filled:
            # All files of a zarr array have one length; an array of a single file is made no longer than it is.
            whole = self._written or self._inner
            self._write(self._buffer[: self._filled], self._chunk if whole else self._filled)
        self._wait()
        if self._block and not self._in_block:
            self._checksums.pop()
        return self._checksums

    def _write(self, values: np.ndarray, chunk: int) -> None:
        try:
            if self._array is None:
                metadata = _array_metadata(self.dtype, chunk, self._inner)
                self._array = open_zarr(self._path, writable=True, metadata=metadata)
            begin, end = self._written, self._written + len(values)
            self._wait()
            self._array = self._array.resize(exclusive_max=[end], resize_metadata_only=True).result()
            # Reaches the disk while the next file fills: `values` are copied, and no more than one file is on its way.
            self._unfinished = self._array[begin:end].write(values)
            self._unfinished.copy.result()
        except (ValueError, OSError) as error:
            raise self._failure(error) from error
        self._written, self._filled = end, 0
        self._sum(values)

    def _wait(self) -> None:
        """Waits until what was handed over is written."""
        unfinished, self._unfinished = self._unfinished, None
        try:
            if unfinished is not None:
                unfinished.result()
        except (ValueError, OSError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> UserError:
        return UserError(f"cannot write the token store at {self._path}: {_reason(error)}")

    def _sum(self, values: np.ndarray) -> None:
        while len(values):
            take = min(self._block - self._in_block, len(values)) if self._block else len(values)
            self._checksums[-1] = zlib.crc32(values[:take], self._checksums[-1])
            self._in_block += take
            values = values[take:]
            if self._in_block == self._block:
                self._checksums.append(0)
                self._in_block = 0


def make_array(path: files.Path, dtype: np.dtype, size: int, chunk: int, *, sharded: bool = False) -> int:
    """Makes an array whose files `write_range` fills, in any order: the same files as `ArrayWriter` writes.

    An array that is there already and has this layout is left as it is, so that many may ask for it.

    Args:
      path, dtype, chunk, sharded: as `ArrayWriter`.
      size: elements of the array, > 0.

    Returns:
      Elements of one file: where `write_range` must begin and end, but at the array's end.

    Raises:
      UserError: the array cannot be made, or another one is there.
    """
    file, inner = _file_layout(chunk, sharded)
    file = file if inner else min(file, size)
    try:
        open_zarr(path, writable=True, metadata=_array_metadata(dtype, file, inner, size), replace=False)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot write the token store at {path}: {_reason(error)}") from error
    return file


def write_range(path: files.Path, start: int, values: np.ndarray) -> None:
    """Writes `values` [n] at `start` of an array of `make_array`; whole files, each there whole or not at all.

    Raises:
      UserError: the array cannot be written.
    """
    try:
        open_zarr(path, writable=True)[start : start + len(values)].write(values).result()
    except (ValueError, OSError) as error:
        raise UserError(f"cannot write the token store at {path}: {_reason(error)}") from error


class StoredArray:
    """Random access to an array through TensorStore. The interface of `MappedArray`."""

    def __init__(self, path: files.Path, dtype: np.dtype, size: int):
        """Args: as `MappedArray`.

        Raises:
          UserError: there is no such array.
        """
        self._path = path
        self._dtype = dtype
        self._size = size
        try:
            self._array = open_zarr(path)
        except (ValueError, OSError) as error:
            raise UserError(f"the token store {path.parent} is damaged or cannot be read: {_reason(error)}") from error

    def read_into(
        self, starts: np.ndarray, out: np.ndarray, rows: np.ndarray | None = None, *, again: bool = False
    ) -> None:
        """As `MappedArray.read_into`; what was read just now comes from the cache.

        Raises:
          ValueError: a row would reach outside the array.
          UserError: what is read is damaged or cannot be fetched.
        """
        del again
        check_ranges(starts, out.shape[1], self._size, self._path)
        places = range(len(out)) if rows is None else rows.tolist()
        ends = starts + out.shape[1]
        self._read_all(starts, ends, [out[place] for place in places])

    def read_ranges(self, starts: np.ndarray, lengths: np.ndarray, out: np.ndarray, offsets: np.ndarray) -> None:
        """As `MappedArray.read_ranges`.

        Raises:
          ValueError: a range would reach outside the array or outside `out`.
          UserError: what is read is damaged or cannot be fetched.
        """
        check_ragged_ranges(starts, lengths, self._size, self._path)
        check_ragged_ranges(offsets, lengths, len(out), self._path)
        ends = (offsets + lengths).tolist()
        places = [out[begin:end] for begin, end in zip(offsets.tolist(), ends, strict=True)]
        self._read_all(starts, starts + lengths, places)

    def _read_all(self, starts: np.ndarray, ends: np.ndarray, places: list[np.ndarray]) -> None:
        # All at once, so that the requests overlap.
        futures = [self._array[start:end].read() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        try:
            for place, future in zip(places, futures, strict=True):
                place[:] = future.result()
        except (ValueError, OSError) as error:
            raise UserError(
                f"the token store {self._path.parent} is damaged or cannot be read: {_reason(error)}"
            ) from error

    def count_not_above(self, values: np.ndarray) -> np.ndarray:
        """As `MappedArray.count_not_above`; bisection in step, so that the requests of a round overlap."""
        low, high = np.zeros(len(values), np.int64), np.full(len(values), self._size, np.int64)
        while (open_ := np.flatnonzero(low < high)).size:
            middle = (low[open_] + high[open_]) // 2
            found = np.empty((open_.size, 1), np.int64)
            self.read_into(middle, found)
            not_above = found[:, 0] <= values[open_]
            low[open_] = np.where(not_above, middle + 1, low[open_])
            high[open_] = np.where(not_above, high[open_], middle)
        return low


def open_zarr(
    path: files.Path, *, writable: bool = False, metadata: dict[str, Any] | None = None, replace: bool = True
) -> Any:
    """Opens, or with `metadata` creates, a zarr3 array through TensorStore.

    Creating deletes what is there: in an object store a build that was killed leaves its arrays behind. Without
    `replace` an array of the same metadata is opened instead.
    """
    import tensorstore as ts  # A local store is read without it.

    text = os.fspath(path)
    spec: dict[str, Any] = {
        "driver": "zarr3",
        "kvstore": text + "/" if files.is_remote(path) else {"driver": "file", "path": text + "/"},
        # A chunk of nothing but zeros must exist as a file too, or it could not be mapped.
        "store_data_equal_to_fill_value": True,
    }
    if metadata:
        spec["metadata"] = metadata
    context = _make_context(0) if writable else _reading_context()
    create, keep = bool(metadata), not (metadata and replace)
    return ts.open(
        spec, context=context, open=keep, create=create, delete_existing=not keep, read=True, write=writable
    ).result()


@functools.cache
def _reading_context() -> Any:
    """One for all arrays: a mixture of a hundred sources has three hundred."""
    return _make_context(_REMOTE_CACHE_BYTES)


def _make_context(cache_bytes: int) -> Any:
    import tensorstore as ts

    return ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})


def _reason(error: Exception) -> str:
    """What TensorStore says went wrong, without the specification of the array that it appends."""
    return str(error).split(" [tensorstore_spec", 1)[0].split(" [source locations", 1)[0]


def _file_layout(chunk: int, sharded: bool) -> tuple[int, int | None]:
    """(elements of a file, of an inner chunk; None without shards). A shard is of whole inner chunks."""
    inner = min(INNER_CHUNK, chunk) if sharded else None
    return -(-chunk // inner) * inner if inner else chunk, inner


def _array_metadata(dtype: np.dtype, chunk: int, inner: int | None, size: int = 0) -> dict[str, Any]:
    codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if inner:
        inner_codecs = [*codecs, {"name": "crc32c"}]
        configuration = {"chunk_shape": [inner], "codecs": inner_codecs, "index_codecs": inner_codecs}
        codecs = [{"name": "sharding_indexed", "configuration": configuration}]
    return {
        "shape": [size],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk]}},
        "codecs": codecs,
        "fill_value": 0,
    }
