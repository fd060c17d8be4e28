"""The safetensors container: a header that says where each tensor lies, checked before a byte of it is believed.

Layout of a file (github.com/huggingface/safetensors, "Format"): 8 bytes, the length n of the header as little-endian
uint64; n bytes of JSON, `{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}`, padded
with spaces; then the data, row-major and little-endian. Offsets count from the end of the header, and the tensors
fill the data without gap or overlap.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from t5x_scale.core.errors import UserError, did_you_mean

# The library's own bound; more is a file of another kind whose first bytes were taken for a length.
MAX_HEADER_BYTES = 100_000_000
LENGTH_BYTES = 8
# Numpy's bound of dimensions; sizes and offsets fit into int64.
_MAX_DIMENSIONS, _MAX_SIZE = 64, 2**63 - 1
_METADATA = "__metadata__"

DTYPES: Mapping[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one tensor lies: `begin` counts from the start of the file."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.begin + self.nbytes


def parse_length(prefix: bytes, file_bytes: int, where: str) -> int:
    """The length of the header.

    Args:
      prefix: the first 8 bytes of the file, fewer where it has no more.
      file_bytes: size of the file.
      where: name of the file for messages.

    Raises:
      UserError: the file is too short to hold its header, or the length is absurd.
    """
    if len(prefix) < LENGTH_BYTES:
        raise UserError(f"{where} is truncated: {file_bytes} bytes hold no safetensors header")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise UserError(f"{where} is not a safetensors file: its first 8 bytes ask for a header of {length:,} bytes")
    if LENGTH_BYTES + length > file_bytes:
        raise UserError(f"{where} is truncated: its header has {length:,} bytes, the file {file_bytes:,}")
    return length


def parse_header(header: bytes, file_bytes: int, where: str) -> dict[str, Entry]:
    """The tensors of a file in the order of their data.

    Args:
      header: the JSON.
      file_bytes: size of the file.
      where: name of the file for messages.

    Raises:
      UserError: the header is no JSON or does not describe `file_bytes` bytes of whole tensors, one after another;
        the message names the file and the tensor.
    """
    table = _parse_json(header, where)
    table.pop(_METADATA, None)
    start = LENGTH_BYTES + len(header)
    entries = sorted((_parse_entry(name, value, start, where) for name, value in table.items()), key=_by_place)
    end = start
    for before, entry in zip([None, *entries], entries, strict=False):
        if entry.begin != end:
            what = f"overlaps '{before.name}'" if before and entry.begin < end else "does not begin where it should"
            raise UserError(f"{where} is damaged: tensor '{entry.name}' {what} (byte {entry.begin:,}, not {end:,})")
        end = entry.end
    if end > file_bytes:
        cut = next(entry.name for entry in entries if entry.end > file_bytes)
        raise UserError(f"{where} is truncated: {file_bytes:,} of {end:,} bytes are there; '{cut}' is cut")
    if end < file_bytes:
        raise UserError(f"{where} is damaged: {file_bytes - end:,} bytes follow its last tensor")
    return {entry.name: entry for entry in entries}


def _by_place(entry: Entry) -> tuple[int, int]:
    return entry.begin, entry.end


def _parse_json(header: bytes, where: str) -> dict[str, Any]:
    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            [(twice, _)] = collections.Counter(name for name, _ in pairs).most_common(1)
            raise UserError(f"{where} is damaged: its header has '{twice}' twice")
        return table

    try:
        table = json.loads(header.decode(), object_pairs_hook=collect)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not a safetensors file: its header is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise UserError(f"{where} is not a safetensors file: its header is no JSON object")
    return table


def _parse_entry(name: str, value: Any, start: int, where: str) -> Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        if len(shape) > _MAX_DIMENSIONS or not all(_is_size(size) for size in (*shape, begin, end)):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} is damaged: tensor '{name}' has no valid dtype, shape and data_offsets") from error
    if not isinstance(dtype, str) or dtype not in DTYPES:
        near = did_you_mean(str(dtype), DTYPES)
        raise UserError(f"{where}: tensor '{name}' has the dtype {dtype!r}, which cannot be read{near}")
    entry = Entry(name, DTYPES[dtype], shape, start + begin)
    if end - begin != entry.nbytes:
        said = f"{dtype}{list(shape)} is {entry.nbytes:,} bytes, its offsets hold {end - begin:,}"
        raise UserError(f"{where} is damaged: tensor '{name}' of {said}")
    return entry


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SIZE


def make_header(
    tensors: Iterable[tuple[str, np.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[Entry]]:
    """The first bytes of a file, length included, and where each tensor belongs.

    Args:
      tensors: (name, dtype, shape). Those of larger elements come first, so that each is aligned to its own.
      metadata: goes into `__metadata__`.

    Raises:
      UserError: a dtype that the format does not have.
    """
    ordered = sorted(tensors, key=lambda tensor: -tensor[1].itemsize)
    table: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    begin, places = 0, []
    for name, dtype, shape in ordered:
        if dtype not in _NAMES:
            raise UserError(f"tensor '{name}' has the dtype {dtype}, which safetensors cannot hold")
        end = begin + math.prod(shape) * dtype.itemsize
        table[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        places.append((name, dtype, shape, begin))
        begin = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # The data begins at a multiple of 8, as the library's does.
    start = LENGTH_BYTES + len(text)
    head = len(text).to_bytes(LENGTH_BYTES, "little") + text
    return head, [Entry(name, dtype, shape, start + begin) for name, dtype, shape, begin in places]
