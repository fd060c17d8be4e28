"""Reading our checkpoints region by region, on the host: what conversions and tools begin from.

Both of Orbax's forms are read: OCDBT, as a run writes it, and plain directories, as `stream_writer` does. A leaf costs
a few of its chunks in memory, and how large these are the writer decided.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from t5x_scale.checkpoint import integrity, layout, plain_form, restore
from t5x_scale.checkpoint.layout import DamagedError, Document
from t5x_scale.checkpoint.plain_files import check_plain_files
from t5x_scale.core import files, lazy, parallel
from t5x_scale.core.lazy import LazyArray, Region
from t5x_scale.core.patience import read_patiently
from t5x_scale.core.storage_errors import describe_read
from t5x_scale.core.zarr_arrays import open_arrays

Progress = Callable[[int, int], None]

_BLOCK_BYTES = 1 << 24


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
      UserError: nothing is there, no step can be trusted, or the storage does not answer. A damaged step is left for
        the one before it, loudly.
    """
    directory, steps = read_patiently(lambda: layout.find_step_directory(path), os.fspath(path))

    def read(step: int) -> tuple[files.Path, Document, dict[str, LazyArray]]:
        step_path = layout.step_directory(directory, step)

        def read_step() -> tuple[files.Path, Document, dict[str, LazyArray]]:
            document = layout.read_document(step_path)
            leaves = open_leaves(step_path, document, prefix)
            if verify:
                verify_lazily(leaves, document, on_progress)
            return step_path, document, leaves

        return read_patiently(read_step, f"the checkpoint {step_path}")

    return restore.first_that_verifies(directory, steps, read)[1]


def verify_lazily(leaves: Mapping[str, LazyArray], document: Document, on_progress: Progress | None = None) -> None:
    """Reads leaves block by block and compares their bits with those on record.

    Raises:
      DamagedError: naming the first leaf that cannot be read, or whose bits are not those that were saved.
    """
    check_fingerprints(fingerprint_lazily(leaves, on_progress), document)


def fingerprint_lazily(
    leaves: Mapping[str, LazyArray], on_progress: Progress | None = None, part: int = 0, parts: int = 1
) -> dict[str, int]:
    """The fingerprint of every leaf, read block by block.

    Args:
      leaves: by path.
      on_progress: called with the bytes done and the bytes of all, after every block.
      part, parts: of several readers each reads its share of the blocks; `integrity.combine` puts their numbers
        together.

    Raises:
      DamagedError: naming a leaf that cannot be read.
    """
    found = dict.fromkeys(leaves, 0)
    done, total = 0, sum(array.nbytes for array in leaves.values())
    share = itertools.islice(_split(leaves), part, None, parts)
    with contextlib.closing(parallel.map_bounded(_fingerprint, share)) as fingerprints:
        for block, fingerprint in fingerprints:
            found[block.path] = integrity.combine((found[block.path], fingerprint))
            done += math.prod(side.stop - side.start for side in block.region) * block.array.dtype.itemsize
            if on_progress:
                on_progress(done, total)
    return found


def check_fingerprints(found: Mapping[str, int], document: Document) -> None:
    """Compares fingerprints, by path, with those on record.

    Raises:
      DamagedError: saying how many leaves differ, and naming the first.
    """
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
      DamagedError: a leaf is not there, or not of the shape and dtype on record; reading it raises the same.
    """
    check_plain_files(step_path)
    state = step_path / layout.STATE_ITEM
    names = {path: plain_form.array_name(path) for path in document.leaves if path.startswith(prefix)}
    driver = "zarr3" if plain_form.read_tree(state).get("use_zarr3") else "zarr"
    try:
        leaves = open_arrays(state, names, _damage, driver=driver)
    except OSError as error:
        raise DamagedError(f"its arrays cannot be read: {describe_read(error)}") from error
    for path, leaf in leaves.items():
        record = document.leaves[path]
        if (leaf.shape, leaf.dtype) != (record.shape, lazy.to_dtype(record.dtype)):
            raise DamagedError(f"its leaf '{path}' is {leaf.dtype}{list(leaf.shape)}, not as on record")
    return leaves


def _damage(path: str, reason: str) -> DamagedError:
    return DamagedError(f"its leaf '{path}' cannot be read ({reason})")
