"""Reading our checkpoints region by region, on the host: what conversions and tools begin from.

Both of Orbax's forms are read: OCDBT, as a run writes it, and plain directories, as `stream_writer` does. A leaf costs
a few of its chunks in memory, and how large these are the writer decided.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from t5x_scale.checkpoint import integrity, layout, plain_form, restore
from t5x_scale.checkpoint.layout import DamagedError, Document
from t5x_scale.core import files, lazy, parallel
from t5x_scale.core.lazy import LazyArray, Region

Progress = Callable[[int, int], None]

_BLOCK_BYTES = 1 << 24
# Of decoded chunks, all leaves together. A chunk that does not fit would be decoded again for every block of it.
_CACHE_BYTES = 1 << 27
_OCDBT_MANIFEST = "manifest.ocdbt"


class _Block(NamedTuple):
    path: str
    array: LazyArray
    region: Region


def read_lazily(
    path: str | os.PathLike, *, prefix: str = "", verify: bool = True, on_progress: Progress | None = None
) -> tuple[files.Path, Document, dict[str, LazyArray]]:
    """Opens the newest step that verifies of what a user named, as lazy arrays.

    Args:
      path: a MODEL_DIR, its `checkpoints` directory, or one step's directory.
      prefix: only leaves whose paths begin so are opened and verified, such as `params/`.
      verify: whether all bits are read and compared with the fingerprints on record before this returns. Nothing may
        be trained on or converted that was not.
      on_progress: called with the bytes verified and the bytes of all, after every block.

    Returns:
      The directory of the step, its document, and its leaves by path, in the order of the document.

    Raises:
      UserError: nothing is there, or no step can be trusted. A damaged step is left for the one before it, loudly.
    """
    directory, steps = layout.find_step_directory(path)

    def read(step: int) -> tuple[files.Path, Document, dict[str, LazyArray]]:
        step_path = layout.step_directory(directory, step)
        document = layout.read_document(step_path)
        leaves = open_leaves(step_path, document, prefix)
        if verify:
            verify_lazily(leaves, document, on_progress)
        return step_path, document, leaves

    return restore.first_that_verifies(directory, steps, read)[1]


def verify_lazily(leaves: Mapping[str, LazyArray], document: Document, on_progress: Progress | None = None) -> None:
    """Reads leaves block by block and compares their bits with those on record.

    Raises:
      DamagedError: naming the first leaf that cannot be read, or whose bits are not those that were saved.
    """
    found = dict.fromkeys(leaves, 0)
    done, total = 0, sum(array.nbytes for array in leaves.values())
    with contextlib.closing(parallel.map_bounded(_fingerprint, _split(leaves))) as parts:
        for block, fingerprint in parts:
            found[block.path] = integrity.combine((found[block.path], fingerprint))
            done += math.prod(part.stop - part.start for part in block.region) * block.array.dtype.itemsize
            if on_progress:
                on_progress(done, total)
    different = [path for path, value in found.items() if integrity.to_text(value) != document.leaves[path].fingerprint]
    if different:
        raise DamagedError(f"{len(different)} of {len(found)} leaves lost their bits, the first is '{different[0]}'")


def _split(leaves: Mapping[str, LazyArray]) -> Iterator[_Block]:
    for path, array in leaves.items():
        for region in lazy.blocks(array, _BLOCK_BYTES):
            yield _Block(path, array, region)


def _fingerprint(block: _Block) -> tuple[_Block, int]:
    values = block.array.read(block.region)
    return block, integrity.fingerprint_region(values, block.region, block.array.shape)


def open_leaves(step_path: files.Path, document: Document, prefix: str = "") -> dict[str, LazyArray]:
    """The leaves of one step, by path. Nothing of them is read but their descriptions.

    Raises:
      DamagedError: a leaf is not there, or not of the shape and dtype on record.
    """
    state = step_path / layout.STATE_ITEM
    driver = _read_driver(state)
    is_ocdbt = (state / _OCDBT_MANIFEST).exists()
    paths = [path for path in document.leaves if path.startswith(prefix)]
    specs = {path: {"driver": driver, "kvstore": _kvstore(state, path, is_ocdbt)} for path in paths}
    stores = _open_all(specs, _CACHE_BYTES)
    largest = max((_chunk_bytes(store) for store in stores.values()), default=0)
    if 2 * largest > _CACHE_BYTES:
        stores = _open_all(specs, 2 * largest)
    for path, store in stores.items():
        record = document.leaves[path]
        if (store.shape, store.dtype.numpy_dtype) != (record.shape, lazy.to_dtype(record.dtype)):
            raise DamagedError(f"its leaf '{path}' is {store.dtype.name}{list(store.shape)}, not as on record")
    return {path: to_lazy(store, path) for path, store in stores.items()}


def _open_all(specs: Mapping[str, Any], cache_bytes: int) -> dict[str, ts.TensorStore]:
    context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    futures = {path: ts.open(spec, context=context, open=True, read=True) for path, spec in specs.items()}
    stores = {}
    for path, future in futures.items():
        with _damage(path):
            stores[path] = future.result()
    return stores


def to_lazy(store: ts.TensorStore, path: str) -> LazyArray:
    """A stored array as a lazy one, to be read in the order of its chunks.

    Its reader raises:
      DamagedError: the storage cannot make sense of what is there.
    """
    chunks = _chunk_shape(store)
    # Dimensions that chunks cut come first, so that no chunk is left before it is done with.
    outer = tuple(axis for axis in range(store.ndim) if chunks[axis] < store.shape[axis])

    def read(region: Region) -> np.ndarray:
        with _damage(path):
            return store[region].read().result()

    return LazyArray(store.shape, store.dtype.numpy_dtype, read, outer or (0,))


@contextlib.contextmanager
def _damage(path: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise DamagedError(f"its leaf '{path}' cannot be read ({restore.first_line(error)})") from error


def _chunk_bytes(store: ts.TensorStore) -> int:
    return math.prod(_chunk_shape(store)) * store.dtype.numpy_dtype.itemsize


def _chunk_shape(store: ts.TensorStore) -> tuple[int, ...]:
    return tuple(store.chunk_layout.read_chunk.shape or ())  # A scalar has none.


def _read_driver(state: files.Path) -> str:
    try:
        tree = json.loads((state / plain_form.TREE_FILE).read_text())
        return "zarr3" if tree.get("use_zarr3") else "zarr"
    except (OSError, ValueError, AttributeError) as error:
        raise DamagedError(f"its tree cannot be read ({type(error).__name__}: {error})") from error


def _kvstore(state: files.Path, path: str, is_ocdbt: bool) -> dict[str, Any] | str:
    name = f"{plain_form.array_name(path)}/"
    if is_ocdbt:
        base = f"{os.fspath(state)}/" if files.is_remote(state) else {"driver": "file", "path": f"{state}/"}
        return {"driver": "ocdbt", "base": base, "path": name}
    place = f"{os.fspath(state)}/{name}"
    return place if files.is_remote(state) else {"driver": "file", "path": place}
