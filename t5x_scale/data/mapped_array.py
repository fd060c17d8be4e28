"""A one-dimensional zarr3 array of uncompressed local files, read through memory mappings.

With the `bytes` codec and no shards a chunk's file is its elements and nothing else, so a window is a slice of a
mapping: no request, no decoding, no cache of its own.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.core.storage_errors import find_absence, find_refusal

# Of all arrays together: a mapping holds a file descriptor, and a process has about a thousand of them.
MAX_MAPPED_FILES = 256
# Guards the set of arrays and what is added to their mappings; what is mapped already is read without it.
_LOCK = threading.Lock()
_ARRAYS: weakref.WeakSet[MappedArray] = weakref.WeakSet()


class MappedArray:
    """Random access to elements of the array in `path`. Threads may read at once."""

    def __init__(self, path: files.Path, dtype: np.dtype, size: int):
        """Args:
          path: directory of the array.
          dtype: of an element; stored little-endian.
          size: elements of the array.

        Raises:
          UserError: a file is missing or has another size; the message names it.
        """
        self._path = path
        self._dtype = dtype.newbyteorder("<")
        self._size = size
        self._maps: dict[int, tuple[mmap.mmap, np.ndarray]] = {}
        self._chunk = _read_chunk_length(path)
        _check_files(path, -(-size // self._chunk), self._chunk * dtype.itemsize)
        with _LOCK:
            _ARRAYS.add(self)

    def read_into(
        self, starts: np.ndarray, out: np.ndarray, rows: np.ndarray | None = None, *, again: bool = False
    ) -> None:
        """Fills row `rows[i]` of `out` [any, length] with the elements from `starts[i]` on, cast to its dtype.

        Args:
          starts: int64 [n].
          out: where the elements go.
          rows: int64 [n]; 0, 1, 2, ... when None.
          again: whether these pages were read just now, so that the system need not be told to fetch them.

        Raises:
          ValueError: a row would reach outside the array.
        """
        length = out.shape[1]
        check_ranges(starts, length, self._size, self._path)
        if not length:
            return
        if len(starts) > 1 and not again:
            self._announce(starts, length)
        for row, start in zip(range(len(out)) if rows is None else rows.tolist(), starts.tolist(), strict=True):
            index, offset = divmod(start, self._chunk)
            if offset + length <= self._chunk:
                out[row] = self._map(index)[1][offset : offset + length]
            else:
                self._read_across(start, out[row])

    def read_ranges(self, starts: np.ndarray, lengths: np.ndarray, out: np.ndarray, offsets: np.ndarray) -> None:
        """Fills out[offsets[i] : offsets[i] + lengths[i]] with the elements from `starts[i]` on, cast to its dtype.

        Args:
          starts, lengths, offsets: int64 [n].
          out: one-dimensional.

        Raises:
          ValueError: a range would reach outside the array or outside `out`.
        """
        check_ragged_ranges(starts, lengths, self._size, self._path)
        check_ragged_ranges(offsets, lengths, len(out), self._path)
        if not lengths.all():
            some = lengths > 0
            starts, lengths, offsets = starts[some], lengths[some], offsets[some]
        if len(starts) > 1:
            self._announce(starts, lengths)
        index, elements = -1, out
        chunks, begins = np.divmod(starts, self._chunk)
        ends = begins + lengths
        for chunk, begin, end, offset in zip(
            chunks.tolist(), begins.tolist(), ends.tolist(), offsets.tolist(), strict=True
        ):
            if end > self._chunk:
                self._read_across(chunk * self._chunk + begin, out[offset : offset + end - begin])
            else:
                if chunk != index:
                    index, elements = chunk, self._map(chunk)[1]
                out[offset : offset + end - begin] = elements[begin:end]

    def count_not_above(self, values: np.ndarray) -> np.ndarray:
        """For an array that ascends: how many elements are <= each value, int64 [n].

        Touches a page or two of the array for each value, not the array.
        """
        chunks = np.searchsorted(self._heads, values, "right") - 1
        counts = np.zeros(len(values), np.int64)
        for chunk in np.unique(chunks[chunks >= 0]).tolist():
            chosen = chunks == chunk
            begin = chunk * self._chunk
            elements = self._map(chunk)[1][: self._size - begin]
            counts[chosen] = begin + np.searchsorted(elements, values[chosen], "right")
        return counts

    @functools.cached_property
    def _heads(self) -> np.ndarray:
        """int64 [files]: the first element of each."""
        starts = np.arange(0, self._size, self._chunk, dtype=np.int64)
        heads = np.empty((len(starts), 1), np.int64)
        self.read_into(starts, heads)
        return heads[:, 0]

    def _announce(self, starts: np.ndarray, length: int | np.ndarray) -> None:
        """Has the system fetch every window at once: from a cold disk, one after the other takes ten times as long."""
        size = self._dtype.itemsize
        chunks, offsets = np.divmod(starts, self._chunk)
        firsts = offsets * size // mmap.PAGESIZE * mmap.PAGESIZE
        lengths = np.minimum(offsets + length, self._chunk) * size - firsts
        for index, first, count in zip(chunks.tolist(), firsts.tolist(), lengths.tolist(), strict=True):
            self._map(index)[0].madvise(mmap.MADV_WILLNEED, first, count)

    def _read_across(self, start: int, row: np.ndarray) -> None:
        filled = 0
        while filled < len(row):
            index, offset = divmod(start + filled, self._chunk)
            piece = self._map(index)[1][offset : offset + len(row) - filled]
            row[filled : filled + len(piece)] = piece
            filled += len(piece)

    def _map(self, index: int) -> tuple[mmap.mmap, np.ndarray]:
        mapped = self._maps.get(index)
        return self._add_map(index) if mapped is None else mapped

    def _add_map(self, index: int) -> tuple[mmap.mmap, np.ndarray]:
        with _LOCK:
            if sum(len(array._maps) for array in _ARRAYS) >= MAX_MAPPED_FILES:
                # Replaced, not emptied: another thread may be reading them.
                for array in _ARRAYS:
                    array._maps = {}
            with open(self._path / "c" / str(index), "rb") as file:
                buffer = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            mapped = self._maps[index] = (buffer, np.frombuffer(buffer, self._dtype))
            return mapped


def check_ranges(starts: np.ndarray, length: int, size: int, path: files.Path) -> None:
    """Raises ValueError unless every [start, start + length) lies within [0, size)."""
    if length < 0 or (len(starts) and (starts.min() < 0 or starts.max() + length > size)):
        raise ValueError(f"the range asked for is outside the {size} elements of {path}")


def check_ragged_ranges(starts: np.ndarray, lengths: np.ndarray, size: int, path: files.Path) -> None:
    """Raises ValueError unless every [starts[i], starts[i] + lengths[i]) lies within [0, size)."""
    if len(starts) and (starts.min() < 0 or lengths.min() < 0 or (starts + lengths).max() > size):
        raise ValueError(f"a range asked for is outside the {size} elements of {path}")


def is_mappable(path: files.Path) -> bool:
    """Whether the array in `path` is one of plain files; one copied from an object store consists of shards.

    Raises:
      UserError: there is no such array.
    """
    return _read_metadata(path, lambda value: [codec["name"] for codec in value["codecs"]] == ["bytes"])


def _read_chunk_length(path: files.Path) -> int:
    return _read_metadata(path, lambda value: _to_length(value["chunk_grid"]["configuration"]["chunk_shape"][0]))


def _to_length(value: Any) -> int:
    if type(value) is not int or not 0 < value < 2**62:
        raise ValueError(f"a chunk of {value!r} elements")
    return value


def _read_metadata(path: files.Path, pick: Callable[[Any], Any]) -> Any:
    metadata = path / "zarr.json"
    try:
        return pick(json.loads(files.read_bounded(metadata)))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        if find_absence(error) or find_refusal(error):
            raise
        raise UserError(f"the token store {path.parent} is damaged: {metadata} cannot be read: {error}") from error


def _check_files(path: files.Path, count: int, size: int) -> None:
    sizes = {}
    if files.exists(path / "c"):
        with os.scandir(path / "c") as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries}
    for name in map(str, range(count)):
        if sizes.get(name) != size:
            state = f"has {sizes[name]} bytes instead of {size}" if name in sizes else "is missing"
            raise UserError(
                f"the token store {path.parent} is damaged: the file {path}/c/{name} {state}; "
                "delete the store and build it again"
            )
