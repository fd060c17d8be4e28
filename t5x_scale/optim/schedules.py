"""Learning-rate schedules: frozen dataclasses called with the 0-based step, giving a float32 scalar.

A schedule may be called with a Python int or a traced int32 scalar. Differences of steps are taken in integers
and only then turned into float32, so a schedule is exact at its corners however long the run. Behind the last
step a schedule stays at its last value.

Rates that fall are given as a ratio of the peak (`floor_ratio=0.1` is "decay to 10 %"), so one peak scales the
whole curve.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.optim.interface import Schedule, Step, check_schedule

DECAY_SHAPES = ("linear", "cosine", "sqrt", "exponential")


@dataclasses.dataclass(frozen=True)
class Constant:
    """`value` at every step."""

    value: float

    def __post_init__(self):
        _check_rate(self, "value")

    def __call__(self, step: Step) -> jax.Array:
        del step
        return jnp.float32(self.value)


@dataclasses.dataclass(frozen=True)
class ConstantThenRsqrt:
    """PaLM's schedule (arXiv 2204.02311, section 5): `peak` for `constant_steps`, then falling with 1/sqrt(step).

    With the defaults the rate is 1e-2 for 10,000 steps and exactly 1/sqrt(step) afterwards.
    """

    peak: float = 1e-2
    constant_steps: int = 10_000
    warmup_steps: int = 0

    def __post_init__(self):
        _check_rate(self, "peak")
        _check_count(self, "constant_steps", minimum=1)
        _check_count(self, "warmup_steps")
        _check_order(self, "warmup_steps", "constant_steps")

    def __call__(self, step: Step) -> jax.Array:
        since = jnp.maximum(jnp.asarray(step, jnp.int32), self.constant_steps).astype(jnp.float32)
        # One constant over one root: two roundings instead of three.
        rate = jnp.float32(self.peak * math.sqrt(self.constant_steps)) / jnp.sqrt(since)
        return _warmup(step, self.warmup_steps) * rate


@dataclasses.dataclass(frozen=True)
class Cosine:
    """Linear warm-up from 0 over `warmup_steps`, then half a cosine down to `floor_ratio * peak` at `total_steps`."""

    peak: float
    total_steps: int
    warmup_steps: int = 0
    floor_ratio: float = 0.1

    def __post_init__(self):
        _check_span(self)

    def __call__(self, step: Step) -> jax.Array:
        falling = _fall("cosine", _progress(step, self.warmup_steps, self.total_steps), self.floor_ratio)
        return jnp.float32(self.peak) * _warmup(step, self.warmup_steps) * falling


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear warm-up from 0 over `warmup_steps`, then a line down to `floor_ratio * peak` at `total_steps`."""

    peak: float
    total_steps: int
    warmup_steps: int = 0
    floor_ratio: float = 0.0

    def __post_init__(self):
        _check_span(self)

    def __call__(self, step: Step) -> jax.Array:
        falling = _fall("linear", _progress(step, self.warmup_steps, self.total_steps), self.floor_ratio)
        return jnp.float32(self.peak) * _warmup(step, self.warmup_steps) * falling


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay:
    """Warm-up, a plateau at `peak`, and a fall to `floor_ratio * peak` over the last `decay_steps` of `total_steps`.

    `decay_shape` is how the fall goes, with f from 0 to 1 along it: `linear` 1 - f, `cosine`, `sqrt` 1 - sqrt(f)
    (arXiv 2405.18392), or `exponential` floor_ratio**f (needs a floor above 0).
    """

    peak: float
    total_steps: int
    warmup_steps: int
    decay_steps: int
    floor_ratio: float = 0.0
    decay_shape: str = "linear"

    def __post_init__(self):
        _check_span(self)
        _check_count(self, "decay_steps")
        if self.warmup_steps + self.decay_steps > self.total_steps:
            raise UserError(
                f"WarmupStableDecay: warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps} are more than "
                f"total_steps {self.total_steps}"
            )
        check_choice("WarmupStableDecay.decay_shape", self.decay_shape, DECAY_SHAPES)
        if self.decay_shape == "exponential" and self.floor_ratio == 0:
            raise UserError("WarmupStableDecay: an exponential decay never reaches floor_ratio 0; give it one above 0")

    def __call__(self, step: Step) -> jax.Array:
        rate = jnp.float32(self.peak) * _warmup(step, self.warmup_steps)
        if self.decay_steps == 0:
            return rate
        along = _progress(step, self.total_steps - self.decay_steps, self.total_steps)
        return rate * _fall(self.decay_shape, along, self.floor_ratio)


