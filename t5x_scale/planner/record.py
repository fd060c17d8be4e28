"""A plan as plain values: plan.json, which programs read and a run is watched by."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from t5x_scale.planner.choices import Choice
from t5x_scale.planner.continuing import Continuation
from t5x_scale.planner.plans import Plan

FORMAT = 1


def to_json(plan: Plan | Continuation, title: str) -> dict[str, Any]:
    """The plan: `choices` by name with their laws, and of a new model the `curve` that `monitor.plan_band` reads."""
    record = {
        "format": FORMAT,
        "title": title,
        "choices": {choice.name: choice_to_json(choice) for choice in plan.choices},
        "warnings": list(plan.warnings),
    }
    if isinstance(plan, Plan):
        record["curve"] = plan.curve
    return _plain(record)


def choice_to_json(choice: Choice) -> dict[str, Any]:
    """A choice with the opinions it rests on."""
    record = dataclasses.asdict(choice)
    del record["name"]
    return _plain(record)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
