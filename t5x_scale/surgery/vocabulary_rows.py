"""Tables with other rows: every tensor that has the axis `vocab`, wherever in the tensor it is.

New rows stand at the mean of the rows there are (Hewitt 2021, "Initializing new word embeddings for pretrained language
models"). In an output table that has a bound: the logit of the mean row is the mean of the logits, whose exponential is
at most the mean of their exponentials, so a new row takes at most one row's average share of the probability. A row of
zeros has the logit 0, which may be far above all others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from t5x_scale.core import lazy
from t5x_scale.core.lazy import LazyArray, Region
from t5x_scale.core.leaves import Leaf
from t5x_scale.surgery.interface import Slot
from t5x_scale.surgery.merge_views import in_parts

VOCAB = "vocab"
BLOCK_BYTES = 16 * 2**20
# Rows of which others are the mean lie scattered, so many are looked up together.
DRAWN_ELEMENTS = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class RowPlan:
    """What every row of a table is.

    Attributes:
      kept: int64, for every row the old row that it is, -1 where it is new.
      sources: old rows whose mean a new row is; those that are not named begin at the mean of all.
      real: number of old rows, from the first on, that mean something; means are taken over these.
      noise: added to every new row, in standard deviations of each feature. Equal rows of an output table have equal
        logits, and differ in nothing until the data have told them apart.
      seed: of the noise.
    """

    kept: np.ndarray
    sources: Mapping[int, Sequence[int]]
    real: int
    noise: float = 0.0
    seed: int = 0

    @property
    def is_identity(self) -> bool:
        """Whether every row that is left is where it was; the old table may have had more."""
        return np.array_equal(self.kept, np.arange(self.kept.size))

    def count(self) -> dict[str, int]:
        """How many rows are kept, the mean of some, or from the mean of all."""
        kept = int((self.kept >= 0).sum())
        return {"kept": kept, "averaged": len(self.sources), "from_mean": self.kept.size - kept - len(self.sources)}

    def render(self) -> str:
        """`rows 32000-32127: 3 averaged, 125 from the mean` where the new rows are one run, else counts of all."""
        words = {name: f"{number} {name.replace('_', ' the ')}" for name, number in self.count().items() if number}
        new = np.flatnonzero(self.kept < 0)
        if not new.size or new[-1] - new[0] + 1 != new.size:
            return "rows: " + ", ".join(words.values())
        words.pop("kept", None)
        return f"rows {new[0]}-{new[-1]}: " + ", ".join(words.values())


class Statistics(NamedTuple):
    """Mean and standard deviation of every feature, float64."""

    mean: np.ndarray
    stddev: np.ndarray


def change_rows(leaf: Leaf, plan: RowPlan, slot: Slot, path: str) -> Leaf:
    """The leaf with the rows that `plan` says; itself if they are those it has.

    Args:
      leaf: one of its axes is `vocab`.
      plan: for the rows it has.
      slot: what it is; moments of all rows that are new begin as those of new elements do.
      path: names its noise.
    """
    axis = leaf.axes.index(VOCAB)
    if plan.is_identity and plan.kept.size == leaf.shape[axis]:
        return leaf
    order = (axis, *(other for other in range(leaf.array.ndim) if other != axis))
    table = _change_table(lazy.transpose(leaf.array, order), plan, slot, path)
    array = lazy.transpose(table, np.argsort(order).tolist())
    return leaf.changed(array, "grown" if (plan.kept < 0).any() else "copied", plan.render())


def _change_table(table: LazyArray, plan: RowPlan, slot: Slot, path: str) -> LazyArray:
    new = np.flatnonzero(plan.kept < 0)
    if not new.size:
        return lazy.take(table, 0, plan.kept)
    measure = feature_statistics(lazy.take_slice(table, 0, 0, plan.real))
    mean = LazyArray(
        (1, *table.shape[1:]), table.dtype, lambda region: measure().mean[None][region].astype(table.dtype)
    )
    added = slot.new(_draw_rows(table, plan, new, measure, path), mean, 0)
    places = plan.kept.copy()
    places[new] = table.shape[0] + np.arange(new.size)
    return lazy.take(lazy.concatenate([table, added], 0), 0, places)


def feature_statistics(table: LazyArray) -> Callable[[], Statistics]:
    """Statistics over the rows of a table [rows, ...], read once, in blocks, when first asked for."""

    @functools.cache
    def measure() -> Statistics:
        total = np.zeros(table.shape[1:], np.float64)
        squares = np.zeros_like(total)
        for region in lazy.blocks(table, BLOCK_BYTES):
            block = table.read(region).astype(np.float64)
            total[region[1:]] += block.sum(axis=0)
            squares[region[1:]] += np.square(block, out=block).sum(axis=0)
        mean = total / table.shape[0]
        return Statistics(mean, np.sqrt(np.maximum(0.0, squares / table.shape[0] - mean**2)))

    return measure


def _draw_rows(
    table: LazyArray, plan: RowPlan, new: np.ndarray, measure: Callable[[], Statistics], path: str
) -> LazyArray:
    """The new rows as parameters: [number of new rows, ...]."""
    shape = (new.size, *table.shape[1:])
    units = lazy.normal(shape, np.float32, 1.0, plan.seed, f"{path}/rows")

    def read(region: Region) -> np.ndarray:
        rows, features = region[0], region[1:]
        groups = [plan.sources.get(int(row), ()) for row in new[rows]]
        block = np.empty([part.stop - part.start for part in region], np.float64)
        if not all(groups):
            block[...] = measure().mean[features]
        averaged = [place for place, group in enumerate(groups) if group]
        if averaged:
            block[averaged] = _average(table, [groups[place] for place in averaged], features)
        if plan.noise:
            block += plan.noise * measure().stddev[features] * units.read(region)
        return block.astype(table.dtype)

    return in_parts(LazyArray(shape, table.dtype, read), DRAWN_ELEMENTS)


def _average(table: LazyArray, groups: Sequence[Sequence[int]], features: Region) -> np.ndarray:
    """float64 [groups, features]: the mean of the rows of each group, none of which is empty."""
    used, places = np.unique(np.concatenate(groups), return_inverse=True)
    values = lazy.take(table, 0, used).read((slice(None), *features)).astype(np.float64)
    sizes = np.array([len(group) for group in groups])
    starts = np.cumsum(sizes) - sizes
    total = np.add.reduceat(values[places], starts, axis=0)
    return total / sizes.reshape(-1, *[1] * (total.ndim - 1))
