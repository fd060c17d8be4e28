"""Batch k as a pure function of (seed, k): from a step to rows, from rows to windows, from windows to fields."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_scale.core.batch import check_batch
from t5x_scale.core.describe import digest
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.mixtures.mixture import PERIOD
from t5x_scale.data.mixtures.mixture_schedule import RatePlan
from t5x_scale.data.mixtures.rates import describe_shares, normalised
from t5x_scale.data.mixtures.step_rows import StepRows
from t5x_scale.data.objectives import Objective, RowKeys
from t5x_scale.data.order import order_key, permute_each, to_rows
from t5x_scale.data.resuming import check_mixture, check_parts, join_skips
from t5x_scale.data.rows.delivery import Delivery, WindowDelivery
from t5x_scale.data.skipping import SkipList
from t5x_scale.data.store_check import StoreCheck
from t5x_scale.data.token_store import TokenStore

# Part of the format of a run: raised whenever `data.order` or `data.mixtures.mixture` deals the same rows differently.
ORDER_VERSION = 2
# Beyond every row of every run.
MAX_ROW = 2**62


@dataclasses.dataclass(frozen=True)
class Locations:
    """Where rows come from; every field is int64 [n].

    Attributes:
      rows: global rows.
      sources: index into `BatchSource.names`.
      epochs: how often the source had been gone through before.
      indices: which of the source's rows: what `Delivery.fields` and `Delivery.spans` take.
    """

    rows: np.ndarray
    sources: np.ndarray
    epochs: np.ndarray
    indices: np.ndarray


class BatchSource:
    """The training batches of a run. Reads may come from any thread, in any order.

    Attributes:
      names: the sources, sorted by name.
      stores: {name: TokenStore}.
      delivery: makes the rows of each source.
      mixture: which source each global row comes from.
      schedule: rows of each step.
      steps: the row at which each step begins, those before a change of the batch size included.
      length: L, positions of a row.
      seed: decides order and randomness of the rows.
      skip: global rows that are never delivered.
      rows_per_epoch: {name: rows in one pass over the source}.
    """

    def __init__(
        self,
        stores: Mapping[str, TokenStore],
        rates: Mapping[str, float] | RatePlan,
        schedule: BatchSchedule,
        objective: Objective,
        *,
        length: int,
        seed: int,
        delivery: Delivery | None = None,
        max_epochs: float | Mapping[str, float] | None = 1.0,
        skip: Iterable[Sequence[int]] = (),
        check: StoreCheck | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """Args:
          stores: {name: store} of every source.
          rates: {name: token share}, in any unit, or a plan of them by steps.
          schedule, objective, length, seed, skip: see the attributes.
          delivery: makes the rows of `stores`; windows when None.
          max_epochs: how often a source may be gone through, or {name: how often}; None is without end.
          check: of the stores, whose findings end the run.
          process_index, process_count: this host delivers the rows of its place of so many.

        Raises:
          UserError: a source is shorter than one row, or a batch does not divide among the hosts.
        """
        for rows in schedule.sizes():
            if rows % process_count:
                raise UserError(f"the batch size {rows} does not divide among {process_count} processes")
        self._plan = rates if isinstance(rates, RatePlan) else RatePlan.constant(rates)
        # By name, so that the order in which a configuration lists sources changes nothing.
        self.names = self._plan.names
        _check_names(max_epochs, self.names)
        self.stores = {name: stores[name] for name in self.names}
        self.schedule = schedule
        self.objective = objective
        self.length = length
        self.seed = seed
        self.max_epochs = max_epochs
        self.skip = SkipList(skip)
        self.delivery = delivery or WindowDelivery(self.stores, objective, length)
        self.rows_per_epoch = {name: self.delivery.rows_per_epoch[name] for name in self.names}
        self.steps = StepRows(schedule)
        self.mixture = self._plan.by_rows(self.steps, self.delivery.tokens_per_row)
        self._process = (process_index, process_count)
        self._check = check

    def batch(self, step: int, rows: np.ndarray | slice | None = None) -> dict[str, np.ndarray]:
        """The batch of `step`.

        Args:
          step: counted from 0.
          rows: rows of the global batch; this host's when None.

        Returns:
          The fields of `core.batch`, each [rows, L].

        Raises:
          UserError: a source would be gone through more than `max_epochs` times, or a store is damaged.
        """
        if self._check is not None:
            self._check.raise_if_damaged()
        rows = self.host_rows(step) if rows is None else rows
        everyone = self.global_rows(step)
        fields = self.fields(self.locate(everyone[to_rows(rows, len(everyone))]))
        check_batch(fields)
        return fields

    def global_rows(self, step: int) -> np.ndarray:
        """The global rows of the batch of `step`, int64 [rows], in order."""
        return self.skip.to_global(np.arange(self.steps.first_row(step), self.steps.first_row(step + 1)))

    def host_rows(self, step: int) -> slice:
        """This host's rows of the global batch of `step`: hosts in order hold equal, consecutive parts."""
        index, count = self._process
        size = (self.steps.first_row(step + 1) - self.steps.first_row(step)) // count
        return slice(index * size, (index + 1) * size)

    def locate(self, rows: np.ndarray) -> Locations:
        """Where global rows, int64 [n], come from.

        Raises:
          UserError: as `batch`.
        """
        rows = np.asarray(rows, np.int64)
        sources, counts = self.mixture.slot(rows)
        per_epoch = np.array([self.rows_per_epoch[name] for name in self.names])[sources]
        epochs, indices = np.divmod(counts, per_epoch)
        most = np.zeros(len(self.names), np.int64)
        np.maximum.at(most, sources, counts + 1)
        for source in np.flatnonzero(most):
            self._check_cap(self.names[source], int(most[source]))
        orders, which = np.unique(np.stack([sources, epochs], axis=1), axis=0, return_inverse=True)
        keys = [order_key(self.seed, epoch, self.names[source]) for source, epoch in orders.tolist()]
        indices = permute_each(indices, per_epoch, np.array(keys, np.uint64)[which.reshape(-1)])
        return Locations(rows, sources, epochs, indices)

    def fields(self, locations: Locations) -> dict[str, np.ndarray]:
        """The objective's fields [n, L] of the rows at `locations`."""
        keys = RowKeys(self.seed, locations.rows)
        return self.delivery.fields(self.names, locations.sources, locations.indices, keys)

    @property
    def parts(self) -> dict[str, Any]:
        """What the bytes of a row depend on beside its source's store, part by part, as JSON values."""
        return {
            "objective": self.objective.name,
            "length": self.length,
            "seed": self.seed,
            "order": ORDER_VERSION,
            **self.delivery.parts,
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the bytes of the run depend on: equal fingerprints, equal bytes for equal rows."""
        stores = {name: store.fingerprint for name, store in self.stores.items()}
        everything = [self.parts, stores, self.mixture.digest(MAX_ROW)]
        return digest(everything)

    def state(self, step: int) -> dict[str, Any]:
        """The position before `step` as JSON, under a kilobyte: what a checkpoint keeps.

        `row` is the number of rows consumed; `past` pairs (step, row) where the batch size changed; `mixture` and
        `stores` are digests of where the rows so far came from. What lies ahead is not on record: it may change.
        """
        position = self.position(step)
        return {
            "row": self.steps.first_row(step),
            "fingerprint": self.fingerprint,
            "parts": self.parts,
            "stores": self._stores_digest(position),
            "mixture": self.mixture.digest(position),
            "past": [list(pair) for pair in self.steps.until(step)],
            "skip": [list(interval) for interval in self.skip.intervals],
        }

    def resumed(self, state: Mapping[str, Any], step: int) -> BatchSource:
        """This source, continued from the position that `state` recorded before `step`.

        Rows skipped in the run's past stay skipped. A batch size that changed counts from here on, and a mixture may
        change from here on if its plan gives the past as it was.

        Raises:
          UserError: the bytes would not be those of the recorded run (the message names what differs), or the
            configuration skips rows that the run has already been through.
        """
        check_parts(self.parts, state)
        other = copy.copy(self)
        other.skip = join_skips(self.skip, state, step)
        if self.schedule.first_row(step) != state["row"]:
            other.schedule = self.schedule.anchored(step, state["row"])
        other.steps = StepRows(other.schedule, state["past"])
        other.mixture = self._plan.by_rows(other.steps, self.delivery.tokens_per_row)
        position = other.position(step)
        check_mixture(other.mixture.digest(position), state, step)
        if other._stores_digest(position) != state["stores"]:
            raise UserError(
                "the data differs from the checkpoint's in: stores; put the old ones back or start a new run"
            )
        return other

    def skipping(self, intervals: Iterable[Sequence[int]]) -> BatchSource:
        """This source, jumping over further intervals of global rows. `resumed` checks that they lie ahead."""
        other = copy.copy(self)
        other.skip = SkipList([*self.skip.intervals, *intervals])
        return other

    @property
    def jumps(self) -> frozenset[int]:
        """The steps at which the mixture changes all at once: the level of the loss may do so, too."""
        return self._plan.jumps

    def row_interval(self, first: int, end: int) -> tuple[int, int]:
        """The global rows [first, end) that the batches of the steps [first, end) lie in."""
        return int(self.global_rows(first)[0]), self.position(end)

    def _stores_digest(self, position: int) -> str:
        """Of the stores that the global rows [0, position) came from: others may still be added."""
        counts = self.mixture.rows_before(position).tolist()
        seen = {name: self.stores[name].fingerprint for name, rows in zip(self.names, counts, strict=True) if rows}
        return digest(seen)[:32]

    def position(self, step: int) -> int:
        """One past the last global row that was delivered before `step`."""
        return self.skip.end(self.steps.first_row(step))

    def delivered_rows(self, begin: int, end: int) -> np.ndarray:
        """int64 [sources]: rows of each source among the global rows [begin, end), without those that are skipped."""
        return self.skip.delivered(self.mixture.rows_before, begin, end)

    def rows_before(self, step: int) -> dict[str, int]:
        """{name: rows that the mixture has dealt to the source before `step`, those jumped over included}."""
        return dict(zip(self.names, self.mixture.rows_before(self.position(step)).tolist(), strict=True))

    def epochs(self, step: int) -> dict[str, float]:
        """{name: passes over the source before `step`}."""
        return {name: rows / self.rows_per_epoch[name] for name, rows in self.rows_before(step).items()}

    def token_counts(self, step: int) -> dict[str, int]:
        """{name: tokens delivered from the source before `step`}, without padding and rows that were jumped over.

        Exact for windows; for packed documents a row counts as the mean of its source.
        """
        rows = self.delivered_rows(0, self.position(step))
        per_row = [self.delivery.tokens_per_row[name] for name in self.names]
        return {
            name: round(count * tokens) for name, count, tokens in zip(self.names, rows.tolist(), per_row, strict=True)
        }

    def check_enough(self, train_steps: int) -> None:
        """Checks before the first step that every source lasts.

        Raises:
          UserError: naming the source, its rows in one epoch, the rows asked for, and what to change.
        """
        for name, rows in self.rows_before(train_steps).items():
            self._check_cap(name, rows, f" in {train_steps} steps")

    def shares(self, row: int = 0) -> dict[str, tuple[float, float]]:
        """{source: (share of the tokens, share of the examples)} around a global row; an example is a document."""
        rows = self.mixture.shares(row)
        tokens = normalised({name: share * self.delivery.tokens_per_row[name] for name, share in rows.items()})
        examples = normalised(
            {
                name: share * self.stores[name].num_documents / self.stores[name].num_tokens
                for name, share in tokens.items()
            }
        )
        return {name: (tokens[name], examples[name]) for name in tokens}

    def describe(self) -> str:
        """What a run trains on, for logs: a line for each source, and what its rows leave out."""
        lines = [
            f"data: {self.objective.name}, length {self.length}, seed {self.seed}, fingerprint {self.fingerprint[:12]}"
        ]
        shares, statistics = self.shares(), self.delivery.statistics()
        for name in self.names:
            store, (tokens, examples) = self.stores[name], shares.get(name, (0.0, 0.0))
            lines.append(
                f"  {name}: {tokens:.4f} of the tokens, {examples:.4f} of the examples; {store.num_tokens:,} tokens in "
                f"{store.num_documents:,} documents, {self.rows_per_epoch[name]:,} rows an epoch ({store.directory})"
            )
            lines.append("    " + ", ".join(f"{key} {_to_text(value)}" for key, value in statistics[name].items()))
        lines += self._describe_raised()
        if len(self._plan.pieces) > 1:
            lines.append(describe_shares(self._plan, self.stores))
        return "\n".join(lines)

    def _describe_raised(self) -> list[str]:
        """A line for each source whose rate is too small to be honoured: it gets one row of a period all the same."""
        lines = []
        for step, asked in self._plan.pieces:
            total = math.fsum(asked.values())
            given = self.shares(self.steps.first_row(step))
            for name, rate in asked.items():
                if 0 < rate / total < 0.5 * given[name][0]:
                    lines.append(
                        f"  {name}: {rate / total:.2g} of the tokens was asked for from step {step} on, and "
                        f"{given[name][0]:.2g} is given: rates are honoured to one row in {PERIOD}"
                    )
        return lines

    def _check_cap(self, name: str, rows: int, span: str = "") -> None:
        per_epoch, cap = self.rows_per_epoch[name], epoch_cap(self.max_epochs, name)
        # Divided, as the advice is: 1.14 * 50 is less than 57.
        if cap is not None and rows / per_epoch > cap:
            enough = math.ceil(100 * rows / per_epoch) / 100
            raise UserError(
                f"the source '{name}' has {per_epoch} rows of {self.length} tokens an epoch, and the run asks for "
                f"{rows}{span}: more than max_epochs = {cap:g}; raise MAX_EPOCHS to {enough:.15g} or more, "
                "lower TRAIN_STEPS or the source's rate, or add data"
            )


def epoch_cap(max_epochs: float | Mapping[str, float] | None, name: str) -> float | None:
    """How often a source may be gone through; 1 for one that a mapping does not name."""
    return max_epochs.get(name, 1.0) if isinstance(max_epochs, Mapping) else max_epochs


def _check_names(max_epochs: float | Mapping[str, float] | None, names: Sequence[str]) -> None:
    for name in max_epochs if isinstance(max_epochs, Mapping) else ():
        if name not in names:
            raise UserError(f"max_epochs names '{name}'{did_you_mean(name, names)}; the sources are {', '.join(names)}")


def _to_text(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
