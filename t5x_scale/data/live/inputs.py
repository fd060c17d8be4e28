"""From the names in a configuration to streams of examples.

A task, and `text:PATTERN`, is a stream. So is a registered SeqIO mixture: its tasks are sampled by its rates, which
count examples, as SeqIO does. What a configuration gives itself counts tokens: each name is a stream of its own, and
rows are dealt among them.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data import text_source
from t5x_scale.data.catalog import import_seqio_source
from t5x_scale.data.live.examples import (
    Document,
    Example,
    ExampleSource,
    ExampleStream,
    RepeatedExamples,
    SampledExamples,
)
from t5x_scale.data.mixtures.mixture_schedule import RatePlan
from t5x_scale.data.mixtures.rate_functions import Rates, RateSchedule, Unit, is_number
from t5x_scale.data.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# What the one stream is called that rates by examples make of several names.
ALL = "mixture"


@dataclasses.dataclass(frozen=True)
class LiveInput:
    """One stream of examples: a source, or several sampled by `rates`.

    Attributes:
      name: as the configuration has it.
      sources: tasks or text files.
      rates: examples of each, summing to 1.
    """

    name: str
    sources: tuple[ExampleSource, ...]
    rates: tuple[float, ...] = (1.0,)

    @property
    def description(self) -> dict[str, Any]:
        """What the examples depend on, as JSON values."""
        return {"sources": [dict(source.description) for source in self.sources], "rates": list(self.rates)}

    def stream(
        self,
        shard: int,
        shards: int,
        *,
        seed: int,
        shuffle_buffer: int,
        max_epochs: float | Mapping[str, float] | None,
    ) -> ExampleStream:
        """The examples of a shard; see `RepeatedExamples`. Caps are looked up by source, then by `name`."""

        def repeated(source: ExampleSource) -> RepeatedExamples:
            cap = max_epochs
            if isinstance(cap, Mapping):
                cap = cap.get(source.name, cap.get(self.name, 1.0))
            return RepeatedExamples(source, shard, shards, seed=seed, shuffle_buffer=shuffle_buffer, max_epochs=cap)

        if len(self.sources) == 1:
            return repeated(self.sources[0])
        return SampledExamples(self.name, [repeated(s) for s in self.sources], self.rates, seed=seed, shard=shard)

    def summary(self, shards: int) -> str:
        """What to say of it in logs."""
        several = f"{len(self.sources)} tasks sampled by examples" if len(self.sources) > 1 else "one source"
        if shards == 1:
            return f"{several}, read live"
        by_files = sum(source.is_sharded_by_files(shards) for source in self.sources)
        return f"{several}, read live; {by_files} of {len(self.sources)} have files enough for {shards} shards"


@dataclasses.dataclass(frozen=True)
class LiveNames:
    """Finds what names stand for.

    Attributes:
      split: of every source.
      vocabulary: of the run.
      task_modules: dotted names of the modules that register SeqIO tasks.
    """

    split: str
    vocabulary: Vocabulary
    task_modules: Sequence[str] = ()

    def source(self, name: str) -> ExampleSource:
        """A task, or text files."""
        if text_source.is_text_source(name):
            return TextExamples(name, self.split, self.vocabulary)
        import_seqio_source(self.task_modules)
        from t5x_scale.data.seqio_source.live import SeqioExamples

        return SeqioExamples(name, self.split, self.vocabulary)

    def shares(self, name: str) -> dict[str, float]:
        """{source: share of the examples} of a registered mixture; of anything else {name: 1}.

        Tasks without the split are left out, as SeqIO does, and that is said.
        """
        if text_source.is_text_source(name):
            return {name: 1.0}
        registry = import_seqio_source(self.task_modules)
        if not registry.is_mixture(name):
            return {name: 1.0}
        from t5x_scale.data.seqio_source.live import samples_by_rates

        if not samples_by_rates(name):
            logger.warning("the mixture '%s' has a sample_fn of its own; its tasks are sampled by their rates", name)
        shares = {task: share for task, share in registry.task_or_mixture_names(name).items() if share > 0}
        missing = [task for task in shares if self.split not in registry.get_task(task).splits]
        if missing:
            logger.warning("tasks of '%s' without a split '%s' are left out: %s", name, self.split, ", ".join(missing))
        kept = {task: share for task, share in sorted(shares.items()) if task not in missing}
        if not kept:
            raise UserError(f"no task of the mixture '{name}' has a split '{self.split}'")
        return {task: share / sum(kept.values()) for task, share in kept.items()}

    def mixed(self, name: str, shares: Mapping[str, float]) -> LiveInput:
        """The stream of sources sampled by shares of the examples."""
        total = sum(shares.values())
        names = sorted(shares)
        return LiveInput(
            name, tuple(self.source(source) for source in names), tuple(shares[source] / total for source in names)
        )


def resolve_live(
    given: Rates | RateSchedule, *, rate_unit: Unit | None, names: LiveNames
) -> tuple[RatePlan, dict[str, LiveInput]]:
    """The streams of a run and their shares of the rows: the live counterpart of `rates.resolve_mixture`.

    Args:
      given: a name, {name: rate}, or a schedule of these.
      rate_unit: what rates count. None: tokens in a configuration, a stream for each name, and examples in a registered
        mixture. "tokens": the tasks of registered mixtures become streams of their own. "examples": everything is
        sampled into one stream.
      names: finds what names stand for.

    Returns:
      (shares by step, {stream: its examples}).

    Raises:
      UserError: an unknown name, or rates that a live stream cannot have.
    """
    schedule = given if isinstance(given, RateSchedule) else RateSchedule(((0, given),))
    pieces = [(step, _numbers(rates)) for step, rates in schedule.pieces]
    if rate_unit == "examples":
        if len(pieces) > 1:
            raise UserError(
                "a schedule of rates needs rate_unit = 'tokens' where data is live: give shares of the tokens"
            )
        shares = _expand(pieces[0][1], names)
        only = next(iter(pieces[0][1]))
        name = only if len(pieces[0][1]) == 1 else ALL
        return RatePlan.constant({name: 1.0}), {name: names.mixed(name, shares)}
    if rate_unit == "tokens":
        pieces = [(step, _expand(rates, names)) for step, rates in pieces]
    plan = RatePlan(tuple(pieces), schedule.kind == "linear", schedule.ramp_pieces)
    return plan, {name: names.mixed(name, names.shares(name)) for name in plan.names}


def _expand(rates: Mapping[str, float], names: LiveNames) -> dict[str, float]:
    """Rates of sources from rates of names, which may be mixtures."""
    expanded: dict[str, float] = {}
    for name, rate in rates.items():
        for source, share in names.shares(name).items():
            expanded[source] = expanded.get(source, 0.0) + rate * share
    return expanded


def _numbers(rates: Rates) -> dict[str, float]:
    """{name: positive rate}."""
    if isinstance(rates, str):
        return {rates: 1.0}
    if not isinstance(rates, Mapping) or not rates:
        raise UserError(f"a mixture is a name or {{name: rate}}, not {rates!r}")
    for name, rate in rates.items():
        if callable(rate):
            raise UserError(
                f"the rate of '{name}' is computed from its size, which nobody knows of a live stream: give a number, "
                "or train from a token store (delivery = 'store')"
            )
        if not isinstance(name, str) or not is_number(rate):
            raise UserError(f"the rate of {name!r} is {rate!r}; a rate is a positive number, or 0")
    positive = {name: float(rate) for name, rate in rates.items() if rate > 0}
    if not positive:
        raise UserError(f"all rates are zero: {dict(rates)}; a rate is a positive number")
    return positive


class TextExamples:
    """Text files (`text:PATTERN`); the interface is `ExampleSource`. A file is an example; every shard has its own."""

    def __init__(self, name: str, split: str, vocabulary: Vocabulary):
        self.name = name
        described = text_source.describe_source(name, split)
        # Times of files are no content.
        self.description = {key: value for key, value in described.items() if key != "listing"}
        self._split, self._vocabulary = split, vocabulary

    def is_sharded_by_files(self, shards: int) -> bool:
        """See `SeqioExamples`."""
        del shards
        return True

    def open(self, epoch: int, shard: int, shards: int) -> Iterator[Example]:
        """As `ExampleSource.open`; the features are the stretches of a file that are tokenised apart."""
        del epoch
        for file, start, stop in itertools.islice(text_source.list_ranges(self.name, self._split), shard, None, shards):
            records = text_source.read_range(file, start, stop)
            yield tuple(piece.encode() for record in records for piece in record.targets)

    def encode(self, examples: Sequence[Example]) -> list[Document]:
        """As `ExampleSource.encode`."""
        pieces = self._vocabulary.encode_arrays([piece.decode() for example in examples for piece in example])
        ends = list(itertools.accumulate(len(example) for example in examples))
        begins = [0, *ends[:-1]]
        return [Document(np.concatenate(pieces[begin:end])) for begin, end in zip(begins, ends, strict=True)]
