"""What `make sweep-demo` trains on, beside `stdlib_code` and `stdlib_docs`: little text, and people.

`stdlib_code_12k` … `stdlib_code_200k`: so many thousand bytes of the library's source, in pieces, for many epochs;
validation is that of `stdlib_code`. `people_500` … `people_8000`: synthetic people (`people_text`); `validation` are
the same people, for what is asked is whether they are known.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Iterator

import seqio
import tensorflow as tf

from tasks import people_text, stdlib
from tasks.common import add_text_task

KILOBYTES = (12, 25, 50, 100, 200)
# Characters of a document. Whole files would be few, and of few kinds.
PIECE = 1000
PEOPLE = (500, 1000, 2000, 4000, 8000)


def read_first(kilobytes: int) -> Iterator[str]:
    """Pieces of the train split in an order that hashes decide, the last one cut: few bytes, from many files."""
    left = kilobytes * 1000
    for piece in _shuffled_pieces():
        text = piece[:left]
        left -= len(text.encode())
        if text:
            yield text
        if left <= 0:
            return


@functools.cache
def _shuffled_pieces() -> tuple[str, ...]:
    pieces: dict[bytes, str] = {}
    for path, file in stdlib.list_files():
        if stdlib.split_of(path) == "train":
            text = stdlib.read_code(file)
            for start in range(0, len(text), PIECE):
                pieces[hashlib.sha256(f"{path}:{start}".encode()).digest()] = text[start : start + PIECE]
    return tuple(pieces[key] for key in sorted(pieces))


def read_validation() -> Iterator[str]:
    """The source files that `stdlib_code` holds out."""
    texts = (stdlib.read_code(file) for path, file in stdlib.list_files() if stdlib.split_of(path) == "validation")
    return (text for text in texts if text)


def _make_code(
    split: str, shuffle_files: bool, seed: int | None = None, *, kilobytes: int, python: str
) -> tf.data.Dataset:
    del shuffle_files, seed, python  # The version stands among the arguments so that fingerprints tell it.
    return _to_dataset(functools.partial(read_first, kilobytes) if split == "train" else read_validation)


def _make_people(split: str, shuffle_files: bool, seed: int | None = None, *, count: int) -> tf.data.Dataset:
    del split, shuffle_files, seed
    return _to_dataset(functools.partial(people_text.iterate_people, count))


def _to_dataset(texts: functools.partial) -> tf.data.Dataset:
    def generate() -> Iterator[dict[str, str]]:
        return ({"text": text} for text in texts())

    return tf.data.Dataset.from_generator(generate, output_signature={"text": tf.TensorSpec([], tf.string)})


for size in KILOBYTES:
    make = functools.partial(_make_code, kilobytes=size, python=platform.python_version())
    add_text_task(f"stdlib_code_{size}k", seqio.FunctionDataSource(make, splits=stdlib.SPLITS))
for number in PEOPLE:
    make = functools.partial(_make_people, count=number)
    add_text_task(f"people_{number}", seqio.FunctionDataSource(make, splits=stdlib.SPLITS))
