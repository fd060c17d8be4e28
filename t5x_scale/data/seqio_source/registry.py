"""What is registered with SeqIO, by name."""

from __future__ import annotations

from collections.abc import Sequence

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.data.seqio_source.libraries import first_line, seqio, tf


def task_or_mixture_names(name: str) -> dict[str, float]:
    """The tasks behind a registered name and their shares, which sum to 1.

    A task is a mixture of itself. A SeqIO mixture's rates count *examples*, not tokens.

    Raises:
      UserError: nothing of that name is registered, or its rates are not positive numbers.
    """
    if name in seqio.TaskRegistry.names():
        return {name: 1.0}
    if name not in seqio.MixtureRegistry.names():
        raise UserError(_describe_unknown(name, [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]))
    mixture = seqio.MixtureRegistry.get(name)
    try:
        rates = {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"cannot compute the rates of mixture '{name}': {first_line(error)}") from error
    total = sum(rates.values())
    if not total > 0 or min(rates.values()) < 0:
        raise UserError(f"the rates of mixture '{name}' must not be negative, nor all zero: {rates}")
    return {task: rate / total for task, rate in rates.items()}


def _describe_unknown(name: str, known: Sequence[str]) -> str:
    if not known:
        return f"no task or mixture '{name}': none is registered; name the module that registers it in TASK_MODULES"
    near = did_you_mean(name, known) or f"; registered are {', '.join(sorted(known)[:20])}"
    return f"no task or mixture '{name}'{near}; is its module in TASK_MODULES?"


def get_task(task_name: str) -> seqio.Task:
    """The registered task of that name; a UserError with near names if there is none."""
    if task_name not in seqio.TaskRegistry.names():
        raise UserError(_describe_unknown(task_name, list(seqio.TaskRegistry.names())))
    return seqio.TaskRegistry.get(task_name)


def is_text(task: seqio.Task, feature: str) -> bool:
    """Whether the task leaves this feature as text for the run's vocabulary."""
    return task.output_features[feature].dtype == tf.string


def document_features(task: seqio.Task, feature: str) -> list[str]:
    known = list(task.output_features)
    if feature not in known:
        raise UserError(f"task '{task.name}' has no feature '{feature}'{did_you_mean(feature, known)}; it has {known}")
    return ["inputs", feature] if feature == "targets" and "inputs" in known else [feature]
