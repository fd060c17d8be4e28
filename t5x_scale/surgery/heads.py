"""Heads: more of them without a change of the function, or fewer of keys and values."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.leaves import Leaf, Leaves
from t5x_scale.models.architecture import Architecture
from t5x_scale.surgery.checks import check_at_least, check_divides
from t5x_scale.surgery.interface import Slot, Surgery
from t5x_scale.surgery.width import reads


@dataclasses.dataclass(frozen=True)
class WidenHeads(Surgery):
    """More heads, of queries, of keys and values, or of both. The function stays.

    Query head n reads kv head n // (heads / kv heads), so three things can be done, alone or the first two together:

      more queries a kv head    each kv head keeps its query heads and gets others behind them
      more kv heads             each is repeated a whole number of times and its query heads are dealt out to the copies
                                in their order (multi-query to grouped-query to multi-head attention)
      more of both, as many queries a kv head as before    new heads come behind all others (multi-head attention)

    New query heads are copies of others that read the same keys, and what `out` makes of them is zero.

    Attributes:
      num_heads: query heads after the surgery.
      num_kv_heads: kv heads after the surgery; None keeps their number, or that there is one a query head.
    """

    num_heads: int
    num_kv_heads: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "num_heads", *["num_kv_heads"] * (self.num_kv_heads is not None))

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same with more heads; the size of a head, and with it the scale of its logits, stays."""
        plan = self._plan(architecture)
        return architecture.with_config(num_heads=len(plan.queries), num_kv_heads=len(plan.kv_heads))

    def change_leaves(self, leaves: Leaves, architecture: Architecture | None, slot: Slot) -> Leaves:
        """See `Surgery.change_leaves`."""
        plan = self._plan(self.need_architecture(architecture))
        return {path: _change_heads(leaf, plan, slot) for path, leaf in leaves.items()}

    def _plan(self, architecture: Architecture) -> HeadPlan:
        config = architecture.config
        kept = self.num_heads if config.num_kv_heads == config.num_heads else config.num_kv_heads
        after = kept if self.num_kv_heads is None else self.num_kv_heads
        return plan_heads(config.num_heads, config.num_kv_heads, self.num_heads, after)


@dataclasses.dataclass(frozen=True)
class HeadPlan:
    """What every head is after a surgery.

    Attributes:
      queries: old query head that each is; new ones are numbered on from the last old one.
      query_sources: old query head that each new one is a copy of.
      kv_heads: the same for kv heads, in which old ones may be repeated.
      kv_sources: old kv head that each new one is a copy of.
      copies: how often each old kv head is there.
    """

    queries: Sequence[int]
    query_sources: Sequence[int]
    kv_heads: Sequence[int]
    kv_sources: Sequence[int] = ()
    copies: int = 1


