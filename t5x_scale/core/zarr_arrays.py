"""Arrays that TensorStore reads, as lazy arrays: directories of zarr, and Orbax's OCDBT databases of them."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from t5x_scale.core import files
from t5x_scale.core.errors import first_line
from t5x_scale.core.lazy import LazyArray, Region
from t5x_scale.core.parallel import WORKERS, share_freed_memory

# Of decoded chunks, all arrays together. A chunk that does not fit would be decoded again for every block of it.
_CACHE_BYTES = 1 << 26
# Each thread of TensorStore keeps memory it has freed; by default there are as many as cores, several times over.
_THREADS = {"limit": WORKERS}
OCDBT_MANIFEST = "manifest.ocdbt"

# Makes the error that says why what is called so cannot be read.
Failure = Callable[[str, str], Exception]


def open_arrays(
    directory: files.Path, names: Mapping[str, str], failure: Failure, *, driver: str = "zarr"
) -> dict[str, LazyArray]:
    """Opens arrays of a directory, to be read in the order of their chunks; no chunk is read before it is wanted.

    Args:
      directory: local or `gs://`; where it holds an OCDBT manifest, the arrays are in that database.
      names: for each array, by what its errors call it, its directory below.
      failure: makes the errors of this function and of reading, from what the array is called and the reason.
      driver: `zarr` or `zarr3`.

    Returns:
      The arrays, by what their errors call them.
    """
    share_freed_memory()  # Before TensorStore starts its threads.
    in_database = is_database(directory)
    # What is read here is never written to again, so that what was decoded stays true; and a chunk that is not there
    # is damage, although zarr would have it be zeros.
    base = {"driver": driver, "recheck_cached_data": "open", "fill_missing_data_reads": False}
    specs = {called: {**base, "kvstore": _locate(directory, name, in_database)} for called, name in names.items()}
    stores = _open_all(specs, failure, _CACHE_BYTES)
    largest = max((_chunk_bytes(store) for store in stores.values()), default=0)
    if 2 * largest > _CACHE_BYTES:
        stores = _open_all(specs, failure, 2 * largest)
    return {called: _to_lazy(store, called, failure) for called, store in stores.items()}


class Extent(NamedTuple):
    """Bytes `[start, start + length)` of a file, named from the directory of its database."""

    file: str
    start: int
    length: int


def is_database(directory: files.Path) -> bool:
    """Whether a directory holds an OCDBT database.

    Raises:
      OSError: see `files.exists`.
    """
    return files.exists(directory / OCDBT_MANIFEST)


def list_extents(directory: files.Path) -> list[Extent]:
    """The parts of files that the newest version of an OCDBT database consists of, beside its manifest.

    Raises:
      ValueError: the manifest or a node does not parse, or does not match its checksum.
    """
    base = ts.KvStore.open(_store(directory)).result()
    root = ts.ocdbt.dump(base).result()["versions"][-1]["root"].get("location")
    return [] if root is None else list(_walk(base, root))


def _walk(base: ts.KvStore, location: str) -> Iterator[Extent]:
    yield _to_extent(location)
    for entry in ts.ocdbt.dump(base, location).result()["entries"]:
        if "location" in entry:
            yield from _walk(base, entry["location"])
        elif "indirect_value" in entry:
            yield _to_extent(entry["indirect_value"])


def _to_extent(location: str) -> Extent:
    """Of `kind:base directory:file below it:offset:length`."""
    _, base, file, start, length = location.split(":")
    return Extent(base + file, int(start), int(length))


def _open_all(specs: Mapping[str, Any], failure: Failure, cache_bytes: int) -> dict[str, ts.TensorStore]:
    context = ts.Context(
        {
            "cache_pool": {"total_bytes_limit": cache_bytes},
            "data_copy_concurrency": _THREADS,
            "file_io_concurrency": _THREADS,
        }
    )
    futures, stores = {}, {}
    for called, spec in specs.items():
        with _failures(called, failure):
            futures[called] = ts.open(spec, context=context, open=True, read=True)
    for called, future in futures.items():
        with _failures(called, failure):
            stores[called] = _checked(future.result())
    return stores


def _checked(store: ts.TensorStore) -> ts.TensorStore:
    """Whoever wrote an array says how large its chunks are; one is held in memory as a whole.

    Raises:
      ValueError: a chunk is larger than any writer of ours makes it.
    """
    most = 2 * max(math.prod(store.shape) * store.dtype.numpy_dtype.itemsize, _CACHE_BYTES)
    if _chunk_bytes(store) > most:
        raise ValueError(f"its chunks have {_chunk_bytes(store):,} bytes each, more than all of it")
    return store


def _locate(directory: files.Path, name: str, in_database: bool) -> dict[str, Any] | str:
    """The key-value store of an array, as TensorStore describes it."""
    if in_database:
        return {"driver": "ocdbt", "base": _store(directory), "path": f"{name}/"}
    return _store(directory / name)


def _store(directory: files.Path) -> dict[str, Any] | str:
    place = f"{os.fspath(directory)}/"
    return place if files.is_remote(directory) else {"driver": "file", "path": place}


def _to_lazy(store: ts.TensorStore, called: str, failure: Failure) -> LazyArray:
    chunks = _chunk_shape(store)
    # Dimensions that chunks cut come first, so that no chunk is left before it is done with.
    outer = tuple(axis for axis in range(store.ndim) if chunks[axis] < store.shape[axis])

    def read(region: Region) -> np.ndarray:
        with _failures(called, failure):
            return store[region].read().result()

    return LazyArray(store.shape, store.dtype.numpy_dtype, read, outer or (0,))


def _chunk_shape(store: ts.TensorStore) -> tuple[int, ...]:
    return tuple(store.chunk_layout.read_chunk.shape or ())  # A scalar has none.


def _chunk_bytes(store: ts.TensorStore) -> int:
    return math.prod(_chunk_shape(store)) * store.dtype.numpy_dtype.itemsize


@contextlib.contextmanager
def _failures(called: str, failure: Failure) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise failure(called, first_line(error)) from error
