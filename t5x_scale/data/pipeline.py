"""The data of a run: from a configuration to the batches of every step.

names and rates -> catalog: token stores -> BatchSource: batch(step)      training
                                         -> EvalSource: batch(index)      evaluation
                -> SeqIO                 -> LiveSource: batch(step)       training, `delivery = "live"`
"""

from __future__ import annotations

import dataclasses
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from t5x_scale.core import files
from t5x_scale.core.batch import POSITIONS, PREFIX, REQUIRED, SEGMENT_IDS
from t5x_scale.core.errors import UserError, check_choice, did_you_mean
from t5x_scale.data.batch_schedule import BatchSchedule, make_batch_schedule
from t5x_scale.data.batch_source import BatchSource
from t5x_scale.data.catalog import Catalog
from t5x_scale.data.eval_source import EvalSource
from t5x_scale.data.live.pipeline import make_live_pipeline, open_live_eval_stores
from t5x_scale.data.live.source import LiveSource
from t5x_scale.data.mixtures.rates import Rate, Rates, RateSchedule, list_sources, resolve_mixture
from t5x_scale.data.objectives import CausalLm, Objective
from t5x_scale.data.rows.delivery import Packing, Windows
from t5x_scale.data.skipping import SkipList
from t5x_scale.data.store_check import StoreCheck
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import load_vocabulary

