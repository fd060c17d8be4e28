"""Architectures as JSON values, for records that outlive the process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.models.architecture import Architecture, RopeScalingValues
from t5x_scale.models.config import ModelConfig


def architecture_to_json(architecture: Architecture) -> dict[str, Any]:
    """All fields, nested dataclasses as objects, tuples as lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(architecture).items()
    }


def architecture_from_json(record: Mapping[str, Any]) -> Architecture:
    """The inverse. Fields that a record of an older version lacks have their defaults.

    Raises:
      UserError: the record has a field that is not known here, as one of a newer version may.
    """
    record = dict(record)
    config = _make(ModelConfig, record.pop("config", {}))
    scaling = record.pop("rope_scaling", None)
    record["rope_scaling"] = None if scaling is None else _make(RopeScalingValues, scaling)
    record["windows"] = tuple(record.get("windows", ()))
    return _make(Architecture, {"config": config, **record})


def _make(kind: type, values: Mapping[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise UserError(
                f"a record of an architecture has the unknown field '{name}'{did_you_mean(name, known)}; it was "
                "written by another version"
            )
    return kind(**values)


def name_differences(saved: Architecture, asked: Architecture) -> list[str]:
    """Fields in which two architectures differ, as `field: saved -> asked`; dtypes and lengths are not compared."""
    ignored = ("max_length", "config/dtype", "config/param_dtype")
    left, right = (_flat(architecture_to_json(one)) for one in (saved, asked))
    return [
        f"{name}: {left.get(name)} -> {right.get(name)}"
        for name in sorted(left.keys() | right.keys())
        if name not in ignored and left.get(name) != right.get(name)
    ]


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": item for inner, item in value.items()}
        else:
            flat[name] = value
    return flat