@functools.lru_cache(maxsize=8)
def plan_heads(heads: int, kv_heads: int, new_heads: int, new_kv_heads: int) -> HeadPlan:
    """The plan from (heads, kv_heads) to (new_heads, new_kv_heads).

    Raises:
      UserError: no arrangement of the heads keeps the function.
    """
    numbers = f"WidenHeads: from {heads} heads on {kv_heads} kv heads to {new_heads} on {new_kv_heads}"
    if new_heads < heads or new_kv_heads < kv_heads or (new_heads, new_kv_heads) == (heads, kv_heads):
        raise UserError(f"{numbers} is no widening; MergeKvHeads makes fewer kv heads")
    if new_heads % new_kv_heads:
        raise UserError(f"{numbers}: {new_heads} is not a multiple of {new_kv_heads}")
    more, group = new_heads - heads, heads // kv_heads
    if new_heads // new_kv_heads == group:
        sources = [index % kv_heads for index in range(new_kv_heads - kv_heads)]
        copied = [sources[index // group] * group + index % group for index in range(more)]
        return HeadPlan(range(new_heads), copied, range(new_kv_heads), sources)
    if new_kv_heads % kv_heads:
        raise UserError(
            f"{numbers}: neither does every kv head keep {group} query heads, nor can all be repeated equally often"
        )
    copies, room = new_kv_heads // kv_heads, new_heads // kv_heads
    queries, copied = [], []
    for kv_head in range(kv_heads):
        old = range(kv_head * group, (kv_head + 1) * group)
        added = range(heads + len(copied), heads + len(copied) + room - group)
        queries += [*old, *added]
        copied += [old[index % group] for index in range(room - group)]
    repeated = [index // copies for index in range(new_kv_heads)]
    return HeadPlan(queries, copied, repeated, copies=copies)


def _change_heads(leaf: Leaf, plan: HeadPlan, slot: Slot) -> Leaf:
    if "heads" in leaf.axes:
        axis = leaf.axes.index("heads")
        added = _add_heads(leaf, axis, plan.query_sources, slot)
        changed = lazy.take(added, axis, plan.queries)
        detail = f"{len(plan.query_sources)} heads" + (" with zero output" if reads(leaf, axis) else " copied")
    elif "kv_heads" in leaf.axes:
        axis = leaf.axes.index("kv_heads")
        # The query heads of one are dealt out to its copies. What they tell it is about unrelated, so squares add up.
        shared = slot.carry(leaf.array, 1.0, 1 / plan.copies, 1 / plan.copies)
        added = _add_heads(dataclasses.replace(leaf, array=shared), axis, plan.kv_sources, slot)
        changed = lazy.take(added, axis, plan.kv_heads)
        detail = f"{leaf.shape[axis]} kv heads to {len(plan.kv_heads)}"
    else:
        return leaf
    if changed.shape == leaf.shape:
        return leaf
    return leaf.changed(changed, "grown" if leaf.shape[axis] < added.shape[axis] else "copied", detail)


def _add_heads(leaf: Leaf, axis: int, sources: Sequence[int], slot: Slot) -> LazyArray:
    """The heads there are and, behind them, new ones."""
    if not sources:
        return leaf.array
    copied = lazy.take(leaf.array, axis, sources)
    new = lazy.full(copied.shape, copied.dtype) if reads(leaf, axis) else copied
    return lazy.concatenate([leaf.array, slot.new(new, leaf.array, axis)], axis)


@dataclasses.dataclass(frozen=True)
class MergeKvHeads(Surgery):
    """Fewer kv heads, each the mean of neighbours: multi-head to grouped-query or multi-query attention.

    Ainslie et al. 2023 (arXiv 2305.13245), who then train on for 5 % of the original steps. The function changes, so
    the optimiser starts afresh unless asked to map.

    Attributes:
      num_kv_heads: after the surgery; a divisor of their number before.
    """

    num_kv_heads: int

    optimizer: str = dataclasses.field(default="reset", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "num_kv_heads")

    def change_architecture(self, architecture: Architecture) -> Architecture:
        """The same with fewer kv heads."""
        return architecture.with_config(num_kv_heads=self.num_kv_heads)

    def change_leaves(self, leaves: Leaves, architecture: Architecture | None, slot: Slot) -> Leaves:
        """See `Surgery.change_leaves`."""
        before = self.need_architecture(architecture).config.num_kv_heads
        check_divides(self, "num_kv_heads", before, "the number of kv heads")
        if self.num_kv_heads == before:
            raise UserError(f"MergeKvHeads.num_kv_heads is {before}; the model has as many already")
        return {
            path: self._merge(leaf, leaf.axes.index("kv_heads"), slot) if "kv_heads" in leaf.axes else leaf
            for path, leaf in leaves.items()
        }

    def _merge(self, leaf: Leaf, axis: int, slot: Slot) -> Leaf:
        size = leaf.shape[axis] // self.num_kv_heads
        members = [lazy.take(leaf.array, axis, range(first, leaf.shape[axis], size)) for first in range(size)]
        # The gradient of what several queries now share is the sum of those of the parts.
        total = lazy.elementwise(lambda *blocks: sum(block.astype("float32") for block in blocks), *members, dtype="f4")
        merged = lazy.cast(slot.carry(total, 1 / size, 1.0), leaf.array.dtype)
        return leaf.changed(merged, "merged", f"each kv head the mean of {size}")
