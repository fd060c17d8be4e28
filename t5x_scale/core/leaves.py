"""Leaves of a model that is being converted: a lazy array, what its dimensions mean, and where it came from."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from t5x_scale.core.lazy import LazyArray

# From the most to the least of the original that is left.
KINDS = ("restored", "renamed", "copied", "scaled", "merged", "grown", "initialised", "dropped")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a tensor came from.

    Attributes:
      kind: one of `KINDS`.
      source: the tensor or tensors it was made of, as they are called where they lie; empty if there is none.
      detail: what was done, in a few words: "layers 0-23, 8-31", "rows 32000-32127 from the mean".
    """

    kind: str
    source: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of origin {self.kind!r}; known are {', '.join(KINDS)}")

    def then(self, kind: str, detail: str) -> Origin:
        """This origin after one more change: the stronger kind, both details."""
        stronger = max(self.kind, kind, key=KINDS.index)
        return Origin(stronger, self.source, "; ".join(text for text in (self.detail, detail) if text))

    def render(self) -> str:
        """`kind from source (detail)`."""
        text = f"{self.kind} from {self.source}" if self.source else self.kind
        return f"{text} ({self.detail})" if self.detail else text


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One tensor of a model.

    Attributes:
      array: its values, read when wanted.
      axes: logical names of its dimensions (`layers`, `embed`, ...), None where one has no name.
      origin: where it came from.
    """

    array: LazyArray
    axes: tuple[str | None, ...]
    origin: Origin

    def __post_init__(self) -> None:
        if len(self.axes) != self.array.ndim:
            raise ValueError(f"axes {self.axes} for a tensor of shape {list(self.array.shape)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all dimensions."""
        return self.array.shape

    def changed(self, array: LazyArray, kind: str, detail: str = "") -> Leaf:
        """The leaf with other values, and that on record."""
        return Leaf(array, self.axes, self.origin.then(kind, detail))


Leaves = Mapping[str, Leaf]


class OriginLine(NamedTuple):
    """What a report says of one tensor."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    origin: Origin


def render_origins(leaves: Leaves, dropped: Mapping[str, Origin] = {}) -> str:
    """The origin report of leaves and of what is gone; see `render_lines`."""
    lines = [OriginLine(path, leaf.shape, str(leaf.array.dtype), leaf.origin) for path, leaf in leaves.items()]
    return render_lines(lines, dropped)


def render_lines(lines: Sequence[OriginLine], dropped: Mapping[str, Origin] = {}) -> str:
    """An origin report: one line a tensor with path, shape, dtype and origin, then a line of totals."""
    rows = [(line.path, "x".join(map(str, line.shape)) or "scalar", line.dtype, line.origin.render()) for line in lines]
    rows += [(path, "", "", origin.render()) for path, origin in dropped.items()]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    text = [
        f"{path:<{widths[0]}}  {shape:>{widths[1]}}  {dtype:<{widths[2]}}  {origin}"
        for path, shape, dtype, origin in rows
    ]
    return "\n".join([*text, _summarize(lines, dropped.values())]) + "\n"


def _summarize(lines: Sequence[OriginLine], dropped: Iterable[Origin]) -> str:
    """How many tensors and elements there are, by kind of origin."""
    counts = collections.Counter(origin.kind for origin in (*(line.origin for line in lines), *dropped))
    parts = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts)
    elements = sum(math.prod(line.shape) for line in lines)
    return f"{len(lines)} tensors, {elements:,} elements: {parts}"
