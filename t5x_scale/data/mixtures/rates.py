"""From the rates in a configuration to the token share of every source.

A configuration names a task, a registered SeqIO mixture or `text:...`, or gives {name: rate}, where a name may again be
a mixture, such as an older one of which a share is replayed. Numbers can be computed from a source's size
(`Proportional`) and may change on the way (`RateSchedule`).

What rates count is their unit. Those in a configuration count tokens; those of a registered mixture count examples, as
they do in SeqIO, and turn into shares of the tokens by the mean number of tokens of an example. An example is a
document of the store.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.data.catalog import Catalog
from t5x_scale.data.mixtures.mixture_schedule import RatePlan
from t5x_scale.data.mixtures.named_mixture import NamedMixture, look_up
from t5x_scale.data.mixtures.rate_functions import (
    UNITS,
    Proportional,
    Rate,
    Rates,
    RateSchedule,
    SourceCounts,
    Unit,
    is_number,
)
from t5x_scale.data.token_store import TokenStore

__all__ = [
    "Proportional",
    "Rate",
    "RateSchedule",
    "Rates",
    "Resolved",
    "SourceCounts",
    "describe_shares",
    "list_sources",
    "resolve_mixture",
]


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What a run trains on.

    Attributes:
      plan: token shares by step.
      stores: {source: store} of every source that ever has a share.
    """

    plan: RatePlan
    stores: dict[str, TokenStore]


def resolve_mixture(given: Rates | RateSchedule, *, rate_unit: Unit | None, catalog: Catalog, split: str) -> Resolved:
    """Finds the sources behind names, opens their stores and computes their shares of the tokens.

    Args:
      given: a name, {name: rate}, or a schedule of these.
      rate_unit: what rates count. None: tokens in a configuration and examples in a registered mixture. "tokens" and
        "examples" hold for both.
      catalog: of the stores; those that are missing are built.
      split: of every source.

    Raises:
      UserError: an unknown name, a rate that is no rate, all rates zero, and what `Catalog.open` raises. Numbers are
        checked before a store is opened.
    """
    schedule = to_schedule(given)
    blends = [(step, _make_blend(rates, rate_unit, catalog)) for step, rates in schedule.pieces]
    opened = {name: catalog.open(name, split) for name in _sources(blends)}
    counts = {name: SourceCounts(name, store.num_tokens, store.num_documents) for name, store in opened.items()}
    pieces = tuple((step, blend.token_shares(counts)) for step, blend in blends)
    plan = RatePlan(pieces, schedule.kind == "linear", schedule.ramp_pieces)
    return Resolved(plan, {name: opened[name] for name in plan.names})


def list_sources(given: Rates | RateSchedule, catalog: Catalog) -> tuple[str, ...]:
    """The sources that `resolve_mixture` may draw from, sorted; opens no store.

    Raises:
      UserError: as `resolve_mixture`, for whatever needs no store.
    """
    schedule = to_schedule(given)
    return tuple(_sources([(step, _make_blend(rates, None, catalog)) for step, rates in schedule.pieces]))


def to_schedule(given: Rates | RateSchedule) -> RateSchedule:
    """Whatever a configuration gives, as a schedule."""
    return given if isinstance(given, RateSchedule) else RateSchedule(((0, given),))


def describe_shares(plan: RatePlan, stores: Mapping[str, TokenStore]) -> str:
    """A table of the shares of every piece of a plan, of the tokens and of the examples, for logs."""
    counts = {name: SourceCounts(name, store.num_tokens, store.num_documents) for name, store in stores.items()}
    width = max(len(name) for name in counts)
    lines = []
    for step, shares in plan.pieces:
        examples = normalised(_convert(shares, "tokens", "examples", counts))
        change = ", reached evenly" if plan.linear and step else ""
        lines.append(f"{f'from step {step}{change}':{width + 2}}  of the tokens  of the examples  tokens/example")
        lines += [
            f"  {name:{width}}  {share:13.4f}  {examples[name]:15.4f}  {_mean_tokens(counts[name]):14,.1f}"
            for name, share in sorted(shares.items())
            if share > 0
        ]
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Blend:
    """One mapping of names to rates, looked up."""

    terms: tuple[tuple[Rate, NamedMixture], ...]
    unit: Unit
    inner_unit: Unit

    def token_shares(self, counts: Mapping[str, SourceCounts]) -> dict[str, float]:
        """{source: share of the tokens}, summing to 1; sources without a share are absent."""
        num_examples = {name: count.num_documents for name, count in counts.items()}
        weights: dict[str, float] = {}
        for rate, named in self.terms:
            value = self._evaluate(rate, named, counts)
            if not value:
                continue
            inner = normalised(_convert(named.example_shares(num_examples), self.inner_unit, self.unit, counts))
            for name, share in inner.items():
                weights[name] = weights.get(name, 0.0) + value * share
        if not weights:
            raise UserError(f"all rates of {[named.name for _, named in self.terms]} are zero; give a positive one")
        return normalised(_convert(weights, self.unit, "tokens", counts))

    def _evaluate(self, rate: Rate, named: NamedMixture, counts: Mapping[str, SourceCounts]) -> float:
        if not callable(rate):
            return float(rate)
        parts = [counts[name] for name in named.sources]
        size = SourceCounts(
            named.name, sum(part.num_tokens for part in parts), sum(part.num_documents for part in parts), self.unit
        )
        value = rate(size)
        if not is_number(value):
            raise UserError(
                f"the rate of '{named.name}', {rate!r}, is {value!r} for {size}; a rate is a number from 0 on"
            )
        return float(value)


def _make_blend(rates: Rates, rate_unit: Unit | None, catalog: Catalog) -> _Blend:
    check_choice("rate_unit", rate_unit, (None, *UNITS))
    if isinstance(rates, str):
        rates = {rates: 1.0}
    if not isinstance(rates, Mapping):
        raise UserError(f"a mixture is a name or {{name: rate}}, not {rates!r}")
    if not rates:
        raise UserError("the mixture names no source")
    for name, rate in rates.items():
        _check_rate(name, rate)
    present = {name: rate for name, rate in rates.items() if callable(rate) or rate > 0}
    if not present:
        raise UserError(f"all rates are zero: {dict(rates)}; a rate is a positive number")
    terms = tuple((rate, look_up(name, catalog)) for name, rate in present.items())
    return _Blend(terms, rate_unit or "tokens", rate_unit or "examples")


def _check_rate(name: Any, rate: Any) -> None:
    if not isinstance(name, str):
        raise UserError(f"a mixture names its sources by strings, not by {name!r}")
    if isinstance(rate, RateSchedule):
        raise UserError(f"the rate of '{name}' is a RateSchedule: give the schedule in place of the whole mapping")
    if not callable(rate) and not is_number(rate):
        raise UserError(f"the rate of '{name}' is {rate!r}; a rate is a positive number, 0, or a function of its size")


def _sources(blends: Sequence[tuple[int, _Blend]]) -> list[str]:
    return sorted({name for _, blend in blends for _, named in blend.terms for name in named.sources})


def _convert(weights: Mapping[str, float], unit: str, to: str, counts: Mapping[str, SourceCounts]) -> dict[str, float]:
    """Weights that count `unit` as weights that count `to`."""
    if unit == to:
        return dict(weights)
    power = 1 if to == "tokens" else -1
    return {name: weight * _mean_tokens(counts[name]) ** power for name, weight in weights.items()}


def _mean_tokens(counts: SourceCounts) -> float:
    return counts.num_tokens / counts.num_documents


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """The same weights, summing to 1."""
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
