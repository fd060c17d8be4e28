"""Parts of a store that is being built, as files: each is there whole or not at all.

    part-00000012.npz     tokens, lengths, target starts, signatures of one unit
    part-00000012.json    written after it: the part is complete; of which unit and with which options it was made

A part whose unit or options are others now is made again. Directories may be local or `gs://`; any number of
processes may write parts at once.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data.building.interface import Signatures
from t5x_scale.data.building.work import Part

_PATTERN = re.compile(r"part-(\d{8,})\.json")
_SIGNATURE = "signature/"
# What reading a file raises that is missing, cut short or has other bytes.
_DAMAGE = (FileNotFoundError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class PartInfo:
    """What the JSON file of a part says.

    Attributes:
      index: of the unit in the source.
      unit: its digest.
      options: fingerprint of the options it was made with.
      checksum: CRC-32 of the other file; `size` its bytes.
      documents: those in it, a rest of one included; `tokens` of them, separators included.
      counts: as in `Part`.
    """

    index: int
    unit: str
    options: str
    size: int
    checksum: int
    documents: int
    tokens: int
    counts: dict[str, int]


def write_part(directory: str | os.PathLike, index: int, part: Part, *, unit: str, options: str) -> PartInfo:
    """Writes a part, in place of one with the same index.

    Args:
      directory: exists, unless it is in an object store.
      index, unit, options: as in `PartInfo`.

    Raises:
      UserError: it cannot be written, for instance because the disk is full.
    """
    buffer = io.BytesIO()
    arrays = {_SIGNATURE + name: value for name, value in part.signatures.items()}
    begins = np.array(part.begins)
    np.savez(
        buffer, tokens=part.tokens, lengths=part.lengths, target_starts=part.target_starts, begins=begins, **arrays
    )
    content = buffer.getvalue()
    info = PartInfo(
        index=index,
        unit=unit,
        options=options,
        size=len(content),
        checksum=zlib.crc32(content),
        documents=len(part.lengths),
        tokens=len(part.tokens),
        counts=dict(part.counts),
    )
    path = files.to_path(directory) / _name(index)
    try:
        # A part that was complete is not while its content is replaced.
        path.with_suffix(".json").unlink(missing_ok=True)
        _write_whole(path.with_suffix(".npz"), content)
        _write_whole(path.with_suffix(".json"), json.dumps(dataclasses.asdict(info)).encode())
    except OSError as error:
        raise UserError(f"cannot write {path}.npz, a part of a token store: {error.strerror or error}") from error
    return info


def read_part(directory: str | os.PathLike, info: PartInfo) -> Part:
    """Reads a part and compares it with its checksum.

    Raises:
      UserError: it is missing or damaged; it is then deleted, so that the next attempt makes it again.
    """
    path = files.to_path(directory) / _name(info.index)
    try:
        content = path.with_suffix(".npz").read_bytes()
        if zlib.crc32(content) != info.checksum:
            raise ValueError("its checksum does not match")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return Part(
                tokens=arrays["tokens"],
                lengths=arrays["lengths"],
                target_starts=arrays["target_starts"],
                begins=bool(arrays["begins"]),
                signatures=_signatures(arrays),
                counts=info.counts,
            )
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def read_signatures(directory: str | os.PathLike, infos: Iterable[PartInfo]) -> Iterator[Signatures]:
    """The signatures of parts, in their order; of the files only these are read.

    Raises:
      UserError: as `read_part`.
    """
    for info in infos:
        path = files.to_path(directory) / _name(info.index)
        try:
            with path.with_suffix(".npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                signatures = _signatures(arrays)
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        yield signatures


def read_lengths(directory: str | os.PathLike, info: PartInfo) -> tuple[np.ndarray, np.ndarray, bool]:
    """(lengths, target starts, whether the first document begins here) as in `Part`; the tokens are not read.

    Raises:
      UserError: as `read_part`.
    """
    path = files.to_path(directory) / _name(info.index)
    try:
        with path.with_suffix(".npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["lengths"], arrays["target_starts"], bool(arrays["begins"])
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def find_part(directory: str | os.PathLike, index: int) -> PartInfo | None:
    """The complete part of that index; None where there is none."""
    return _read_info(files.to_path(directory) / f"{_name(index)}.json")


def list_parts(directory: str | os.PathLike) -> dict[int, PartInfo]:
    """The complete parts in a directory by index, in order; `{}` where there is no directory."""
    path = files.to_path(directory)
    if not files.exists(path):
        return {}
    found = [file for file in path.iterdir() if _PATTERN.fullmatch(file.name)]
    infos = [info for file in found if (info := _read_info(file)) is not None]
    return {info.index: info for info in sorted(infos, key=lambda info: info.index)}


def delete_part(directory: str | os.PathLike, index: int) -> None:
    """Deletes a part, if there is one."""
    path = files.to_path(directory) / _name(index)
    for suffix in (".json", ".npz"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def _name(index: int) -> str:
    return f"part-{index:08d}"


def _write_whole(path: files.Path, content: bytes) -> None:
    if files.is_remote(path):
        path.write_bytes(content)
        return
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_info(file: files.Path) -> PartInfo | None:
    try:
        return PartInfo(**json.loads(file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        # Written by another version, or deleted just now: as if it were not there.
        return None


def _signatures(arrays: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    return {name.removeprefix(_SIGNATURE): arrays[name] for name in arrays.files if name.startswith(_SIGNATURE)}


def _damaged(path: files.Path, error: Exception) -> UserError:
    delete_part(path.parent, int(path.name.removeprefix("part-")))
    return UserError(
        f"{path}.npz, a part of an unfinished token store, is damaged ({error}) and was deleted; "
        "the same command makes it again and goes on"
    )
