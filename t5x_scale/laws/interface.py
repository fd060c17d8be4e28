"""What a scaling law is: constants with their sources, a domain of validity, a prediction, an optimum and a fit.

    law = LAWS["chinchilla"]
    law.loss(params=70e9, tokens=1.4e12)        # 1.9366
    law.outside(params=1e12, tokens=1e13)       # lines that say what of it is extrapolation
    law.optimum(flops=1e21)["params"]
    type(law).fit({"params": ..., "tokens": ..., "loss": ...}).law

Quantities have the same name in every law: `params tokens flops unique_tokens epochs vocab_size batch_tokens
learning_rate experts sparsity granularity ratio steps`. Tokens are those trained on, repetitions included; FLOPs are
those of the whole training; a loss is in nats a token unless the law says otherwise.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.laws.constants import Constant, worst_confidence
from t5x_scale.laws.domain import Domain

Values = float | np.ndarray

# What no law was fitted over: from where on it is far from any run.
_ANY_RUN = (1e-3, 1e15)


class NoNumber(UserError):
    """A quantity is no number that a law takes, or leads to none."""


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best choice that a law knows for a budget.

    Attributes:
      values: quantities by name, the budget among them, and what the law predicts for it.
      law: name of the law.
      outside: lines about what is extrapolated (see `Domain.outside`).
    """

    values: Mapping[str, float]
    law: str
    outside: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    @property
    def params(self) -> float:
        return self.values["params"]

    @property
    def tokens(self) -> float:
        return self.values["tokens"]


L = TypeVar("L", bound="Law")


