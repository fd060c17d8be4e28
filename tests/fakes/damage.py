"""Damage to a finished checkpoint: one seeded case after the other, of every kind and for every kind of file."""

import dataclasses
import json
import pathlib
import random
import shutil


@dataclasses.dataclass(frozen=True)
class Case:
    """What was done: `kind` to the file `name` of the step, with `detail` for whoever repeats it."""

    kind: str
    name: str
    detail: str = ""


def list_files(step_path: pathlib.Path) -> list[str]:
    """All files of a step, by name from there."""
    return sorted(str(path.relative_to(step_path)) for path in step_path.rglob("*") if path.is_file())


def flip_bit(path, generator, other):
    data = bytearray(path.read_bytes())
    position, bit = generator.randrange(len(data)), generator.randrange(8)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    return f"byte {position} bit {bit}"


def change_byte(path, generator, other):
    data = bytearray(path.read_bytes())
    position, value = generator.randrange(len(data)), generator.randrange(1, 256)
    data[position] ^= value
    path.write_bytes(data)
    return f"byte {position} ^ {value}"


def truncate(path, generator, other):
    data = path.read_bytes()
    length = generator.randrange(len(data))
    path.write_bytes(data[:length])
    return f"{length} of {len(data)}"


def delete(path, generator, other):
    path.unlink()


def zero_fill(path, generator, other):
    data = bytearray(path.read_bytes())
    start = generator.randrange(len(data))
    end = generator.randint(start + 1, len(data))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    return f"bytes {start}:{end}"


def extend(path, generator, other):
    extra = generator.randbytes(generator.randint(1, 64))
    path.write_bytes(path.read_bytes() + extra)
    return f"{len(extra)} more"


def duplicate(path, generator, other):
    shutil.copy(path, path.with_name(f"{path.name}.copy"))


def swap(path, generator, other):
    """With another file of the same step."""
    data = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(data)
    return f"with {other.name}"


def overwrite(path, generator, other):
    """By another file of the same step."""
    path.write_bytes(other.read_bytes())
    return f"by {other.name}"


def make_older(path, generator, other):
    """The file of the same name of an older step, or of an older save of this one: `other`."""
    path.write_bytes(other.read_bytes())


def empty(path, generator, other):
    path.write_bytes(b"")


def claim_sizes(path, generator, other):
    """Numbers of a JSON document become 2^60, and so does what a zstd frame says of its size."""
    data = path.read_bytes()
    try:
        value = json.loads(data)
    except ValueError:
        data = bytearray(data)
        # A frame with an explicit size of eight bytes, where one begins here.
        start = max(data.find(b"\x28\xb5\x2f\xfd"), 0)
        data[start : start + 14] = (
            b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little") + data[start + 5 : start + 6]
        )
        path.write_bytes(data)
        return f"frame at {start}"

    def enlarge(node):
        if isinstance(node, dict):
            return {key: enlarge(child) for key, child in node.items()}
        if isinstance(node, list):
            return [enlarge(child) for child in node]
        return 1 << 60 if type(node) is int else node

    path.write_text(json.dumps(enlarge(value)))


KINDS = {
    function.__name__: function
    for function in (
        *(flip_bit, change_byte, truncate, delete, zero_fill, extend, duplicate),
        *(swap, overwrite, make_older, empty, claim_sizes),
    )
}


def damage(step_path: pathlib.Path, older_path: pathlib.Path, kind: str, name: str, generator: random.Random) -> Case:
    """Damages one file of a step; `older_path` is another step, or an older save of the same."""
    path, others = step_path / name, list_files(step_path)
    other = step_path / generator.choice(others)
    if kind == "make_older":
        counterparts = [
            candidate
            for candidate in list_files(older_path)
            if pathlib.Path(candidate).parent == pathlib.Path(name).parent
        ]
        same = older_path / name
        other = same if same.exists() else older_path / generator.choice(counterparts or [name])
        if not other.exists():
            kind, other = "delete", path
    return Case(kind, name, KINDS[kind](path, generator, other) or "")
