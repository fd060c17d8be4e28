"""Things that commands are made of, for the tests of the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

from t5x_scale.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Layer:
    width: int = 4
    kind: Literal["gated", "plain"] = "gated"


@dataclasses.dataclass(frozen=True)
class Deep(Layer):
    depth: int = 2


@dataclasses.dataclass(frozen=True)
class Model:
    layer: Callable[..., Layer] = Layer
    scale: float = 1.0
    name: str = "model"

    def __post_init__(self):
        if self.scale < 0:
            raise UserError("scale must not be negative")

    def make_layer(self) -> Layer:
        return self.layer()


@dataclasses.dataclass(frozen=True)
class Adam:
    learning_rate: Callable[[int], float]
    betas: tuple[float, float] = (0.9, 0.999)
    groups: dict[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class Lion:
    learning_rate: Callable[[int], float]
    beta: float = 0.9


@dataclasses.dataclass(frozen=True)
class Constant:
    value: float = 0.1

    def __call__(self, step: int) -> float:
        return self.value


@dataclasses.dataclass(frozen=True)
class Data:
    task: str
    batch_size: int = 8
    lengths: dict[str, int] | None = None
    modules: Sequence[str] = ()


def greedy(temperature: float = 0.0, **extra: Any) -> dict[str, Any]:
    return {"temperature": temperature, **extra}
