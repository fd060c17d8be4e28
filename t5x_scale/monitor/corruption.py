"""Whether the devices still count right: silent data corruption, found by comparing bits.

A chip that miscounts raises no error. Three comparisons find it: the same gradients of the same state and batch,
computed twice by the same program; the copies that several devices hold of the same shard of the state; and a fixed
piece of work, whose result is the same on all devices of a kind. Only what differs between devices names one: a wrong
term of a gradient is spread over all of them by the sum.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5x_scale.core.checks import check_kind, check_whole

GRADIENTS, COPIES, ANSWERS = "gradients", "copies", "answers"
_WORDS = {
    GRADIENTS: "computing the same gradients twice gave different bits",
    COPIES: "copies of the same values differ between devices",
    ANSWERS: "the same piece of work gave another result than on other devices",
}
_MOST_NAMED = 8


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """When devices are asked whether they count right.

    A probe costs two steps without the optimiser, the memory of one set of gradients, and once the time to compile it.
    On GPUs it needs their deterministic kernels (XLA_FLAGS=--xla_gpu_deterministic_ops=true).

    Attributes:
      every_steps: between two probes; 0 is never.
      stop: whether the run ends where bits differ; it is said in any case.
    """

    every_steps: int = 0
    stop: bool = False

    def __post_init__(self) -> None:
        check_whole(self, 0, "every_steps")
        check_kind(self, bool, "stop")

    def is_due(self, step: int) -> bool:
        """Whether to probe after `step` steps."""
        return bool(self.every_steps) and step > 0 and step % self.every_steps == 0


@dataclasses.dataclass(frozen=True)
class Difference:
    """Bits that should be equal and are not.

    Attributes:
      kind: `gradients`, `copies` or `answers`.
      devices: ids of the devices that hold them. Of a gradient these need not be the ones that miscounted.
      arrays: names of the arrays in question; none for `answers`.
    """

    kind: str
    devices: tuple[int, ...]
    arrays: tuple[str, ...] = ()

    def render(self) -> str:
        """In a sentence."""
        words = f"{_WORDS[self.kind]} on device {_list(self.devices)}"
        return words + (f", in {_list(self.arrays)}" if self.arrays else "")

    def to_event(self) -> dict[str, Any]:
        """As details of an event."""
        arrays = list(self.arrays[:_MOST_NAMED])
        return {"kind": self.kind, "devices": list(self.devices), "arrays": arrays, "num_arrays": len(self.arrays)}


def compare_twice(
    first: np.ndarray, second: np.ndarray, devices: Sequence[int], names: Sequence[str]
) -> Difference | None:
    """Compares two fingerprints of the same, each uint32 [devices, arrays, 2]; None where they are equal."""
    differs = np.any(first != second, axis=-1)
    if not differs.any():
        return None
    return Difference(GRADIENTS, *_named(differs, devices, names))


def compare_copies(
    prints: np.ndarray, shards: Sequence[Sequence[Any]], devices: Sequence[int], names: Sequence[str]
) -> Difference | None:
    """Compares what devices hold alike.

    Args:
      prints: fingerprints, uint32 [devices, arrays, 2].
      shards: for each array, which shard each device holds: anything that is equal for copies.
      devices: ids, in order.
      names: of the arrays.
    """
    differs = np.zeros(prints.shape[:2], bool)
    for column, places in enumerate(shards):
        groups = collections.defaultdict(list)
        for row, place in enumerate(places):
            groups[place].append(row)
        for rows in groups.values():
            differs[_odd_ones(prints[rows, column], rows), column] = True
    return Difference(COPIES, *_named(differs, devices, names)) if differs.any() else None


def compare_answers(answers: np.ndarray, devices: Sequence[int]) -> Difference | None:
    """Compares results of the same work, uint32 [devices]."""
    odd = _odd_ones(answers[:, None], list(range(len(answers))))
    return Difference(ANSWERS, tuple(devices[row] for row in odd)) if odd else None


def _odd_ones(prints: np.ndarray, rows: Sequence[int]) -> list[int]:
    """Those of `rows` whose print is not the commonest; all of them where none is."""
    counts = collections.Counter(map(bytes, prints))
    if len(counts) == 1:
        return []
    (common, most), (_, next_most), *_ = counts.most_common()
    is_tied = most == next_most
    return [row for row, own in zip(rows, prints, strict=True) if is_tied or bytes(own) != common]


def _named(
    differs: np.ndarray, devices: Sequence[int], names: Sequence[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    rows, columns = np.nonzero(differs.any(axis=1))[0], np.nonzero(differs.any(axis=0))[0]
    return tuple(devices[row] for row in rows), tuple(names[column] for column in columns)


def _list(values: Sequence[Any]) -> str:
    more = len(values) - _MOST_NAMED
    return ", ".join(map(str, values[:_MOST_NAMED])) + (f" and {more} more" if more > 0 else "")
