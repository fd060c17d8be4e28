"""What is registered with SeqIO, by name."""

from __future__ import annotations

from collections.abc import Sequence

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.data.seqio_source.libraries import seqio, tf


def describe_unknown(name: str, known: Sequence[str]) -> str:
    """What to say of a name that is not registered."""
    if not known:
        return f"no task or mixture '{name}': none is registered; name the module that registers it in TASK_MODULES"
    near = did_you_mean(name, known) or f"; registered are {', '.join(sorted(known)[:20])}"
    return f"no task or mixture '{name}'{near}; is its module in TASK_MODULES?"


def get_task(task_name: str) -> seqio.Task:
    """The registered task of that name; a UserError with near names if there is none."""
    if task_name not in seqio.TaskRegistry.names():
        raise UserError(describe_unknown(task_name, list(seqio.TaskRegistry.names())))
    return seqio.TaskRegistry.get(task_name)


def is_text(task: seqio.Task, feature: str) -> bool:
    """Whether the task leaves this feature as text for the run's vocabulary."""
    return task.output_features[feature].dtype == tf.string


def document_features(task: seqio.Task, feature: str) -> list[str]:
    """The features whose text makes a document: `feature`, behind the inputs where it is the targets of a task of both.

    Raises:
      UserError: the task has no such feature.
    """
    known = list(task.output_features)
    if feature not in known:
        raise UserError(f"task '{task.name}' has no feature '{feature}'{did_you_mean(feature, known)}; it has {known}")
    return ["inputs", feature] if feature == "targets" and "inputs" in known else [feature]
