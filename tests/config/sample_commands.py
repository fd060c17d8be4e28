"""Two commands in one module, and the record of how they were called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sample_parts

CALLS: list[tuple[str, dict[str, Any]]] = []


def train(
    model: sample_parts.Model,
    train_steps: int,
    optimizer: sample_parts.Adam | sample_parts.Lion | None = None,
    data: sample_parts.Data | None = None,
    eval_data: sample_parts.Data | None = None,
    model_dir: str = "/tmp/sample",
    resume: bool = True,
    prompts: tuple[str, ...] = (),
    config_text: str = "",
    command_line: str = "",
) -> int | None:
    CALLS.append(("train", dict(locals())))
    return 75 if train_steps == 75 else None


def evaluate(model: sample_parts.Model, split: str = "test", sampler: Callable[..., Any] | None = None) -> int:
    CALLS.append(("evaluate", dict(locals())))
    return 0


def fail(kind: str = "user") -> None:
    if kind == "user":
        raise sample_parts.UserError("the disk is full")
    raise RuntimeError("unexpected")


def build(make: Callable[[], Any]) -> None:
    make()


def dry_run(**arguments: Any) -> str:
    return f"TABLE of {arguments['model'].name}" if "model" in arguments else "TABLE"
