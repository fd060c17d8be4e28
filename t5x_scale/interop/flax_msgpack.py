"""Trees as Flax serializes them with msgpack, read without Flax.

Dicts with string keys; arrays are extension type 1 and scalars of numpy type 3, both a msgpack of (shape, name of the
dtype, bytes in C order); complex numbers are type 2. An array above 2^30 bytes is a dict of flat chunks, marked by
`__msgpack_chunked_array__`, whose tuples are dicts keyed "0", "1", ...
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from t5x_scale.core.lazy import to_dtype

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
# Names of numbers, which is what Flax writes; numpy reads many other things as a type, and is not asked.
_DTYPES = ("bool", "bfloat16", "float16", "float32", "float64", "complex64", "complex128")
_DTYPES += tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
_DTYPES += ("float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz", "int4", "uint4")
_CHUNKED = "__msgpack_chunked_array__"


def decode(data: bytes) -> Any:
    """The tree in `data`: dicts, strings, numbers and numpy arrays (views of `data`).

    Raises:
      ValueError: `data` is not such a tree, or is cut short.
    """
    try:
        return msgpack.unpackb(data, ext_hook=_decode_extension, object_hook=_join_chunks, raw=False)
    except (ValueError, msgpack.UnpackException, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(f"no tree of arrays, or not a whole one ({error or type(error).__name__})") from error


def _decode_extension(code: int, data: bytes) -> Any:
    if code == _COMPLEX:
        return complex(*msgpack.unpackb(data))
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"unknown extension type {code}")
    shape, name, content = msgpack.unpackb(data, raw=True)
    if name.decode() not in _DTYPES:
        raise ValueError(f"an array of {name.decode()!r}")
    array = np.frombuffer(content, to_dtype(name.decode())).reshape(_to_shape(shape))
    return array if code == _ARRAY else array[()]


def _join_chunks(node: dict[Any, Any]) -> Any:
    if _CHUNKED not in node:
        return node
    shape, chunks = _to_shape(_to_tuple(node["shape"])), _to_tuple(node["chunks"])
    flat = np.concatenate(chunks)
    if flat.size != math.prod(shape):
        raise ValueError(f"chunks of {flat.size} elements for an array of shape {list(shape)}")
    return flat.reshape(shape)


def _to_shape(sizes: Sequence[Any]) -> tuple[int, ...]:
    """Checked before it is multiplied: a string times a number is memory."""
    if not isinstance(sizes, Sequence) or not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError("a shape that is none")
    return tuple(sizes)


def _to_tuple(node: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(node[str(index)] for index in range(len(node)))
