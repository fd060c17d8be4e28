"""Text every Python installation carries: the standard library, as code and as English.

`stdlib_code`: one document per source file. `stdlib_docs`: one document per source file, its docstrings in
order. `stdlib`: both. The same files are held out of both as `validation`, because a docstring also stands
in the source. The text is that of the running Python: another version gives other data.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import pathlib
import platform
import sysconfig
import tokenize
from collections.abc import Callable, Iterator

import seqio
import tensorflow as tf

from tasks.common import add_text_task

SPLITS = ("train", "validation")
HELD_OUT_ONE_IN = 10
# Tests; tables made by programs; and what some distributions ship apart or leave out, so that the same
# version of Python gives the same files everywhere.
EXCLUDED_DIRECTORIES = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload",
    "encodings", "pydoc_data", "idlelib", "tkinter", "turtledemo", "lib2to3", "distutils", "ensurepip", "venv",
}  # fmt: skip
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-", "plat-", "sitecustomize", "usercustomize", "turtle.py")


def list_files() -> list[tuple[str, pathlib.Path]]:
    """(path within the library, file) of every source file taken, in the order of their names."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    found = []
    for directory, subdirectories, names in os.walk(root):
        # Pruned, not filtered: site-packages, which is to be left out, may hold most of the files.
        subdirectories[:] = [name for name in subdirectories if _is_taken(name)]
        files = [pathlib.Path(directory, name) for name in names if name.endswith(".py") and _is_taken(name)]
        found += [(file.relative_to(root).as_posix(), file) for file in files]
    return sorted(found)


def _is_taken(name: str) -> bool:
    return name not in EXCLUDED_DIRECTORIES and not name.startswith(EXCLUDED_PREFIXES)


def split_of(path: str) -> str:
    """`train` or `validation`, by a hash of the path alone: every version of a file is on the same side."""
    digest = hashlib.sha256(path.encode()).digest()
    return "validation" if int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0 else "train"


def read_code(file: pathlib.Path) -> str:
    """The text of a source file, decoded as it declares; line ends are `\\n`."""
    with tokenize.open(file) as stream:
        return stream.read()


def read_docs(file: pathlib.Path) -> str:
    """The docstrings of a source file, in order, without indentation, separated by empty lines."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = sorted(
        (node for node in ast.walk(ast.parse(read_code(file))) if isinstance(node, kinds)),
        key=lambda node: getattr(node, "lineno", 0),
    )
    docs = (ast.get_docstring(node) for node in nodes)
    return "".join(f"{doc.strip()}\n\n" for doc in docs if doc and doc.strip())


def _make_dataset(
    split: str, shuffle_files: bool, seed: int | None = None, *, read: Callable[[pathlib.Path], str], python: str
) -> tf.data.Dataset:
    del shuffle_files, seed, python  # The version stands among the arguments so that fingerprints tell it.

    def generate() -> Iterator[dict[str, str]]:
        for path, file in list_files():
            if split_of(path) == split and (text := read(file)):
                yield {"text": text}

    return tf.data.Dataset.from_generator(generate, output_signature={"text": tf.TensorSpec([], tf.string)})


def _register(name: str, read: Callable[[pathlib.Path], str]) -> None:
    make_dataset = functools.partial(_make_dataset, read=read, python=platform.python_version())
    add_text_task(name, seqio.FunctionDataSource(make_dataset, splits=SPLITS))


_register("stdlib_code", read_code)
_register("stdlib_docs", read_docs)
seqio.MixtureRegistry.add("stdlib", [("stdlib_code", 1.0), ("stdlib_docs", 1.0)])
