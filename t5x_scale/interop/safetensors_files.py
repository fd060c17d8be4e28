"""Models in safetensors files: one file, or shards with an index, read and written a block at a time.

Why not the library: it maps files into memory, so that the resident memory of whoever reads a model grows with the
model; it gives numpy no bfloat16; and it writes only what is in memory as a whole. Here a tensor is a `LazyArray`
that reads the bytes of a box when asked, and files are written from such arrays in blocks of a stated size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.contiguous import to_contiguous
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.core.lazy import LazyArray, Region, blocks
from t5x_scale.interop import byte_ranges
from t5x_scale.interop.safetensors_format import LENGTH_BYTES, Entry, make_header, parse_header, parse_length

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
MAX_BLOCK_BYTES = 1 << 26


def read_tensors(path: str | os.PathLike) -> dict[str, LazyArray]:
    """The tensors of a safetensors file, or of a directory with `model.safetensors` or with shards and their index.

    Headers are read and checked now, data when a tensor is read. Reading never maps a file.

    Raises:
      UserError: there is no model there, or what is there is not whole; the message names file and tensor.
    """
    file = _find_model(files.to_path(path))
    if file.name.endswith(".index.json"):
        return _read_shards(file)
    return {name: _lazy(file, entry) for name, entry in read_entries(file).items()}


def _find_model(path: files.Path) -> files.Path:
    if not files.exists(path):
        raise UserError(f"no such file or directory: {path}")
    if not files.is_directory(path):
        return path
    for name in (SINGLE_FILE, INDEX_FILE):
        if files.exists(path / name):
            return path / name
    names = sorted(entry.name for entry in path.iterdir())
    if any(name.startswith("pytorch_model") for name in names):
        raise UserError(
            f"{path} holds pytorch_model.bin files, pickles that can run any code: convert it to safetensors first "
            "(load it with transformers, then save_pretrained)"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    found = f"; it holds {', '.join(others[:3])}{' ...' if len(others) > 3 else ''}" if others else ""
    raise UserError(f"{path} holds neither {SINGLE_FILE} nor {INDEX_FILE}{found}")


def read_entries(file: files.Path) -> dict[str, Entry]:
    """The checked header of one file: its tensors in the order of their data.

    Raises:
      UserError: the file cannot be read, or is not a whole safetensors file.
    """
    try:
        size = file.stat().length
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    if not files.is_file(file):  # A pipe would be waited for.
        raise UserError(f"{file} is no plain file")
    with byte_ranges.open_ranges(file) as source:
        prefix = _read_bytes(source, 0, min(LENGTH_BYTES, size))
        header = _read_bytes(source, LENGTH_BYTES, parse_length(prefix, size, str(file)))
    return parse_header(header, size, str(file))


def _read_bytes(source: byte_ranges.Readable, position: int, count: int) -> bytes:
    out = np.empty(count, np.uint8)
    if count:
        source.read_into(position, out)
    return out.tobytes()


def _lazy(file: files.Path, entry: Entry) -> LazyArray:
    def read(region: Region) -> np.ndarray:
        with byte_ranges.open_ranges(file) as source:
            return byte_ranges.read_box(source, entry.begin, entry.shape, entry.dtype, region)

    return LazyArray(entry.shape, entry.dtype, read, tuple(range(len(entry.shape))))


def _read_shards(index: files.Path) -> dict[str, LazyArray]:
    places = _read_index(index)
    tensors: dict[str, tuple[files.Path, Entry]] = {}
    for name in sorted(set(places.values())):
        shard = index.parent / name
        if not files.exists(shard):
            beside = [entry.name for entry in index.parent.iterdir() if entry.name.endswith(".safetensors")]
            raise UserError(f"the shard {shard}, which {index.name} names, is missing{did_you_mean(name, beside)}")
        for tensor, entry in read_entries(shard).items():
            if tensor in tensors:
                raise UserError(f"tensor '{tensor}' is in two shards: {tensors[tensor][0]} and {name}")
            if tensor not in places:
                near = did_you_mean(tensor, places)
                raise UserError(f"tensor '{tensor}' of {shard} is not in {index.name}{near}")
            tensors[tensor] = shard, entry
    for tensor, name in places.items():
        if tensor not in tensors or tensors[tensor][0].name != name:
            near = did_you_mean(tensor, [other for other, (shard, _) in tensors.items() if shard.name == name])
            raise UserError(f"{index} places tensor '{tensor}' in {name}, which does not hold it{near}")
    return {tensor: _lazy(*tensors[tensor]) for tensor in places}


def _read_index(index: files.Path) -> dict[str, str]:
    content = files.read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index} has no weight_map from tensors to shards")
    for tensor, name in places.items():
        if not isinstance(name, str) or name in ("", ".", "..") or "\0" in name or os.path.basename(name) != name:
            raise UserError(f"{index} places tensor '{tensor}' in {name!r}, which is no name of a file beside it")
    return places


def write_tensors(
    directory: str | os.PathLike,
    tensors: Mapping[str, LazyArray],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] = {"format": "pt"},
    max_block_bytes: int = MAX_BLOCK_BYTES,
    on_block: Callable[[int], None] = lambda count: None,
) -> dict[str, Written]:
    """Writes `model.safetensors`, or shards of at most `max_shard_bytes` and their index.

    A tensor larger than that has a shard of its own. Shards are filled in the order of `tensors`. No file has its
    name before it is whole, and the index comes last. Of the tensors no more than `max_block_bytes` is read at once.

    Args:
      directory: exists; local or `gs://`. To an object store each shard is one upload from its first byte to its last.
      tensors: written as they are: their bytes are not changed.
      max_shard_bytes: of data in a shard.
      metadata: of each file; `{"format": "pt"}` is what `transformers` asks for.
      max_block_bytes: of one block.
      on_block: called with the bytes of each block when it is written.

    Returns:
      Of each tensor what it takes to tell whether it reads back as it was written.

    Raises:
      UserError: a file is there already, the disk is too small, or a dtype does not exist in safetensors.
    """
    target = files.to_path(directory)
    plans = _plan_shards(tensors, max_shard_bytes, metadata)
    _check_target(target, plans)
    written: dict[str, Written] = {}
    try:
        for plan in plans:
            written |= _write_shard(target, plan, tensors, max_block_bytes, on_block)
        if len(plans) > 1:
            _write_index(target, plans, tensors)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    return written


@dataclasses.dataclass(frozen=True)
class Written:
    """A tensor that was written: its blocks, and the CRC-32 of the bytes of each, row-major."""

    dtype: np.dtype
    shape: tuple[int, ...]
    checksums: tuple[tuple[Region, int], ...]


def checksum(block: np.ndarray) -> int:
    """The CRC-32 of the bytes of a block, row-major."""
    return zlib.crc32(byte_ranges.as_bytes(to_contiguous(block)))


def _write_index(target: files.Path, plans: list[_Shard], tensors: Mapping[str, LazyArray]) -> None:
    places = {entry.name: plan.name for plan in plans for entry in plan.entries}
    total = sum(tensor.nbytes for tensor in tensors.values())
    parameters = sum(tensor.size for tensor in tensors.values())
    files.write_json(
        target / INDEX_FILE,
        {"metadata": {"total_parameters": parameters, "total_size": total}, "weight_map": places},
    )


@dataclasses.dataclass(frozen=True)
class _Shard:
    name: str
    head: bytes
    entries: list[Entry]

    @property
    def nbytes(self) -> int:
        return max([len(self.head), *(entry.end for entry in self.entries)])


def _plan_shards(tensors: Mapping[str, LazyArray], max_shard_bytes: int, metadata: Mapping[str, str]) -> list[_Shard]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if groups[-1] and filled + tensor.nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += tensor.nbytes
    single = len(groups) == 1
    plans = []
    for number, group in enumerate(groups, 1):
        head, entries = make_header(((name, tensors[name].dtype, tensors[name].shape) for name in group), metadata)
        name = SINGLE_FILE if single else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        plans.append(_Shard(name, head, entries))
    return plans


def _check_target(target: files.Path, plans: list[_Shard]) -> None:
    for name in (INDEX_FILE, SINGLE_FILE, *(plan.name for plan in plans)):
        if files.exists(target / name):
            raise UserError(f"{target / name} is there already; nothing is overwritten")
    if not files.is_remote(target):
        need, free = sum(plan.nbytes for plan in plans), shutil.disk_usage(target).free
        if need > free:
            raise UserError(f"{target} has room for {free / 1e9:.1f} GB; the model needs {need / 1e9:.1f} GB")


def _write_shard(
    target: files.Path,
    plan: _Shard,
    tensors: Mapping[str, LazyArray],
    max_block_bytes: int,
    on_block: Callable[[int], None],
) -> dict[str, Written]:
    sums: dict[str, list[tuple[Region, int]]] = {entry.name: [] for entry in plan.entries}
    with _open_sink(target, plan) as sink:
        for entry in plan.entries:
            array = tensors[entry.name]
            if sink.in_order:
                array = dataclasses.replace(array, outer=tuple(range(array.ndim)))
            for region in blocks(array, max_block_bytes):
                block = to_contiguous(array.read(region))
                byte_ranges.write_box(sink, entry.begin, entry.shape, region, block)
                sums[entry.name].append((region, checksum(block)))
                on_block(block.nbytes)
    return {entry.name: Written(entry.dtype, entry.shape, tuple(sums[entry.name])) for entry in plan.entries}


@contextlib.contextmanager
def _open_sink(target: files.Path, plan: _Shard) -> Iterator[byte_ranges.Writable]:
    """A file with its header, which has its name when the context has ended well."""
    path = target / plan.name
    remote = files.is_remote(target)
    partial = path if remote else target / f".{plan.name}.partial"
    partial.unlink(missing_ok=True)
    with byte_ranges.create_ranges(partial, plan.nbytes) as sink:
        sink.write(0, np.frombuffer(plan.head, np.uint8))
        yield sink
    if not remote:
        os.rename(partial, path)
