"""Between architectures, models, gin files and what is on record of a model.

An `Architecture` is the common form: everything else is made from it or read into it.
"""

from __future__ import annotations

import functools

from t5x_scale.core.trees import flatten
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.composition import to_model
from t5x_scale.models.descriptions import from_description
from t5x_scale.models.gin_text import to_gin
from t5x_scale.models.interface import DecoderModel

__all__ = ["axes_of", "from_description", "shapes_of", "to_gin", "to_model"]


def axes_of(architecture: Architecture) -> dict[str, tuple[str | None, ...]]:
    """Logical axes of every parameter, by path."""
    return dict(flatten(_model(architecture).axes()))


def shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, by path."""
    return {path: tuple(leaf.shape) for path, leaf in flatten(_model(architecture).abstract_params()).items()}


@functools.lru_cache(maxsize=16)
def _model(architecture: Architecture) -> DecoderModel:
    """One model for all questions about one architecture: tracing it takes a second."""
    return to_model(architecture)