@dataclasses.dataclass(frozen=True)
class MultiStep:
    """Warm-up, then `peak` times `factors[i]` from the share `boundaries[i]` of `total_steps` on.

    The defaults are DeepSeek LLM's (arXiv 2401.02954): 31.6 % of the peak after 80 % of the steps, 10 % after 90 %.
    """

    peak: float
    total_steps: int
    warmup_steps: int = 2000
    boundaries: tuple[float, ...] = (0.8, 0.9)
    factors: tuple[float, ...] = (0.316, 0.1)

    def __post_init__(self):
        _check_rate(self, "peak")
        _check_count(self, "total_steps", minimum=1)
        _check_count(self, "warmup_steps")
        _check_order(self, "warmup_steps", "total_steps")
        if len(self.boundaries) != len(self.factors):
            raise UserError(
                f"MultiStep has {len(self.boundaries)} boundaries and {len(self.factors)} factors; each boundary needs "
                "one factor"
            )
        if list(self.boundaries) != sorted(set(self.boundaries)) or not all(0 < b <= 1 for b in self.boundaries):
            raise UserError(
                f"MultiStep.boundaries are {self.boundaries}; expected rising shares of total_steps in (0, 1]"
            )
        if not all(factor >= 0 for factor in self.factors):
            raise UserError(f"MultiStep.factors are {self.factors}; none may be negative")

    def __call__(self, step: Step) -> jax.Array:
        step = jnp.asarray(step, jnp.int32)
        factor = jnp.float32(1)
        for share, value in zip(self.boundaries, self.factors, strict=True):
            factor = jnp.where(step >= round(share * self.total_steps), jnp.float32(value), factor)
        return jnp.float32(self.peak) * _warmup(step, self.warmup_steps) * factor


@dataclasses.dataclass(frozen=True)
class Rewarm:
    """For a continued run: a straight line from `start` up to `schedule` over `warmup_steps`, then `schedule` itself.

    Steps count from the start of the continued run, whose optimiser starts afresh; so `schedule.total_steps` is
    the continued run's own number of steps. The line meets the curve where it stands after `warmup_steps`.

    Attributes:
      schedule: the curve to join.
      warmup_steps: length of the line; 0 is none.
      start: learning rate at step 0; usually what the first run ended with, or 0.
      origin_step: added to the step that `schedule` sees. It continues a curve that has no end, such as PaLM's, from
        the step the first run stopped at.
    """

    schedule: Schedule
    warmup_steps: int
    start: float = 0.0
    origin_step: int = 0

    def __post_init__(self):
        check_schedule(self, "schedule")
        _check_count(self, "warmup_steps")
        _check_count(self, "origin_step")
        _check_rate(self, "start")
        total = getattr(self.schedule, "total_steps", None)
        if total is not None and self.origin_step + self.warmup_steps > total:
            raise UserError(
                f"Rewarm: origin_step {self.origin_step} + warmup_steps {self.warmup_steps} lie behind the end of "
                f"{type(self.schedule).__name__} (total_steps {total})"
            )

    def __call__(self, step: Step) -> jax.Array:
        step = jnp.asarray(step, jnp.int32)
        joined = self.schedule(step + self.origin_step)
        if self.warmup_steps == 0:
            return joined
        goal = self.schedule(self.warmup_steps + self.origin_step)
        line = self.start + (goal - self.start) * _warmup(step, self.warmup_steps)
        return jnp.where(step < self.warmup_steps, line, joined)


def _progress(step: Step, begin: int, end: int) -> jax.Array:
    """How far `step` is from `begin` (0) to `end` (1), clipped, float32."""
    done = jnp.asarray(step, jnp.int32) - begin
    return jnp.clip(done.astype(jnp.float32) / jnp.float32(end - begin), 0.0, 1.0)


def _warmup(step: Step, warmup_steps: int) -> jax.Array:
    """step / warmup_steps, at most 1."""
    return _progress(step, 0, warmup_steps) if warmup_steps else jnp.float32(1)


def _fall(shape: str, along: jax.Array, floor: float) -> jax.Array:
    """From 1 at `along` = 0 to `floor` at `along` = 1."""
    if shape == "exponential":
        return jnp.exp(along * jnp.float32(math.log(floor)))
    height = {
        "linear": lambda: 1.0 - along,
        "cosine": lambda: 0.5 * (1.0 + jnp.cos(jnp.float32(math.pi) * along)),
        "sqrt": lambda: 1.0 - jnp.sqrt(along),
    }[shape]()
    return jnp.float32(floor) + jnp.float32(1 - floor) * height


def _check_span(schedule: Schedule) -> None:
    _check_rate(schedule, "peak")
    _check_count(schedule, "total_steps", minimum=1)
    _check_count(schedule, "warmup_steps")
    _check_order(schedule, "warmup_steps", "total_steps")
    floor = schedule.floor_ratio
    if not _is_number(floor) or not 0 <= floor <= 1:
        raise UserError(
            f"{type(schedule).__name__}.floor_ratio is {floor!r}; expected a share of the peak between 0 and 1"
        )


def _check_count(schedule: Schedule, field: str, minimum: int = 0) -> None:
    value = getattr(schedule, field)
    where = f"{type(schedule).__name__}.{field}"
    if not isinstance(value, int) or isinstance(value, bool):
        hint = f" (write {int(value)})" if isinstance(value, float) and value.is_integer() else ""
        raise UserError(f"{where} is {value!r}; expected a whole number of steps{hint}")
    if not minimum <= value < 2**31:
        raise UserError(f"{where} is {value}; expected a number of steps from {minimum} to {2**31 - 1}")


def _check_order(schedule: Schedule, shorter: str, longer: str) -> None:
    first, second = getattr(schedule, shorter), getattr(schedule, longer)
    if first > second:
        raise UserError(f"{type(schedule).__name__}: {shorter} {first} is more than {longer} {second}")


def _check_rate(schedule: Schedule, field: str) -> None:
    value = getattr(schedule, field)
    if not _is_number(value) or value < 0:
        raise UserError(f"{type(schedule).__name__}.{field} is {value!r}; expected a learning rate, 0 or above")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
