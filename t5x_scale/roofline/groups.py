"""Which devices take part in a collective: the three ways in which compiled programs write it.

`{{0,1},{2,3}}` lists the groups. `[4,2]<=[2,4]T(1,0)` is a range of numbers, reshaped, transposed and cut into 4 groups
of 2. `mesh['a'=2,'b'=4] {'b'}` names the axes of a mesh that a group spans, or parts of them: `'b':(2)2` is the factor
of size 2 of `b` that stands behind a factor of 2.
"""

from __future__ import annotations

import itertools
import math
import re

import numpy as np

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"(?:@?mesh)[\[<](?P<axes>[^\]>]*)[\]>](?P<order>[^{]*)\{(?P<used>[^}]*)\}")
_AXIS = re.compile(r"'?(\w+)'?\s*=\s*(\d+)")
_USED = re.compile(r"'?(\w+)'?(?::\((\d+)\)(\d+))?")
_EXPLICIT = re.compile(r"\{[\d,{}\s]*\}")


def parse_groups(text: str, num_devices: int) -> np.ndarray:
    """Reads the value of `replica_groups=`.

    Args:
      text: beginning with the value; what follows is ignored.
      num_devices: of the program; an empty list is one group of all.

    Returns:
      (groups, devices of a group) as positions in the program's device assignment. Groups of unequal size are cut to
      the smallest.

    Raises:
      ValueError: none of the three forms.
    """
    text = text.strip()
    if match := _IOTA.match(text):
        return _from_iota(*match.groups())
    if match := _MESH.match(text):
        return _from_mesh(match["axes"], match["order"], match["used"])
    if match := _EXPLICIT.match(text):
        groups = [_numbers(group) for group in re.findall(r"\{([\d,\s]*)\}", match.group())]
        groups = [group for group in groups if group]
        if not groups:
            return np.arange(num_devices)[None]
        size = min(map(len, groups))
        return np.array([group[:size] for group in groups])
    raise ValueError(f"replica groups are written in an unknown way: {text[:60]}")


def parse_pairs(text: str) -> np.ndarray:
    """Reads `source_target_pairs={{0,1},{1,2}}`: (pairs, 2)."""
    pairs = re.findall(r"\{(\d+),(\d+)\}", text)
    return np.array(pairs, dtype=int).reshape(-1, 2)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _from_iota(shape: str, dims: str, order: str | None) -> np.ndarray:
    array = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    if order:
        array = array.transpose(_numbers(order))
    groups = array.reshape(_numbers(shape))
    return groups.reshape(1, -1) if groups.ndim == 1 else groups.reshape(groups.shape[0], -1)


def _from_mesh(axes: str, order: str, used: str) -> np.ndarray:
    sizes = {name: int(size) for name, size in _AXIS.findall(axes)}
    devices = _device_order(order, math.prod(sizes.values()))
    # Every axis is split into factors so that each used part is a factor of its own.
    parts = _USED.findall(used)
    wanted = [(name, int(before or 1), int(size or sizes[name])) for name, before, size in parts]
    factors = [factor for name in sizes for factor in _factors(name, sizes[name], wanted)]
    array = devices.reshape([size for _, _, size in factors])
    inner = [factors.index(part) for part in wanted if part in factors]
    outer = [axis for axis in range(len(factors)) if axis not in inner]
    members = math.prod(factors[axis][2] for axis in inner)
    return array.transpose(outer + inner).reshape(-1, members)


def _factors(name: str, size: int, wanted: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """An axis cut at the borders of its used parts: (name, product of the factors before, size)."""
    borders = {1, size}
    for part, before, width in wanted:
        if part == name:
            borders |= {before, before * width}
    cuts = sorted(borders)
    return [(name, low, high // low) for low, high in itertools.pairwise(cuts)] or [(name, 1, 1)]


def _device_order(text: str, count: int) -> np.ndarray:
    """`device_ids=([4,16]T(1,0))` or `device_ids=(0,2,1,3)`, or nothing: positions in order."""
    iota = re.search(r"\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", text)
    if iota:
        array = np.arange(count).reshape(_numbers(iota.group(1)))
        return (array.transpose(_numbers(iota.group(2))) if iota.group(2) else array).reshape(-1)
    listed = re.search(r"\(([\d,\s]+)\)", text)
    return np.array(_numbers(listed.group(1))) if listed else np.arange(count)
