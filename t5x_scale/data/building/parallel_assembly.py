"""Joins parts into a store piece by piece, in any order and on any number of machines.

Where every document lies follows from the documents and tokens of the parts before it (`Plan`). A piece is one file of
an array; whoever writes it reads the parts that it overlaps. Writing a piece twice gives the same bytes. The store that
comes out is that of `assembly.assemble`, byte for byte.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data.building.assembly import make_report, select
from t5x_scale.data.building.parts import PartInfo, read_lengths, read_part
from t5x_scale.data.building.work import Options
from t5x_scale.data.store_manifest import CHECKSUM_TOKENS, MANIFEST, Manifest
from t5x_scale.data.stored_array import StoredArray, default_chunk, make_array, write_range

TOKENS, DOCUMENTS, TARGETS = "tokens", "documents", "target_starts"


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where a store is assembled, and what its manifest says beside counts; see `assembly.assemble`."""

    parts: files.Path
    store: files.Path
    options: Options
    source: Mapping[str, Any]
    licence: str = ""
    chunk: int | None = None

    @property
    def dtype(self) -> np.dtype:
        """Of the tokens."""
        return np.dtype("<u2" if self.options.vocabulary.size <= 2**16 else "<i4")

    def arrays(self) -> dict[str, np.dtype]:
        """The arrays of the store."""
        targets = {TARGETS: np.dtype("<i4")} if self.options.supervised else {}
        return {TOKENS: self.dtype, DOCUMENTS: np.dtype("<i8"), **targets}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where the documents of every part go.

    Attributes:
      infos: of all parts, in the order of the source.
      numbers: int64 [parts + 1]: how many documents, rests included and duplicates too, the parts before hold.
      left_out: int64 [n], ascending: the documents that do not stay, numbered in that way.
      tokens, documents: int64 [parts + 1]: how many tokens, and beginnings of documents, of the parts before stay.
      duplicates: documents left out, by reason.
    """

    infos: Sequence[PartInfo]
    numbers: np.ndarray
    left_out: np.ndarray
    tokens: np.ndarray
    documents: np.ndarray
    duplicates: Mapping[str, int]

    def keep(self, part: int) -> np.ndarray:
        """bool [documents of the part]: which stay."""
        return find_kept(self.numbers, self.left_out, part)


def number_documents(infos: Sequence[PartInfo]) -> np.ndarray:
    """int64 [parts + 1]: how many documents the parts before hold, duplicates and rests included."""
    return np.cumsum([0, *(info.documents for info in infos)])


def find_kept(numbers: np.ndarray, left_out: np.ndarray, part: int) -> np.ndarray:
    """bool [documents of the part]; arguments as in `Plan`."""
    keep = np.ones(numbers[part + 1] - numbers[part], bool)
    first, stop = np.searchsorted(left_out, numbers[part : part + 2])
    keep[left_out[first:stop] - numbers[part]] = False
    return keep


def measure_part(directory: files.Path, info: PartInfo, keep: np.ndarray) -> tuple[int, int]:
    """(tokens, beginnings of documents) of a part that stay."""
    lengths, _, begins = read_lengths(directory, info)
    rest = 1 if len(lengths) and not begins else 0
    return int(lengths[keep].sum()), int(keep.sum()) - rest


def make_plan(
    infos: Sequence[PartInfo],
    left_out: np.ndarray,
    measured: Sequence[tuple[int, int]],
    duplicates: Mapping[str, int],
) -> Plan:
    """The plan of a store; arguments as in `Plan`, and `measured` of every part by `measure_part`."""
    totals = np.zeros((len(infos) + 1, 2), np.int64)
    if measured:
        totals[1:] = np.cumsum(np.array(measured, np.int64), axis=0)
    return Plan(infos, number_documents(infos), left_out, totals[:, 0], totals[:, 1], duplicates)


def make_arrays(plan: Plan, destination: Destination) -> list[tuple[str, int]]:
    """Makes the arrays of the store and returns their pieces: (array, number of the file).

    Raises:
      UserError: no document stays, or the directory cannot be written.
    """
    if not plan.documents[-1]:
        counts = {name: count for name, count in _make_report(plan).items() if count}
        described = ", ".join(f"{name} {count}" for name, count in counts.items())
        name, split = destination.source.get("task", "unnamed"), destination.source.get("split", "")
        raise UserError(f"the data source '{name}', split '{split}' gave no documents ({described})")
    files.make_directory(destination.store)
    pieces = []
    for name, dtype in destination.arrays().items():
        size = _size(plan, name)
        file = make_array(
            destination.store / name,
            dtype,
            size,
            _chunk(destination, name),
            sharded=files.is_remote(destination.store),
        )
        pieces += [(name, number) for number in range(-(-size // file))]
    return pieces


def write_piece(plan: Plan, destination: Destination, name: str, number: int) -> None:
    """Writes one file of an array.

    Raises:
      UserError: a damaged part, or it cannot be written.
    """
    size, dtype = _size(plan, name), destination.arrays()[name]
    path = destination.store / name
    # The array is there already; this tells the length of its files.
    file = make_array(path, dtype, size, _chunk(destination, name), sharded=files.is_remote(destination.store))
    start, stop = number * file, min((number + 1) * file, size)
    starts = plan.tokens if name == TOKENS else plan.documents
    read = {TOKENS: _read_tokens, DOCUMENTS: _read_documents, TARGETS: _read_targets}[name]
    out = np.empty(stop - start, dtype)
    first = int(np.searchsorted(starts, start, "right")) - 1
    for part in range(first, int(np.searchsorted(starts, stop))):
        if starts[part] == starts[part + 1]:
            continue
        values = read(plan, destination, part)
        offset = int(starts[part])
        low, high = max(start, offset), min(stop, offset + len(values))
        out[low - start : high - start] = values[low - offset : high - offset]
    write_range(path, start, out)


def list_checksums(plan: Plan, destination: Destination) -> list[tuple[str, int]]:
    """What `make_checksum` is to be asked: blocks of tokens, and the other arrays as wholes."""
    blocks = -(-int(plan.tokens[-1]) // CHECKSUM_TOKENS)
    return [
        *((TOKENS, block) for block in range(blocks)),
        *((name, 0) for name in destination.arrays() if name != TOKENS),
    ]


def make_checksum(plan: Plan, destination: Destination, name: str, block: int) -> int:
    """CRC-32 of a block of tokens, or of the whole of another array, as the manifest has it; read from the store."""
    size, dtype = _size(plan, name), destination.arrays()[name]
    array = StoredArray(destination.store / name, dtype, size)
    begin = block * CHECKSUM_TOKENS
    end = min(begin + CHECKSUM_TOKENS, size) if name == TOKENS else size
    checksum = 0
    for start in range(begin, end, CHECKSUM_TOKENS):
        out = np.empty((1, min(CHECKSUM_TOKENS, end - start)), dtype)
        array.read_into(np.array([start]), out)
        checksum = zlib.crc32(out, checksum)
    return checksum


def write_manifest(plan: Plan, destination: Destination, checksums: Mapping[tuple[str, int], int]) -> Manifest:
    """Writes the manifest: from here on the store opens.

    Args:
      plan, destination: of a store of which all pieces are written.
      checksums: by what `list_checksums` lists.
    """
    options = destination.options
    report = _make_report(plan)
    curation = {"curation": options.curation.describe()} if options.curation.is_active else {}
    manifest = Manifest(
        vocabulary_fingerprint=options.vocabulary.fingerprint,
        vocabulary_size=options.vocabulary.size,
        separator_id=options.separator_id,
        dtype=destination.dtype.name,
        num_tokens=int(plan.tokens[-1]),
        num_documents=int(plan.documents[-1]),
        empty_documents=report["empty"],
        supervised=options.supervised,
        checksums=tuple(checksums[key] for key in sorted(checksums) if key[0] == TOKENS),
        documents_checksum=checksums[DOCUMENTS, 0],
        target_starts_checksum=checksums.get((TARGETS, 0)),
        source={**destination.source, **curation},
        licence=destination.licence,
        report=report,
    )
    manifest = dataclasses.replace(manifest, fingerprint=manifest.content_fingerprint())
    files.write_json(destination.store / MANIFEST, dataclasses.asdict(manifest))
    return manifest


def _make_report(plan: Plan) -> dict[str, int]:
    return make_report((info.counts for info in plan.infos), plan.duplicates)


def _size(plan: Plan, name: str) -> int:
    return int((plan.tokens if name == TOKENS else plan.documents)[-1])


def _chunk(destination: Destination, name: str) -> int:
    chunk = destination.chunk or default_chunk(destination.store)
    return chunk if name == TOKENS else max(chunk // 16, 1)


def _read_tokens(plan: Plan, destination: Destination, part: int) -> np.ndarray:
    return select(read_part(destination.parts, plan.infos[part]), plan.keep(part)).tokens


def _read_documents(plan: Plan, destination: Destination, part: int) -> np.ndarray:
    """Positions of the documents that begin in a part."""
    lengths, _, begins = read_lengths(destination.parts, plan.infos[part])
    lengths = lengths[plan.keep(part)]
    return (plan.tokens[part] + np.cumsum(lengths) - lengths)[0 if begins else 1 :]


def _read_targets(plan: Plan, destination: Destination, part: int) -> np.ndarray:
    _, target_starts, begins = read_lengths(destination.parts, plan.infos[part])
    return target_starts[plan.keep(part)][0 if begins else 1 :]
