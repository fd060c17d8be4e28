"""Registered mixtures: their tasks, and the shares of examples that their rates stand for."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

from t5x_scale.core.errors import UserError
from t5x_scale.data.seqio_source.libraries import first_line, seqio
from t5x_scale.data.seqio_source.registry import describe_unknown

# Given a task, the number of its examples; None where nobody knows.
_Count = Callable[[str], int | None]


def is_mixture(name: str) -> bool:
    """Whether a mixture, and not a task, is registered by that name.

    Raises:
      UserError: nothing of that name is registered.
    """
    if name in seqio.TaskRegistry.names():
        return False
    if name not in seqio.MixtureRegistry.names():
        raise UserError(describe_unknown(name, [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]))
    return True


def mixture_tasks(name: str) -> tuple[str, ...]:
    """The tasks of a registered mixture, those of mixtures inside it included, sorted."""
    return tuple(task.name for task in seqio.MixtureRegistry.get(name).tasks)


def has_counted_rates(name: str) -> bool:
    """Whether a rate of a registered mixture is computed from its task, such as from its number of examples."""
    return _is_counted(seqio.MixtureRegistry.get(name))


def task_or_mixture_names(name: str, num_examples: Mapping[str, int] | None = None) -> dict[str, float]:
    """The tasks behind a registered name and their shares, which sum to 1.

    A task is a mixture of itself. A SeqIO mixture's rates count *examples*, not tokens.

    Args:
      name: a task, or a mixture.
      num_examples: {task: examples}, for rates that ask a task which does not know: one whose source declares no
        `num_input_examples` and which SeqIO has not cached.

    Raises:
      UserError: nothing of that name is registered, or its rates are not positive numbers.
    """
    if not is_mixture(name):
        return {name: 1.0}
    try:
        rates = _task_rates(seqio.MixtureRegistry.get(name), (num_examples or {}).get)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, OSError) as error:
        raise UserError(f"cannot compute the rates of mixture '{name}': {first_line(error)}") from error
    total = sum(rates.values())
    if not total > 0 or not min(rates.values()) >= 0:
        raise UserError(f"the rates of mixture '{name}' must not be negative, nor all zero: {rates}")
    return {task: rate / total for task, rate in rates.items()}


def _is_counted(mixture: seqio.Mixture) -> bool:
    inner = [member for member in mixture._task_map.values() if isinstance(member, seqio.Mixture)]
    return any(map(callable, mixture.rate_per_task_name.values())) or any(map(_is_counted, inner))


def _task_rates(mixture: seqio.Mixture, count: _Count) -> dict[str, float]:
    """As `seqio.Mixture.get_rate` of every task, but for tasks that are counted by `count`."""
    rates = {task.name: 0.0 for task in mixture.tasks}
    for name, rate in mixture.rate_per_task_name.items():
        member = mixture._task_map[name]
        if isinstance(member, seqio.Mixture):
            if not isinstance(rate, numbers.Number):
                raise ValueError(f"the rate of the mixture '{name}' inside it must be a number")
            inner = _task_rates(member, count)
            for task, share in inner.items():
                rates[task] += float(rate) * share / sum(inner.values())
        else:
            rates[name] += float(rate(_CountedTask(member, count)) if callable(rate) else rate)
    return rates


class _CountedTask:
    """A task that always knows how many examples it has: by its own count where it has one."""

    def __init__(self, task: seqio.Task, count: _Count):
        self._task = task
        self._count = count

    def num_input_examples(self, split: str = "train") -> int:
        try:
            own = self._task.num_input_examples(split)
        except Exception:  # Whatever the reason, such as no network: the source cannot say.
            own = None
        return self._counted() if own is None else own

    def get_cached_stats(self, split: str = "train") -> Mapping[str, Any]:
        if self._task.cache_dir is None:
            return {"examples": self._counted()}
        return self._task.get_cached_stats(split)

    def _counted(self) -> int:
        count = self._count(self._task.name)
        if count is None:
            raise ValueError(f"the task '{self._task.name}' does not know its number of examples")
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)
