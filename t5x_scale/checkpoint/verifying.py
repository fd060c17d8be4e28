"""Looking a checkpoint through without devices: every leaf against its fingerprint, and what no restore would read."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping

from t5x_scale.checkpoint import layout, lazy_reader, plain_form
from t5x_scale.checkpoint.layout import DamagedError, Document
from t5x_scale.checkpoint.plain_files import check_plain_files
from t5x_scale.core import files
from t5x_scale.core.errors import describe_unreadable
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.patience import read_patiently
from t5x_scale.core.storage_errors import find_absence, find_refusal
from t5x_scale.core.zarr_arrays import OCDBT_MANIFEST, is_database, list_extents

_MAX_NAMED = 3
# What Orbax writes and no restore of ours reads: a restore says itself which shards and chunks it wants.
_SPARE = ("_sharding", "array_metadatas/", layout.COMMIT_MARKER)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found of one step.

    Attributes:
      step: its number.
      damage: why it cannot be trusted; "" where every bit that a restore reads is the one that was saved.
      leaves: how many there are.
      nbytes: of their values.
      unread: bytes of files that no restore reads, and that may be anything without harm.
      strangers: files that neither a run nor a conversion wrote there; no restore reads them either.
    """

    step: int
    damage: str = ""
    leaves: int = 0
    nbytes: int = 0
    unread: int = 0
    strangers: tuple[str, ...] = ()

    def render(self) -> str:
        """One line: `step 3: ok, 12 leaves, ...`, or what is damaged and where."""
        if self.damage:
            return f"step {self.step}: DAMAGED: {self.damage}"
        text = f"step {self.step}: ok, {self.leaves} leaves, {render_bytes(self.nbytes)}"
        if self.unread:
            text += f"; {render_bytes(self.unread)} beside them are read by no restore"
        if self.strangers:
            text += f"; it did not write {_name_some(self.strangers)}"
        return text


def verify_step(step_path: files.Path, on_progress: lazy_reader.Progress | None = None) -> Verdict:
    """Reads every leaf of a step, block by block, and compares it with its fingerprint.

    Raises:
      UserError: it may not be read, or its storage does not answer: nothing is known of it then.
    """
    try:
        return read_patiently(lambda: _verify(step_path, on_progress), f"the checkpoint {step_path}")
    except DamagedError as error:
        return Verdict(int(step_path.name), str(error))


def _verify(step_path: files.Path, on_progress: lazy_reader.Progress | None) -> Verdict:
    """What is found of a step that verifies.

    Raises:
      DamagedError: it does not.
    """
    check_plain_files(step_path)
    document = layout.read_document(step_path)
    check_tree(step_path, document)
    leaves = lazy_reader.open_leaves(step_path, document)
    try:
        lazy_reader.verify_lazily(leaves, document, on_progress)
    except DamagedError as error:
        if find_absence(error) or find_refusal(error):
            raise
        raise DamagedError(_describe_leaves(_find_damaged(leaves, document))) from None
    read, known = _find_read(step_path, document)
    sizes = dict(_list_files(step_path))
    return Verdict(
        int(step_path.name),
        leaves=len(leaves),
        nbytes=sum(leaf.nbytes for leaf in leaves.values()),
        unread=sum(size - read.get(name, 0) for name, size in sizes.items()),
        strangers=tuple(name for name in sizes if not _is_known(name, known)),
    )


def check_tree(step_path: files.Path, document: Document) -> None:
    """Checks that Orbax's description of the tree names the leaves on record: its restore begins with it.

    Raises:
      DamagedError: it cannot be read, or names others.
    """
    paths = plain_form.list_leaves(step_path / layout.STATE_ITEM)
    different = sorted(paths ^ document.leaves.keys())
    if different:
        raise DamagedError(f"its tree is not that of its leaves: {_name_some(different)}")


def render_bytes(number: int) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _find_damaged(leaves: Mapping[str, LazyArray], document: Document) -> dict[str, str]:
    """The leaves that cannot be trusted, and why; each is read on its own."""
    damaged = {}
    for path, leaf in leaves.items():
        try:
            lazy_reader.verify_lazily({path: leaf}, document)
        except DamagedError as error:
            damaged[path] = str(error)
    return damaged


def _describe_leaves(damaged: Mapping[str, str]) -> str:
    first = next(iter(damaged.values()), "a leaf changed while it was read")
    if len(damaged) < 2:
        return first
    return f"{len(damaged)} leaves, {_name_some(damaged)}; the first: {first}"


def _find_read(step_path: files.Path, document: Document) -> tuple[dict[str, int], set[str]]:
    """The bytes that a restore reads of each file, and the files and folders that belong there, by name.

    Raises:
      DamagedError: what was whole a moment ago cannot be read.
    """
    state, item = step_path / layout.STATE_ITEM, layout.STATE_ITEM
    whole = [f"{layout.METADATA_ITEM}/metadata", f"{item}/{plain_form.TREE_FILE}"]
    known = {plain_form.STEP_FILE, layout.COMMIT_MARKER, f"{layout.METADATA_ITEM}/{layout.COMMIT_MARKER}"}
    known.update(f"{item}/{name}" for name in _SPARE)
    read: dict[str, int] = {}
    try:
        if is_database(state):
            whole.append(f"{item}/{OCDBT_MANIFEST}")
            # Leaves of equal content share their bytes.
            for file, _, length in set(list_extents(state)):
                read[f"{item}/{file}"] = read.get(f"{item}/{file}", 0) + length
            # The data of the joined database, and all of those that the processes wrote.
            known.update({f"{item}/d/", f"{item}/ocdbt.process_"})
        else:
            whole += [f"{item}/{name}" for path in document.leaves for name in _list_array_files(state, path)]
        read.update({name: (step_path / name).stat().length for name in whole})
    except (OSError, ValueError, KeyError) as error:
        raise DamagedError(f"it changed while it was read: {describe_unreadable(error)}") from error
    return read, known | read.keys()


def _list_array_files(state: files.Path, path: str) -> Iterator[str]:
    """The files of a leaf in the plain form: its description and its chunks."""
    name = plain_form.array_name(path)
    array = json.loads((state / name / plain_form.ARRAY_FILE).read_text())
    yield f"{name}/{plain_form.ARRAY_FILE}"
    grid = [range(-(-size // chunk)) for size, chunk in zip(array["shape"], array["chunks"], strict=True)]
    for index in itertools.product(*grid):
        yield f"{name}/{plain_form.chunk_name(index)}"


def _is_known(name: str, known: set[str]) -> bool:
    return name in known or any(name.startswith(folder) for folder in known if folder.endswith(("/", "_")))


def _list_files(directory: files.Path) -> Iterable[tuple[str, int]]:
    """Every file below, by its name from there, with its size."""
    for path in directory.iterdir():
        if path.is_dir():
            yield from ((f"{path.name}/{name}", size) for name, size in _list_files(path))
        else:
            yield path.name, path.stat().length


def _name_some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(repr(os.fspath(name)) for name in itertools.islice(names, _MAX_NAMED)) + more