@dataclasses.dataclass(frozen=True)
class Fit(Generic[L]):
    """A law fitted to data.

    Attributes:
      law: the law with fitted constants.
      intervals: (low, high) for each fitted constant, percentiles of a bootstrap over rows; empty without one. An end
        that the data cannot tell from 0 or from infinity is 0 or infinite.
      level: share of the bootstrap between the two ends.
      objective: what was minimised, at the minimum.
      rows: rows of data that were fitted.
      domain: ranges of their quantities, beyond which the fitted law extrapolates.
      held_out_error: root mean square of the residuals (of logarithms, for a law of `log`) on rows kept away from the
        fit; None where none were kept.
      samples: the constants of each bootstrap, [samples] each.
      at_bound: the constants that the fit drove to the end of their range, 0 or infinity, as far as the data can tell.
    """

    law: L
    intervals: Mapping[str, tuple[float, float]]
    level: float
    objective: float
    rows: int
    domain: Domain
    held_out_error: float | None = None
    samples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    at_bound: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Law(abc.ABC):
    """A law; a subclass is a frozen dataclass whose fields are its constants, made by `constant`.

    A subclass writes `_value(self, *, quantity, …)`, whose keywords are the law's `quantities`, and `_optimum` if it
    knows one. What leaves the range of a float in them is caught here, whichever law it is.

    Attributes:
      name: by which it is found in `LAWS`.
      source: paper and section.
      predicts: what `predict` returns: `loss`, or another quantity.
      unit: of what is predicted, and on which corpus and tokenizer where that matters.
      domain: where it was fitted.
      form_confidence: how sure we are of the formula, whatever its constants.
      with_embeddings: whether `params` (and `flops`) count embeddings; None where it takes no `params`.
      residuals: what a fit makes small: differences of `log`arithms, or `linear` ones.
      may_be_zero: quantities that need not be positive.
      quantities: the names it takes; those in `required` must be given.
      known: the names that any law takes, predicts or is limited in, and those of what optima hold beside them.
      seen: the widest range of each quantity that the laws were fitted over, taken together.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    predicts: ClassVar[str] = "loss"
    unit: ClassVar[str] = "nats a token"
    domain: ClassVar[Domain] = Domain()
    form_confidence: ClassVar[str] = "high"
    with_embeddings: ClassVar[bool | None] = None
    residuals: ClassVar[str] = "log"
    may_be_zero: ClassVar[frozenset[str]] = frozenset()
    quantities: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[tuple[str, ...]] = ()
    known: ClassVar[set[str]] = {
        "params", "active_params", "tokens", "flops", "epochs", "unique_tokens", "domain_ratio", "loss", "cap",
    }  # fmt: skip
    seen: ClassVar[dict[str, tuple[float, float]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        parameters = [p for p in inspect.signature(cls._value).parameters.values() if p.kind is p.KEYWORD_ONLY]
        cls.quantities = tuple(p.name for p in parameters)
        cls.required = tuple(p.name for p in parameters if p.default is p.empty)
        Law.known.update(cls.quantities, cls.domain.ranges, (cls.predicts,))
        for name in cls.domain.ranges:
            begin, end = cls._known_range(name)
            lowest, highest = Law.seen.get(name, (begin, end))
            Law.seen[name] = (min(begin, lowest), max(end, highest))

    @abc.abstractmethod
    def _value(self, **quantities: Any) -> Values:
        """What the law predicts for checked, broadcast quantities."""

    def predict(self, **quantities: Any) -> Values:
        """What the law predicts; a float for numbers, an array for arrays, which are broadcast.

        Of arrays what is no finite number is infinite or nan, for those who search in them.

        Raises:
          UserError: for a quantity that the law does not take, that is missing, or that is not a positive number, for
            numbers so extreme that it predicts none, and where constants are neither published nor given.
        """
        unknown = [name for name in self.published() if math.isnan(getattr(self, name))]
        if unknown:
            raise UserError(f"the law {self.name} has no published {', '.join(unknown)}: fit it to runs first")
        given = self._checked(quantities)
        with self._within_floats(given), np.errstate(all="ignore"):
            value = self._value(**given)
            if np.ndim(value) != 0:
                return value
            if not np.isfinite(value):
                raise OverflowError
            return float(value)

    def loss(self, **quantities: Any) -> Values:
        """`predict`, for a law that predicts a loss.

        Raises:
          UserError: also where the law predicts another thing.
        """
        if self.predicts != "loss":
            raise UserError(f"the law {self.name} predicts {self.predicts} and no loss: call predict")
        return self.predict(**quantities)

    def outside(self, **quantities: Any) -> list[str]:
        """Lines about what of these quantities lies outside the domain, or that no domain is known.

        Of a range of which a paper only says where it ends, what lies far below that is outside too. Quantities of
        other laws are passed over.

        Raises:
          UserError: for a quantity that no law has.
        """
        for name in quantities:
            if name not in Law.known:
                raise UserError(f"no law has a quantity {name!r}{did_you_mean(name, Law.known) or ''}")
        if self.required and not self.domain.ranges:
            return [f"where the law {self.name} was fitted is not known"]
        return self.domain.outside(**quantities) + self.domain.far_below(**quantities)

    def optimum(self, **budget: float) -> Optimum | None:
        """The best choice for a budget (`flops`, or what the subclass says); None for a law that knows none.

        Raises:
          UserError: for another budget than the law takes, and for one so extreme that no choice is best.
        """
        given = {name: self.checked(name, value) for name, value in budget.items() if value is not None}
        with self._within_floats(given), np.errstate(all="ignore"):
            found = self._optimum(**given)
            if found is not None and not np.isfinite(list(found.values.values())).all():
                raise OverflowError
            return found

    def _optimum(self, **budget: float) -> Optimum | None:
        return None

    @classmethod
    def fit(cls, data: Mapping[str, Any], **options: Any) -> Fit[Self]:
        """The law fitted to data: arrays of [rows] by quantity and, under the name in `predicts`, what was observed.

        Options: see `fitting.fit_law`.
        """
        # It brings scipy.optimize, which takes longer to import than most questions take to answer.
        from t5x_scale.laws import fitting

        return fitting.fit_law(cls, data, **options)

    @classmethod
    def starts(cls) -> Iterator[dict[str, float]]:
        """Where a fit starts from, one after another: the published grid where there is one, else about the constants
        of the paper."""
        about = {f.name: f.metadata["start"] for f in dataclasses.fields(cls) if "start" in f.metadata}
        for scale in (1.0, 0.5, 1.5):
            yield {name: value * scale for name, value in about.items()}

    @classmethod
    def published(cls) -> dict[str, Constant]:
        """The constants of the paper by name."""
        entries = {f.name: f.metadata["constant"] for f in dataclasses.fields(cls) if "constant" in f.metadata}
        return {name: e if e.source else dataclasses.replace(e, source=cls.source) for name, e in entries.items()}

    @classmethod
    def constants_table(cls) -> str:
        """One line for each constant of the paper: its value, standard error, confidence and source."""
        lines = []
        for name, entry in cls.published().items():
            error = f" ± {entry.error:g}" if entry.error is not None else ""
            value = "unknown" if math.isnan(entry.value) else f"{entry.value:.10g}{error} ({entry.confidence})"
            lines.append(f"  {name} = {value}: {entry.source}")
        return "\n".join(lines)

    @property
    def constants(self) -> dict[str, Constant]:
        """This instance's constants by name; one that is not the paper's says so."""
        found = {}
        for name, entry in self.published().items():
            value = getattr(self, name)
            is_published = value == entry.value or math.isnan(value)
            found[name] = entry if is_published else Constant(value, "fitted or given", "fitted")
        return found

    @property
    def confidence(self) -> str:
        """The worst of its constants and of its form."""
        return worst_confidence(self.form_confidence, *(c.confidence for c in self.constants.values()))

    @contextlib.contextmanager
    def _within_floats(self, quantities: Mapping[str, Any]) -> Iterator[None]:
        """Says which quantity is too extreme where arithmetic ends: the one farthest from where the law was fitted."""
        try:
            yield
        except (ArithmeticError, NoNumber) as error:
            away = {name: self._farthest(name, value) for name, value in quantities.items()}
            name = max(away, key=lambda name: away[name][0])
            ends = self.domain.ranges.get(name)
            fitted = f"; it was fitted from {ends[0]:.4g} to {ends[1]:.4g}" if ends else ""
            raise UserError(f"the law {self.name} says no number for {name} = {away[name][1]:.4g}{fitted}") from error

    def _farthest(self, name: str, value: Any) -> tuple[float, float]:
        """Of a quantity the number that is farthest from where it is known, and by how many orders of magnitude."""
        numbers = np.asarray(value, dtype=float)
        return max((self._orders_away(name, float(end)), float(end)) for end in (np.min(numbers), np.max(numbers)))

    def _orders_away(self, name: str, number: float) -> float:
        """Orders of magnitude between a number and the law's own range of the quantity; where it has none, the range
        that others saw."""
        if number == 0 and name in self.may_be_zero and self.domain.ranges.get(name, (0.0, 1.0))[0] == 0:
            return 0.0
        low, high = self._known_range(name)
        if min(number, high) <= 0:
            return math.inf
        return max(math.log10(low) - math.log10(number), math.log10(number) - math.log10(high), 0.0)

    @classmethod
    def _known_range(cls, name: str) -> tuple[float, float]:
        return cls.domain.known_range(name) or Law.seen.get(name, _ANY_RUN)

    def _checked(self, quantities: Mapping[str, Any]) -> dict[str, Values]:
        given = {name: value for name, value in quantities.items() if value is not None}
        for name in given:
            if name not in self.quantities:
                near = did_you_mean(name, self.quantities) or f"; it takes {', '.join(self.quantities)}"
                raise UserError(f"the law {self.name} knows no {name}{near}")
        missing = [name for name in self.required if name not in given]
        if missing:
            raise UserError(f"the law {self.name} needs {', '.join(missing)}")
        return {name: self.checked(name, value) for name, value in given.items()}

    def checked(self, name: str, value: Any) -> Values:
        """A quantity as a float, or as an array of floats.

        Raises:
          UserError: if it is not finite and positive (or zero, where the law allows it).
        """
        try:
            array = np.asarray(value, dtype=float)
        except (TypeError, ValueError):
            raise NoNumber(f"the law {self.name}: {name} is {value!r}; expected numbers") from None
        is_wrong = ~np.isfinite(array) | (array < 0 if name in self.may_be_zero else array <= 0)
        if np.any(is_wrong):
            what = "a number from 0 up" if name in self.may_be_zero else "a positive number"
            raise NoNumber(f"the law {self.name}: {name} is {array[is_wrong].flat[0]}; expected {what}")
        return array if array.ndim else float(array)
