"""What a store frozen from a task depends on."""

from __future__ import annotations

from typing import Any

from t5x_scale.core.describe import digest
from t5x_scale.data.seqio_source.libraries import seqio
from t5x_scale.data.seqio_source.registry import document_features, get_task
from t5x_scale.data.seqio_source.vocabulary import describe_feature_vocabulary
from t5x_scale.data.source_description import describe_function, without_addresses


def describe_document_source(task_name: str, split: str, feature: str = "targets") -> dict[str, Any]:
    """What a store frozen from this task depends on, as plain JSON values for its manifest.

    The source and the preprocessors are described by name, arguments and a hash of their code, the
    vocabulary of a T5-style task by name, size and fingerprint. Content of files is not read.
    """
    task = get_task(task_name)
    return {
        "task": task_name,
        "split": split,
        "feature": feature,
        "source": _describe_source(task.source),
        "preprocessors": [describe_function(step) for step in task.preprocessors],
        "tokenised_by": {name: describe_feature_vocabulary(task, name) for name in document_features(task, feature)},
    }


def document_source_fingerprint(task_name: str, split: str, feature: str = "targets") -> str:
    """Hexadecimal SHA-256 of `describe_document_source`."""
    description = describe_document_source(task_name, split, feature)
    return digest(description)


def _describe_source(source: seqio.DataSource) -> str:
    function = getattr(source, "_dataset_fn", None)
    if function is not None:
        return f"{type(source).__name__}({describe_function(function)})"
    return without_addresses(str(source))
