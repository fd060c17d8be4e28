"""Positions: longer contexts by other frequencies of RoPE, or by longer tables.

RoPE has no parameters: there the architecture alone changes, and every tensor is what it was. What the model computes
changes with it at all positions, so a stage of training at the new length belongs to each of these.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.core.lazy import LazyArray, Region
from t5x_scale.core.leaves import Leaves
from t5x_scale.models.architecture import ROPE_SCALINGS, Architecture, RopeScalingValues
from t5x_scale.surgery.checks import check_at_least, check_range
from t5x_scale.surgery.interface import Slot, Surgery

TABLE = "position_embedder/embedding"


@dataclasses.dataclass(frozen=True)
class ChangeRopeBase(Surgery):
    """Another base of RoPE: a larger one turns all pairs of features more slowly.

    Xiong et al. 2023 (arXiv 2309.16039) train on with 500,000 instead of 10,000 for 32,768 positions, Code Llama
    (Roziere et al. 2023, arXiv 2308.12950) with 1,000,000 for 16,384.

    Attributes:
      base: after the surgery.
      max_length: the context to put on record; None keeps what is there.
    """

    base: float
    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, 1.0, math.inf, "base")
        check_at_least(self, 1, *["max_length"] * (self.max_length is not None))

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same with another base."""
        length = architecture.max_length if self.max_length is None else self.max_length
        return dataclasses.replace(architecture, rope_base=float(self.base), max_length=length)

    def change_leaves(self, leaves: Leaves, architecture: Architecture | None, slot: Slot) -> Leaves:
        """See `Surgery.change_leaves`."""
        _check_rope(self, self.need_architecture(architecture))
        return leaves


@dataclasses.dataclass(frozen=True)
class ScaleRope(Surgery):
    """Scaled frequencies of RoPE: linear interpolation, NTK-aware, YaRN or Llama 3.1's.

    Attributes:
      kind: `linear`, `ntk`, `yarn` or `llama3`.
      factor: how many times longer the context becomes.
      original_length: the context trained on; None is that on record. Its product with `factor` is then on record.
      low_frequency_factor, high_frequency_factor, beta_fast, beta_slow, attention_factor, truncate: see
        `RopeScalingValues`.
      replace: whether a scaling that the model has already is thrown away. Two do not add up, so without this such a
        model is refused.
    """

    kind: str
    factor: float
    original_length: int | None = None
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    replace: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("ScaleRope.kind", self.kind, ROPE_SCALINGS)
        check_range(self, 1.0, math.inf, "factor")
        check_at_least(self, 1, *["original_length"] * (self.original_length is not None))

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same with scaled frequencies and the longer context on record."""
        original = self._original_length(architecture)
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(RopeScalingValues)}
        scaling = RopeScalingValues(**(settings | {"original_length": original or None}))
        return dataclasses.replace(architecture, rope_scaling=scaling, max_length=int(original * self.factor))

    def change_leaves(self, leaves: Leaves, architecture: Architecture | None, slot: Slot) -> Leaves:
        """See `Surgery.change_leaves`."""
        architecture = self.need_architecture(architecture)
        _check_rope(self, architecture)
        if architecture.rope_scaling and not self.replace:
            there = architecture.rope_scaling
            raise UserError(
                f"the model has a {there.kind} scaling of RoPE by {there.factor:g} already; ScaleRope.replace = True "
                "puts another in its place"
            )
        if self.kind in ("yarn", "llama3") and not self._original_length(architecture):
            raise UserError(f"ScaleRope.original_length is needed for {self.kind!r}: the context is not on record")
        return leaves

    def _original_length(self, architecture: Architecture) -> int:
        """The context trained on, 0 if it is not known."""
        before = architecture.rope_scaling
        on_record = before.original_length if before and before.original_length else architecture.max_length
        return self.original_length or on_record


@dataclasses.dataclass(frozen=True)
class ResizePositions(Surgery):
    """A longer or shorter table of learned positions. Shorter is the first rows of it.

    Attributes:
      max_length: rows after the surgery.
      how: `copy` repeats the table behind itself, which leaves the function of short contexts what it was and gives
        long ones local order from the first step on; `interpolate` stretches the table, its ends onto the new ends,
        which changes the function at all positions.
    """

    max_length: int
    how: str = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("ResizePositions.how", self.how, ("copy", "interpolate"))
        check_at_least(self, 1, "max_length")

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same with another number of positions."""
        return dataclasses.replace(architecture, max_length=self.max_length)

    def change_leaves(self, leaves: Leaves, architecture: Architecture | None, slot: Slot) -> Leaves:
        """See `Surgery.change_leaves`."""
        architecture = self.need_architecture(architecture)
        if architecture.positions != "learned":
            raise UserError(
                f"ResizePositions resizes a table, and this model's positions are {architecture.positions!r}"
                + ("; see ScaleRope and ChangeRopeBase" if architecture.positions == "rope" else "")
            )
        if TABLE not in leaves:
            return leaves
        leaf = leaves[TABLE]
        old, new = leaf.shape[0], self.max_length
        if new <= old:
            changed = leaf.changed(lazy.take_slice(leaf.array, 0, 0, new), "copied", f"rows 0-{new - 1} of {old}")
        elif self.how == "interpolate":
            stretched = slot.new(stretch(leaf.array, new), leaf.array, 0)
            changed = leaf.changed(stretched, "grown", f"{old} rows interpolated to {new}")
        else:
            copies = lazy.take(leaf.array, 0, [row % old for row in range(old, new)])
            longer = lazy.concatenate([leaf.array, slot.new(copies, leaf.array, 0)], 0)
            changed = leaf.changed(longer, "grown", f"rows {old}-{new - 1} repeat the first {old}")
        return {**leaves, TABLE: changed}


def stretch(table: LazyArray, length: int) -> LazyArray:
    """A table [rows, ...] interpolated linearly to [length, ...] rows; the first and the last stay what they are."""
    place = np.linspace(0.0, table.shape[0] - 1, length)
    low = np.minimum(place.astype(np.int64), max(0, table.shape[0] - 2))
    high = np.minimum(low + 1, table.shape[0] - 1)
    share = (place - low).astype(np.float32)
    below, above = lazy.take(table, 0, low), lazy.take(table, 0, high)

    def read(region: Region) -> np.ndarray:
        weight = share[region[0]].reshape(-1, *[1] * (table.ndim - 1))
        left, right = below.read(region).astype(np.float32), above.read(region).astype(np.float32)
        return ((1 - weight) * left + weight * right).astype(table.dtype)

    return LazyArray((length, *table.shape[1:]), table.dtype, read, table.outer)


def _check_rope(surgery: Surgery, architecture: Architecture) -> None:
    if architecture.positions != "rope":
        name = type(surgery).__name__
        see = "; see ResizePositions" if architecture.positions == "learned" else ""
        raise UserError(f"{name} changes RoPE, and this model's positions are {architecture.positions!r}{see}")
