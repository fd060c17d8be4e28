"""Views that can be undone: what a row of a mapping table is written with.

Each operation takes a tuple of arrays to a tuple of arrays and knows its inverse, so that a table that reads another
system's tensors also writes them. Operations move elements and never change one: dtypes and bytes are preserved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from t5x_scale.core import lazy
from t5x_scale.core.lazy import LazyArray

Arrays = tuple[LazyArray, ...]


class Operation(Protocol):
    """A view that can be undone."""

    def apply(self, arrays: Arrays) -> Arrays:
        """The arrays seen another way."""
        ...

    def inverse(self) -> Operation:
        """What undoes `apply`."""
        ...


@dataclasses.dataclass(frozen=True)
class Transpose:
    """Dimension i of each result is dimension `order[i]`."""

    order: tuple[int, ...]

    def apply(self, arrays: Arrays) -> Arrays:
        """Transposes each."""
        return tuple(lazy.transpose(array, self.order) for array in arrays)

    def inverse(self) -> Transpose:
        """The transposition back."""
        return Transpose(_inverse_of(self.order))


@dataclasses.dataclass(frozen=True)
class Split:
    """Dimension `axis` of each becomes several of the given sizes, in row-major order."""

    axis: int
    sizes: tuple[int, ...]

    def apply(self, arrays: Arrays) -> Arrays:
        """Splits each."""
        return tuple(lazy.split_axis(array, self.axis, self.sizes) for array in arrays)

    def inverse(self) -> Merge:
        """The merge of what was split."""
        return Merge(self.axis, self.sizes)


@dataclasses.dataclass(frozen=True)
class Merge:
    """The dimensions from `axis` on, of the given sizes, become one."""

    axis: int
    sizes: tuple[int, ...]

    def apply(self, arrays: Arrays) -> Arrays:
        """Merges each.

        Raises:
          ValueError: the dimensions have other sizes.
        """
        for array in arrays:
            found = array.shape[self.axis : self.axis + len(self.sizes)]
            if found != self.sizes:
                raise ValueError(f"dimensions {list(found)} where {list(self.sizes)} are merged")
        return tuple(lazy.merge_axes(array, self.axis, len(self.sizes)) for array in arrays)

    def inverse(self) -> Split:
        """The split into the same sizes."""
        return Split(self.axis, self.sizes)


@dataclasses.dataclass(frozen=True)
class Unstack:
    """One array becomes `count`, one an index of dimension `axis`: the parts of a fused tensor."""

    axis: int
    count: int

    def apply(self, arrays: Arrays) -> Arrays:
        """The indices of the one array.

        Raises:
          ValueError: it does not have `count` of them.
        """
        (array,) = arrays
        if array.shape[self.axis] != self.count:
            raise ValueError(f"a dimension of {array.shape[self.axis]} is not unstacked into {self.count}")
        return tuple(lazy.select(array, self.axis, index) for index in range(self.count))

    def inverse(self) -> Stack:
        """Stacks the parts again."""
        return Stack(self.axis, self.count)


@dataclasses.dataclass(frozen=True)
class Stack:
    """`count` arrays of one shape become one, side by side along a new dimension `axis`."""

    axis: int
    count: int

    def apply(self, arrays: Arrays) -> Arrays:
        """The one array.

        Raises:
          ValueError: there are not `count` arrays of one shape and dtype.
        """
        if len(arrays) != self.count:
            raise ValueError(f"{len(arrays)} arrays where {self.count} are stacked")
        return (lazy.stack(arrays, self.axis),)

    def inverse(self) -> Unstack:
        """Takes the stack apart."""
        return Unstack(self.axis, self.count)


@dataclasses.dataclass(frozen=True)
class Permute:
    """Index i of dimension `axis` of each result is index `indices[i]`; `indices` is a permutation.

    A negative axis counts from the last.
    """

    axis: int
    indices: tuple[int, ...]

    def apply(self, arrays: Arrays) -> Arrays:
        """Permutes each."""
        return tuple(lazy.take(array, self.axis % array.ndim, self.indices) for array in arrays)

    def inverse(self) -> Permute:
        """The permutation back."""
        return Permute(self.axis, _inverse_of(self.indices))


def apply_all(operations: Sequence[Operation], arrays: Arrays) -> Arrays:
    """The operations one after another."""
    for operation in operations:
        arrays = operation.apply(arrays)
    return arrays


def inverse_of_all(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """What undoes `apply_all`: the inverses, the last one first."""
    return tuple(operation.inverse() for operation in reversed(operations))


def _inverse_of(permutation: Sequence[int]) -> tuple[int, ...]:
    if sorted(permutation) != list(range(len(permutation))):
        raise ValueError(f"{list(permutation)} is not a permutation")
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))
