"""Inputs that nobody writes by accident: valid ones with something wrong in a place, and bytes that are nothing."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Iterator
from typing import Any

# FUZZ=10 tries ten times as many.
INPUTS = 10_000 * int(os.environ.get("FUZZ") or 1)
# Numbers at which sizes, signs and conversions to text change what they do.
_NUMBERS = (
    0,
    1,
    -1,
    2**31,
    2**32,
    2**60,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
)
_TEXTS = (
    "",
    ".",
    "..",
    "../../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "a\nb",
    "\x1b[2J",
    "\x00",
    "\u202e",
    "x" * 5000,
)
_WORDS = (
    "f4,f4",
    "(1000000,1000000)f4",
    "O",
    "V1000000000",
    "float32",
    "F32",
    "S",
    "{'names': ['a'], 'formats': ['O']}",
)
# Stands for nesting that no recursion can make; `to_json` and `nest` put it in.
DEEP = "@deep@"
_DEPTH = 5_000


def mutate_bytes(generator: random.Random, data: bytes) -> bytes:
    """`data` with one to four changes: bits flipped, pieces cut out, doubled, moved, or written over with numbers."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        begin = generator.randrange(len(changed) + 1)
        end = min(len(changed), begin + generator.choice((1, 2, 8, 64)))
        kind = generator.randrange(6)
        if kind == 0 and end > begin:
            changed[begin] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del changed[begin:]
        elif kind == 2:
            del changed[begin:end]
        elif kind == 3:
            changed[begin:begin] = changed[begin:end] * generator.choice((1, 2, 50))
        elif kind == 4:
            changed[begin:end] = generator.randbytes(end - begin)
        else:
            changed[begin : begin + 8] = generator.choice((b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"[" * 8))
    return bytes(changed)


def random_bytes(generator: random.Random) -> bytes:
    """Up to 300 bytes of no meaning."""
    return generator.randbytes(generator.randrange(300))


def mutate_tree(generator: random.Random, tree: Any) -> Any:
    """A copy of nested dicts and lists with one to three of its places replaced, taken away, renamed or added to."""
    tree = copy.deepcopy(tree)
    for _ in range(generator.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            return nasty_value(generator, tree)
        node, key = generator.choice(places)
        kind = generator.randrange(5)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[generator.choice(_TEXTS)] = node.pop(key)
        elif kind == 2:
            node[key] = copy.deepcopy(generator.choice(places)[0])
        elif kind == 3 and isinstance(node, list):
            node.insert(key, nasty_value(generator, node[key]))
        else:
            node[key] = nasty_value(generator, node[key])
    return tree


def nasty_value(generator: random.Random, value: Any) -> Any:
    """Something that has no business where `value` is."""
    choices = (
        *(generator.choice(_NUMBERS), generator.choice(_TEXTS), generator.choice(_WORDS), None, True, [], {}, DEEP),
        *([value] * 3, {"a": value}, [generator.choice(_NUMBERS)] * generator.choice((2, 70)), [10**9, "x"]),
        *([str(value)], str(value)[:100], 10 ** generator.choice((20, 4000))),
    )
    return generator.choice(choices)


def to_json(value: Any) -> str:
    """JSON, with nesting where it belongs."""
    return json.dumps(value).replace(f'"{DEEP}"', "[" * _DEPTH + "]" * _DEPTH)


def nest(data: bytes, mark: bytes, opening: bytes, innermost: bytes) -> bytes:
    """`data` of another format with nesting for `mark`, its way of writing `DEEP`."""
    return data.replace(mark, opening * _DEPTH + innermost)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every place in a tree; no deeper than a tree of ours is."""
    waiting = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in list(keys):
            yield node, key
            if depth < 12:
                waiting.append((node[key], depth + 1))
