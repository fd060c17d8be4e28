"""Keeping packing plans: made once, then mapped. Files of a plan in `plan_dir`, local or `gs://`:

    <digest>.<array>     the raw little-endian elements of each array of the plan
    <digest>.json        written last: settings, counts, sizes and checksums

Every file is written whole and a plan is a function of its settings, so processes that make the same plan at the same
time write the same bytes over one another and disturb nobody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import uuid
import zlib
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.core.storage_errors import find_absence, find_refusal
from t5x_scale.data.rows.packing_plan import ARRAYS, PackingPlan, PlanSettings, Summary, make_blocks

logger = logging.getLogger(__name__)


def load_plan(settings: PlanSettings, name: str, plan_dir: str | os.PathLike | None = None) -> PackingPlan:
    """The plan of a source: from `plan_dir`, or made and kept there.

    A kept plan is read whole once, to compare it with its checksums (a gigabyte a second), and then mapped; one that is
    damaged is made again. A directory that cannot be written costs the plan's memory (12 bytes a piece) and its making
    in every start, and is logged.

    Args:
      settings: what the plan depends on.
      name: of the source, for messages.
      plan_dir: None keeps plans in memory only.

    Raises:
      UserError: every document was left out.
    """
    directory = None if plan_dir is None else files.to_path(plan_dir)
    digest = settings.digest
    if directory is not None:
        plan = _open(directory, digest)
        if plan is not None:
            return plan
        if not files.is_remote(directory):
            try:
                _write_blocks(settings, directory, digest, name)
                plan = _open(directory, digest)
            except OSError as error:
                _log_unwritable(directory, error)
            if plan is not None:
                return plan
    plan = make_plan(settings, name)
    if directory is not None and files.is_remote(directory):
        try:
            _upload(settings, plan, directory, digest)
        except OSError as error:
            _log_unwritable(directory, error)
    return plan


def make_plan(settings: PlanSettings, name: str) -> PackingPlan:
    """Makes a plan in memory.

    Raises:
      UserError: every document was left out.
    """
    summary = Summary()
    blocks = list(make_blocks(settings, summary))
    _check_rows(settings, summary, name)
    arrays = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    arrays["row_starts"] = np.concatenate([np.zeros(1, ARRAYS["row_starts"]), arrays["row_starts"]])
    _log_made(summary, name)
    return PackingPlan(arrays, dataclasses.asdict(summary))


def _write_blocks(settings: PlanSettings, directory: files.Path, digest: str, name: str) -> None:
    """Makes a plan block by block into local files, so that memory holds one block."""
    directory.mkdir(parents=True, exist_ok=True)
    summary = Summary()
    with contextlib.ExitStack() as stack:
        writers: dict[str, _ArrayFile] = {}
        for block in make_blocks(settings, summary):
            for key, values in block.items():
                if key not in writers:
                    writers[key] = stack.enter_context(_ArrayFile(_array_path(directory, digest, key)))
                    if key == "row_starts":
                        writers[key].extend(np.zeros(1, ARRAYS[key]))
                writers[key].extend(values)
        _check_rows(settings, summary, name)
        for writer in writers.values():
            writer.finish()
    _log_made(summary, name)
    files.write_json(directory / f"{digest}.json", _manifest(settings, summary, writers))


def _upload(settings: PlanSettings, plan: PackingPlan, directory: files.Path, digest: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    parts = {}
    for key, values in plan.arrays.items():
        data = values.tobytes()
        _array_path(directory, digest, key).write_bytes(data)
        parts[key] = _Part(len(values), zlib.crc32(data))
    files.write_json(directory / f"{digest}.json", _manifest(settings, Summary(**plan.summary), parts))


def _open(directory: files.Path, digest: str) -> PackingPlan | None:
    """The plan that is kept, or None where there is none or a damaged one."""
    path = directory / f"{digest}.json"
    try:
        if not files.exists(path):
            return None
        manifest = json.loads(path.read_text())
        if manifest["checksum"] != _content_checksum(manifest):
            raise ValueError(f"{path} does not match its checksum")
        arrays = {
            key: _open_array(_array_path(directory, digest, key), key, *sizes)
            for key, sizes in manifest["arrays"].items()
        }
        return PackingPlan(arrays, manifest["summary"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        state = "cannot be reached" if find_absence(error) or find_refusal(error) else "is damaged"
        logger.warning("the packing plan %s %s and is made again: %s", path, state, error)
        return None


def _open_array(path: files.Path, key: str, size: int, checksum: int) -> np.ndarray:
    if files.is_remote(path):
        data = path.read_bytes()
        array = np.frombuffer(data[: len(data) // ARRAYS[key].itemsize * ARRAYS[key].itemsize], ARRAYS[key])
        found = len(data)
    else:
        found = os.path.getsize(path)
        # A plain view: every operation on a memmap costs more.
        array = np.asarray(np.memmap(path, ARRAYS[key], "r")) if found == size * ARRAYS[key].itemsize else np.zeros(0)
    if found != size * ARRAYS[key].itemsize:
        raise ValueError(f"{path} has {found} bytes instead of {size * ARRAYS[key].itemsize}")
    if zlib.crc32(array) != checksum:
        raise ValueError(f"{path} does not match its checksum")
    return array


@dataclasses.dataclass
class _Part:
    """Elements and CRC-32 of an array."""

    size: int = 0
    checksum: int = 0


class _ArrayFile(_Part):
    """An array written as a stream; there under its name only once `finish` was called."""

    def __init__(self, path: files.Path):
        super().__init__()
        self._path = path
        self._temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
        self._file = open(self._temporary, "wb")  # noqa: SIM115  (held open until exit)

    def extend(self, values: np.ndarray) -> None:
        self._file.write(values.tobytes())
        self.size += len(values)
        self.checksum = zlib.crc32(values, self.checksum)

    def finish(self) -> None:
        self._file.close()
        os.replace(self._temporary, self._path)

    def __enter__(self) -> _ArrayFile:
        return self

    def __exit__(self, *unused: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)


def _manifest(settings: PlanSettings, summary: Summary, parts: dict[str, Any]) -> dict[str, Any]:
    manifest = {
        "settings": settings.describe(),
        "summary": dataclasses.asdict(summary),
        "arrays": {key: [part.size, part.checksum] for key, part in parts.items()},
    }
    return {**manifest, "checksum": _content_checksum(manifest)}


def _content_checksum(manifest: dict[str, Any]) -> int:
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _array_path(directory: files.Path, digest: str, key: str) -> files.Path:
    return directory / f"{digest}.{key}"


def _check_rows(settings: PlanSettings, summary: Summary, name: str) -> None:
    if summary.rows:
        return
    if not summary.documents_left_out:
        raise UserError(f"{settings.objective.name} makes nothing of the source '{name}': its documents are too short")
    raise UserError(
        f"all {summary.documents_left_out} documents of the source '{name}' were left out: rows of {settings.length} "
        f"positions hold {settings.longest_piece} tokens, its shortest document has {summary.shortest_left_out}; use "
        "a longer sequence length, or split long documents"
    )


def _log_made(summary: Summary, name: str) -> None:
    logger.info(
        "packed '%s': %d pieces of %d documents in %d rows", name, summary.pieces, summary.documents, summary.rows
    )


def _log_unwritable(directory: files.Path, error: OSError) -> None:
    logger.warning(
        "cannot keep the packing plan in %s (%s): it stays in memory, and is made again by the next start",
        directory,
        error.strerror or error,
    )
