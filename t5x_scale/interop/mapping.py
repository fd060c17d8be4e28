"""Mapping tables: which tensor of another system is which of ours, and how it is turned into it.

A family of models is one list of rows. `read_rows` goes through it from their tensors to ours, `write_rows` back;
the way back is derived from the rows and never written down. Nothing is read from disk before somebody reads a leaf.
"""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections.abc import Iterator, Mapping, Sequence

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.leaves import Leaf, Leaves, Origin
from t5x_scale.interop.operations import Operation, apply_all, inverse_of_all

Axes = Mapping[str, tuple[str | None, ...]]
Shapes = Mapping[str, tuple[int, ...]]

# What may stand in braces in their names, in the order of our leading dimensions.
STACKED = ("layer", "expert")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      ours: the paths of our leaves: one, or as many as the operations take a fused tensor apart into.
      theirs: the name of their tensor. `{layer}` and `{expert}` stand for a tensor each layer and each expert, which
        are stacked along leading dimensions of ours, layers first.
      operations: from one tensor of theirs to one layer's (and expert's) part of ours.
    """

    ours: tuple[str, ...]
    theirs: str
    operations: tuple[Operation, ...] = ()

    def __post_init__(self) -> None:
        if unknown := self._braced() - set(STACKED):
            raise ValueError(f"'{self.theirs}' has {sorted(unknown)} in braces; known are {list(STACKED)}")

    @property
    def stacked(self) -> tuple[str, ...]:
        """The names in braces, in the order of our leading dimensions."""
        return tuple(name for name in STACKED if name in self._braced())

    def _braced(self) -> set[str]:
        return {field for _, field, _, _ in string.Formatter().parse(self.theirs) if field}

    def name(self, index: Sequence[int]) -> str:
        """Their name at an index of our leading dimensions."""
        return self.theirs.format(**dict(zip(self.stacked, index, strict=True)))


def row(ours: str, theirs: str, *operations: Operation) -> Row:
    """A row whose paths are written in one string, separated by blanks."""
    return Row(tuple(ours.split()), theirs, operations)


def read_rows(rows: Sequence[Row], tensors: Mapping[str, LazyArray], shapes: Shapes, axes: Axes) -> dict[str, Leaf]:
    """Our leaves as views of their tensors.

    Args:
      rows: the table.
      tensors: theirs, by name.
      shapes: of our parameters, by path, as the architecture makes them.
      axes: logical names of the dimensions of our parameters, by path.

    Returns:
      A leaf for each path of `shapes`, in that order.

    Raises:
      UserError: a tensor is missing, left over, of another shape than `shapes` say, or not of floating point.
    """
    _check_tensors(expected_shapes(rows, shapes), tensors)
    leaves: dict[str, Leaf] = {}
    for one in rows:
        sizes = _leading_sizes(one, shapes)
        for path, array in zip(one.ours, _gather(one, tensors, sizes), strict=True):
            leaves[path] = Leaf(array, axes[path], _origin(one, path))
    return {path: leaves[path] for path in shapes}


def write_rows(rows: Sequence[Row], leaves: Leaves) -> dict[str, LazyArray]:
    """Their tensors as views of our leaves: the inverse of `read_rows`.

    Raises:
      UserError: the table has a path that is not among the leaves, or the leaves one that is not in the table.
    """
    arrays = _write({path: leaf.array for path, leaf in leaves.items()}, rows)
    return dict(arrays)


def expected_shapes(rows: Sequence[Row], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes of their tensors, by name, for parameters of ours of these shapes."""
    arrays = {path: lazy.full(shape, "float32") for path, shape in shapes.items()}
    return {name: array.shape for name, array in _write(arrays, rows)}


