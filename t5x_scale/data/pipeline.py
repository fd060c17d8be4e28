"""The data of a run: from a configuration to the batches of every step.

names and rates -> catalog: token stores -> BatchSource: batch(step)      training
                                         -> EvalSource: batch(index)      evaluation
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

from t5x_scale.core import files
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.data.batch_schedule import BatchSchedule, make_batch_schedule
from t5x_scale.data.batch_source import BatchSource
from t5x_scale.data.catalog import Catalog
from t5x_scale.data.delivery import Packing, Windows
from t5x_scale.data.eval_source import EvalSource
from t5x_scale.data.mixture import Mixture
from t5x_scale.data.objectives import CausalLm, Objective
from t5x_scale.data.rates import resolve_name, token_rates
from t5x_scale.data.skipping import SkipList
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import load_vocabulary

FEATURE = "targets"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run trains on.

    Attributes:
      mixture_or_task_name: a registered SeqIO task or mixture, `text:PATTERN` (see `data.text_source`), or
        {source: token share}. The rates of a registered mixture count examples, as in SeqIO.
      vocabulary: as `data.vocabulary.load_vocabulary` takes it.
      task_feature_lengths: {"targets": positions of a row}.
      batch_size: rows of a step, or a `BatchSchedule`.
      seed: decides the order of the data and the objective's randomness.
      split: of every source.
      task_modules: dotted names of the modules that register the SeqIO tasks.
      store_dir: where token stores lie; beside the run when None.
      max_epochs: how often a source may be gone through, or {source: how often}; None is without end.
      objective: from raw tokens to batch fields.
      mixture_rates: {source: token share}, in any unit; takes the place of what `mixture_or_task_name` stands for.
      skip_rows: pairs (first, one past the last) of global rows never to be delivered.
      skip_batches: the same by batches, numbered as if nothing were skipped.
      packing: how documents become rows: `delivery.Windows`, `packed_delivery.PackDocuments`.
    """

    mixture_or_task_name: str | Mapping[str, float]
    vocabulary: str
    task_feature_lengths: Mapping[str, int]
    batch_size: int | Sequence[tuple[int, int]] | BatchSchedule
    seed: int = 0
    split: str = "train"
    task_modules: Sequence[str] = ()
    store_dir: str | None = None
    max_epochs: float | Mapping[str, float] | None = 1.0
    objective: Objective = dataclasses.field(default_factory=CausalLm)
    mixture_rates: Mapping[str, float] | None = None
    skip_rows: Sequence[Sequence[int]] = ()
    skip_batches: Sequence[Sequence[int]] = ()
    packing: Packing = Windows()

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
        caps = self.max_epochs.values() if isinstance(self.max_epochs, Mapping) else [self.max_epochs]
        if not all(cap is None or cap > 0 for cap in caps):
            raise UserError(f"max_epochs is {self.max_epochs}; give a positive number, or None for no end")


def make_pipeline(
    config: DataConfig,
    *,
    default_store_dir: str | os.PathLike,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchSource:
    """Opens the stores of a run, building those that are missing, and returns its training batches.

    TensorFlow and SeqIO are imported only if a store has to be built or checked.

    Args:
      config: the data of the run.
      default_store_dir: where stores lie if the configuration does not say.
      process_index, process_count: this host's place; process 0 builds stores, the others wait for them.

    Raises:
      UserError: an unknown task, unreadable data, a bad rate, a source shorter than one row, ….
    """
    config.check()
    length, schedule, objective = config.sequence_length, config.schedule, make_objective(config)
    rates, stores = open_sources(config, config.split, default_store_dir, process_index)
    plan_dir = config.plan_dir(default_store_dir)
    return BatchSource(
        stores,
        rates,
        schedule,
        objective,
        length=length,
        seed=config.seed,
        delivery=config.packing.make(stores, objective, length, seed=config.seed, plan_dir=plan_dir),
        max_epochs=config.max_epochs,
        skip=config.skipped,
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
      {source: EvalSource}, sorted by name.

    Raises:
      UserError: as `make_pipeline`, or a source has no such split.
    """
    objective = make_objective(config)
    _, stores = open_sources(config, split, default_store_dir, process_index)
    return {
        name: EvalSource(
            name,
            stores[name],
            objective,
            length=config.sequence_length,
            packing=config.packing,
            plan_dir=config.plan_dir(default_store_dir),
            batch_size=batch_size or config.schedule.sizes()[-1],
            seed=config.seed,
            max_batches=max_batches,
            process_index=process_index,
            process_count=process_count,
        )
        for name in sorted(stores)
    }


def make_objective(config: DataConfig) -> Objective:
    """The run's objective, with the ids of the run's control tokens.

    Raises:
      UserError: the vocabulary lacks a token that the objective needs.
    """
    return config.objective.with_vocabulary(load_vocabulary(config.vocabulary))


def open_sources(
    config: DataConfig, split: str, default_store_dir: str | os.PathLike, process_index: int = 0
) -> tuple[dict[str, float], dict[str, TokenStore]]:
    """The token shares and the stores of a run's sources: ({source: rate}, {source: store})."""
    catalog = Catalog(
        store_dir=os.fspath(config.store_dir or default_store_dir),
        vocabulary=load_vocabulary(config.vocabulary),
        task_modules=tuple(config.task_modules),
        process_index=process_index,
    )
    given = config.mixture_rates or config.mixture_or_task_name
    if isinstance(given, Mapping):
        rates, by_examples = dict(given), False
    else:
        rates, by_examples = resolve_name(given, catalog)
        rates = {name: rate for name, rate in rates.items() if rate > 0}
    # A bad rate is found before a store is built.
    Mixture(rates)
    stores = {name: catalog.open(name, split) for name in rates}
    return (token_rates(rates, stores) if by_examples else rates), stores