FEATURE = "targets"
DELIVERIES = ("store", "live")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run trains on.

    Attributes:
      mixture_or_task_name: a registered SeqIO task or mixture, `text:PATTERN` (see `data.text_source`), or
        {name: token share}. The rates of a registered mixture count examples, as in SeqIO.
      vocabulary: as `data.vocabulary.load_vocabulary` takes it.
      task_feature_lengths: {"targets": positions of a row}.
      batch_size: rows of a step, or a `BatchSchedule`.
      seed: decides the order of the data and the objective's randomness.
      split: of every source.
      task_modules: dotted names of the modules that register the SeqIO tasks.
      store_dir: where token stores lie; beside the run when None.
      max_epochs: how often a source may be gone through, or {source: how often}; None is without end.
      objective: from raw tokens to batch fields.
      mixture_rates: {name: token share}, or a schedule of these (see `data.mixtures.rates`); takes the place of what
        `mixture_or_task_name` stands for. Names may be mixtures.
      rate_unit: what rates count: "tokens" or "examples"; None as said above.
      skip_rows: pairs (first, one past the last) of global rows never to be delivered.
      skip_batches: the same by batches, numbered as if nothing were skipped.
      packing: how documents become rows: `delivery.Windows`, `packed_delivery.PackDocuments`.
      delivery: "store": from token stores, which are built when missing, any batch at once; "live": straight from the
        source, in its order, see `data.live`.
      live_shards: parts that a live stream is cut into, which hosts share out; part of the data's identity.
      live_shuffle_buffer: examples of a live stream that are shuffled among one another; 0 keeps the source's order.
      eval_objectives: further objectives to evaluate with: the loss of a mixture of denoisers cannot be compared with
        that of the causal model it continues.
    """

    mixture_or_task_name: str | Mapping[str, Rate]
    vocabulary: str
    task_feature_lengths: Mapping[str, int]
    batch_size: int | Sequence[tuple[int, int]] | BatchSchedule
    seed: int = 0
    split: str = "train"
    task_modules: Sequence[str] = ()
    store_dir: str | None = None
    max_epochs: float | Mapping[str, float] | None = 1.0
    objective: Objective = dataclasses.field(default_factory=CausalLm)
    mixture_rates: Mapping[str, Rate] | RateSchedule | None = None
    rate_unit: Literal["tokens", "examples"] | None = None
    skip_rows: Sequence[Sequence[int]] = ()
    skip_batches: Sequence[Sequence[int]] = ()
    packing: Packing = Windows()
    delivery: Literal["store", "live"] = "store"
    live_shards: int = 1
    live_shuffle_buffer: int = 1000
    eval_objectives: Sequence[Objective] = ()

    @property
    def sequence_length(self) -> int:
        """L, positions of a row.

        Raises:
          UserError: `task_feature_lengths` does not say.
        """
        lengths = dict(self.task_feature_lengths)
        unknown = [name for name in lengths if name != FEATURE]
        if unknown:
            raise UserError(
                f"TASK_FEATURE_LENGTHS names the feature '{unknown[0]}'{did_you_mean(unknown[0], [FEATURE])}; "
                f"a decoder has one, '{FEATURE}'"
            )
        length = lengths.get(FEATURE)
        if not isinstance(length, int) or length < 1:
            raise UserError(f"TASK_FEATURE_LENGTHS must be {{'{FEATURE}': positions of a row}}, not {lengths}")
        return length

    @property
    def schedule(self) -> BatchSchedule:
        """Rows of every step."""
        return make_batch_schedule(self.batch_size)

    @property
    def field_names(self) -> tuple[str, ...]:
        """Fields of a full batch, without looking at data. Padding, where an objective leaves any, adds segments."""
        names = REQUIRED
        if not (isinstance(self.packing, Windows) and self.packing.attend_across_documents):
            names += (SEGMENT_IDS, POSITIONS)
        elif self.objective.has_positions:
            names += (POSITIONS,)
        return (*names, PREFIX) if self.objective.has_prefix else names

    @property
    def mixture(self) -> Rates | RateSchedule:
        """What to train on: the rates if there are any, else the name."""
        return self.mixture_or_task_name if self.mixture_rates is None else self.mixture_rates

    @property
    def skipped(self) -> tuple[tuple[int, int], ...]:
        """Intervals of global rows never to be delivered."""
        first_row = self.schedule.first_row
        batches = ((first_row(first), first_row(end)) for first, end in SkipList(self.skip_batches).intervals)
        return SkipList([*self.skip_rows, *batches]).intervals

    def plan_dir(self, default_store_dir: str | os.PathLike) -> files.Path:
        """Where plans of packed rows are kept: beside the stores."""
        return files.to_path(self.store_dir or default_store_dir) / "plans"

    def check(self) -> None:
        """Checks what can be checked before a file is read.

        Raises:
          UserError: naming the setting.
        """
        check_choice("delivery", self.delivery, DELIVERIES)
        caps = self.max_epochs.values() if isinstance(self.max_epochs, Mapping) else [self.max_epochs]
        if not all(cap is None or (isinstance(cap, numbers.Real) and cap > 0) for cap in caps):
            raise UserError(f"max_epochs is {self.max_epochs!r}; give a positive number, or None for no end")


def make_pipeline(
    config: DataConfig,
    *,
    default_store_dir: str | os.PathLike,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchSource | LiveSource:
    """Opens the stores of a run, building those that are missing, and returns its training batches.

    TensorFlow and SeqIO are imported only if a store has to be built or checked, or the data is live.

    Args:
      config: the data of the run.
      default_store_dir: where stores lie if the configuration does not say.
      process_index, process_count: this host's place; process 0 builds stores, the others wait for them.

    Raises:
      UserError: an unknown task, unreadable data, a bad rate, a source shorter than one row, ….
    """
    config.check()
    if config.delivery == "live":
        place = {"process_index": process_index, "process_count": process_count}
        return make_live_pipeline(config, default_store_dir=default_store_dir, **place)
    length, schedule, objective = config.sequence_length, config.schedule, make_objective(config)
    catalog = make_catalog(config, default_store_dir, process_index)
    found = resolve_mixture(config.mixture, rate_unit=config.rate_unit, catalog=catalog, split=config.split)
    # Before a plan is made of where documents begin.
    check = StoreCheck(found.stores, process_index=process_index, process_count=process_count)
    plan_dir = config.plan_dir(default_store_dir)
    return BatchSource(
        found.stores,
        found.plan,
        schedule,
        objective,
        length=length,
        seed=config.seed,
        delivery=config.packing.make(found.stores, objective, length, seed=config.seed, plan_dir=plan_dir),
        max_epochs=config.max_epochs,
        skip=config.skipped,
        check=check,
        process_index=process_index,
        process_count=process_count,
    )


def make_eval_sources(
    config: DataConfig,
    *,
    default_store_dir: str | os.PathLike,
    batch_size: int | None = None,
    split: str = "validation",
    max_batches: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> dict[str, EvalSource]:
    """One pass over a split of every source of the run, source by source.

    Args:
      config: the data of the run.
      default_store_dir: as in `make_pipeline`.
      batch_size: rows of a batch; the training's last size when None.
      split: which split.
      max_batches: ends every pass early.
      process_index, process_count: this host's place.

    Returns:
      {source: EvalSource}, sorted by name; followed by {source.objective: EvalSource} for `eval_objectives`, where a
      second objective of a kind is `source.objective_2`.

    Raises:
      UserError: as `make_pipeline`, or a source has no such split.
    """
    config.check()
    stores = open_eval_stores(config, split, default_store_dir, process_index)
    check = StoreCheck(stores, process_index=process_index, process_count=process_count)
    passes = [("", config.objective), *zip(_suffixes(config.eval_objectives), config.eval_objectives, strict=True)]
    return {
        name + suffix: EvalSource(
            name,
            stores[name],
            objective.with_vocabulary(load_vocabulary(config.vocabulary)),
            length=config.sequence_length,
            packing=config.packing,
            plan_dir=config.plan_dir(default_store_dir),
            batch_size=batch_size or config.schedule.sizes()[-1],
            seed=config.seed,
            max_batches=max_batches,
            check=check,
            process_index=process_index,
            process_count=process_count,
        )
        for suffix, objective in passes
        for name in sorted(stores)
    }


def open_eval_stores(
    config: DataConfig, split: str, default_store_dir: str | os.PathLike, process_index: int = 0
) -> dict[str, TokenStore]:
    """{source: store of a split}; of live data a bounded part of the split."""
    if config.delivery == "live":
        return open_live_eval_stores(config, split=split)
    catalog = make_catalog(config, default_store_dir, process_index)
    return {name: catalog.open(name, split) for name in list_sources(config.mixture, catalog)}


def _suffixes(objectives: Sequence[Objective]) -> list[str]:
    """`.causal_lm`, …, and `.causal_lm_2` for the second of a kind."""
    kinds = [_kind(objective) for objective in objectives]
    numbers = [kinds[:index].count(kind) + 1 for index, kind in enumerate(kinds)]
    return [f".{kind}" if number == 1 else f".{kind}_{number}" for kind, number in zip(kinds, numbers, strict=True)]


def _kind(objective: Objective) -> str:
    """`causal_lm` of a `CausalLm`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(objective).__name__).lower()


def make_objective(config: DataConfig) -> Objective:
    """The run's objective, with the ids of the run's control tokens.

    Raises:
      UserError: the vocabulary lacks a token that the objective needs.
    """
    return config.objective.with_vocabulary(load_vocabulary(config.vocabulary))


def make_catalog(config: DataConfig, default_store_dir: str | os.PathLike, process_index: int = 0) -> Catalog:
    """The run's token stores, by name."""
    return Catalog(
        store_dir=os.fspath(config.store_dir or default_store_dir),
        vocabulary=load_vocabulary(config.vocabulary),
        task_modules=tuple(config.task_modules),
        process_index=process_index,
    )