def _write(arrays: Mapping[str, LazyArray], rows: Sequence[Row]) -> Iterator[tuple[str, LazyArray]]:
    _check_paths([path for one in rows for path in one.ours], arrays)
    for one in rows:
        back = inverse_of_all(one.operations)
        parts = tuple(arrays[path] for path in one.ours)
        for index in _indices(_leading_sizes(one, {one.ours[0]: parts[0].shape})):
            (array,) = apply_all(back, tuple(_at(part, index) for part in parts))
            yield one.name(index), array


def _gather(one: Row, tensors: Mapping[str, LazyArray], sizes: Sequence[int]) -> list[LazyArray]:
    """Each of the row's arrays, stacked over layers and experts."""
    parts = {index: apply_all(one.operations, (tensors[one.name(index)],)) for index in _indices(sizes)}
    for index, arrays in parts.items():
        first = parts[(0,) * len(sizes)][0]
        if arrays[0].dtype != first.dtype:
            name, other = one.name(index), one.name((0,) * len(sizes))
            raise UserError(
                f"tensor '{name}' is {arrays[0].dtype}, but '{other}', with which it is stacked, is {first.dtype}"
            )
    return [_stack({index: arrays[k] for index, arrays in parts.items()}, sizes) for k in range(len(one.ours))]


def _stack(parts: Mapping[tuple[int, ...], LazyArray], sizes: Sequence[int], prefix: tuple[int, ...] = ()) -> LazyArray:
    if len(prefix) == len(sizes):
        return parts[prefix]
    return lazy.stack([_stack(parts, sizes, (*prefix, index)) for index in range(sizes[len(prefix)])])


def _at(array: LazyArray, index: Sequence[int]) -> LazyArray:
    for position in index:
        array = lazy.select(array, 0, position)
    return array


def _indices(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(size) for size in sizes))


def _leading_sizes(one: Row, shapes: Shapes) -> tuple[int, ...]:
    return shapes[one.ours[0]][: len(one.stacked)]


def _origin(one: Row, path: str) -> Origin:
    detail = f"part {one.ours.index(path) + 1} of {len(one.ours)}" if len(one.ours) > 1 else ""
    return Origin("renamed", one.theirs, detail)


def _check_paths(table: Sequence[str], ours: Mapping[str, LazyArray]) -> None:
    for path in table:
        if path not in ours:
            left_over = [other for other in ours if other not in table]
            raise UserError(f"the model has no parameter '{path}'{did_you_mean(path, left_over)}")
    for path in ours:
        if path not in table:
            raise UserError(f"the parameter '{path}' has no place in the other format{did_you_mean(path, table)}")


def _check_tensors(expected: Shapes, tensors: Mapping[str, LazyArray]) -> None:
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    if missing:
        name = missing[0]
        raise UserError(
            f"tensor '{name}' {list(expected[name])} is missing{_and_more(missing)}{did_you_mean(name, extra)}"
        )
    if extra:
        name = extra[0]
        near = did_you_mean(name, expected)
        raise UserError(
            f"tensor '{name}' {list(tensors[name].shape)} has no place in the model{_and_more(extra)}{near}"
        )
    for name, shape in expected.items():
        _check_tensor(name, shape, tensors[name], expected)


def _check_tensor(name: str, shape: tuple[int, ...], array: LazyArray, expected: Shapes) -> None:
    if array.shape != shape:
        alike = [other for other, its in expected.items() if its == array.shape]
        near = did_you_mean(name, alike, limit=1)
        reason = f"; that is the shape of another tensor{near}" if near else ""
        reason = "; it is transposed" if array.shape == shape[::-1] else reason
        raise UserError(
            f"tensor '{name}' is {list(array.shape)} where the configuration makes it {list(shape)}{reason}"
        )
    if array.dtype.name not in FLOATS:
        raise UserError(
            f"tensor '{name}' is {array.dtype}; tensors of {', '.join(FLOATS)} are read, quantised ones not"
        )


FLOATS = ("float32", "bfloat16", "float16", "float64")


def _and_more(names: Sequence[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
