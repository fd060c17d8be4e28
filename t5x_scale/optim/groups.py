"""Groups of parameters, by regular expressions over their paths: frozen, without decay, at another rate."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.core.trees import flatten, unflatten
from t5x_scale.optim.interface import (
    NO_OPTIONS,
    AxesTree,
    LeafOptions,
    Optimizer,
    Options,
    Params,
    Schedule,
    frozen_paths,
)
from t5x_scale.optim.transforms import pick

SETTINGS = ("freeze", "no_decay", "lr_multiplier")

Rules = Sequence[tuple[str, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Groups:
    """Any optimiser, with settings for groups of parameters.

    Attributes:
      optimizer: the optimiser to wrap.
      rules: `[(regex, settings), ...]`. A regex must match whole paths such as `decoder/layers/pre_norm/scale`.
        Settings are a dict of
          `freeze`: True leaves the parameters bit for bit as they are, without optimiser state;
          `no_decay`: True takes weight decay off, False puts it on where the optimiser would not;
          `lr_multiplier`: multiplies their learning rate.
        All rules that match a path apply, the later one winning where two set the same thing.
    """

    optimizer: Optimizer
    rules: Rules

    def __post_init__(self):
        for rule in self.rules:
            _check_rule(rule)

    @property
    def learning_rate(self) -> Schedule:
        """The wrapped optimiser's schedule."""
        return self.optimizer.learning_rate

    def make(self, axes: AxesTree, options: Options = NO_OPTIONS) -> optax.GradientTransformation:
        """See `interface.Optimizer`.

        Raises:
          UserError: a regex matches no parameter, or every parameter is frozen.
        """
        settings = self._settings(axes)
        trained = [path for path, found in settings.items() if not found.get("freeze")]
        if not trained:
            raise UserError("Groups.rules freeze every parameter; nothing is left to train")
        merged = dict(options)
        for path in trained:
            merged[path] = _to_options(settings[path], options.get(path, LeafOptions()))
        return _train_only(self.optimizer.make(pick(axes, trained), merged), trained)

    def state_axes(self, abstract_params: Params, axes: AxesTree) -> Any:
        """See `interface.Optimizer`."""
        frozen = self._frozen(axes)
        trained = [path for path in flatten(axes) if path not in frozen]
        return self.optimizer.state_axes(pick(abstract_params, trained), pick(axes, trained))

    def frozen_paths(self, axes: AxesTree) -> frozenset[str]:
        """Paths of the parameters that never change."""
        own = self._frozen(axes)
        rest = pick(axes, [path for path in flatten(axes) if path not in own])
        return own | frozen_paths(self.optimizer, rest)

    def stop_layers(self, params: Params, axes: AxesTree) -> Params:
        """The parameters, without gradients for single layers that the wrapped optimiser never changes."""
        stop = getattr(self.optimizer, "stop_layers", None)
        if stop is None:
            return params
        trained = flatten(axes).keys() - self._frozen(axes)
        return unflatten(flatten(params) | flatten(stop(pick(params, trained), pick(axes, trained))))

    def _frozen(self, axes: AxesTree) -> frozenset[str]:
        return frozenset(path for path, found in self._settings(axes).items() if found.get("freeze"))

    def _settings(self, axes: AxesTree) -> dict[str, dict[str, Any]]:
        """The settings of each path, rules applied in order."""
        settings: dict[str, dict[str, Any]] = {path: {} for path in flatten(axes)}
        for regex, values in self.rules:
            matches = [path for path in settings if re.fullmatch(regex, path)]
            if not matches:
                raise UserError(
                    f"Groups.rules: '{regex}' matches no parameter; the nearest path is '{_nearest(regex, settings)}' "
                    "(a regex must match the whole path)"
                )
            for path in matches:
                settings[path].update(values)
        return settings


def _train_only(inner: optax.GradientTransformation, trained: list[str]) -> optax.GradientTransformation:
    """`inner` for the parameters at `trained`; the others get updates that change nothing."""

    def init(params: Any) -> Any:
        return inner.init(pick(params, trained))

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        part, state = inner.update(pick(updates, trained), state, pick(params, trained))
        # Minus zero: x + -0.0 is x in every bit, where -0.0 + 0.0 would become 0.0.
        still = {path: jnp.full_like(param, -0.0) for path, param in flatten(params).items()}
        return unflatten(still | flatten(part)), state

    return optax.GradientTransformation(init, update)


def _to_options(settings: Mapping[str, Any], outer: LeafOptions) -> LeafOptions:
    no_decay = settings.get("no_decay")
    return LeafOptions(
        lr_multiplier=outer.lr_multiplier * settings.get("lr_multiplier", 1.0),
        decay=outer.decay if no_decay is None else not no_decay,
    )


def _nearest(regex: str, paths: Mapping[str, Any]) -> str:
    """The path most like the literal part of `regex`."""
    literal = re.sub(r"[\\^$.*+?()\[\]{}|]+", "", regex)
    return difflib.get_close_matches(literal, list(paths), n=1, cutoff=0.0)[0]


def _check_rule(rule: Any) -> None:
    if not isinstance(rule, (tuple, list)) or len(rule) != 2 or not isinstance(rule[1], Mapping):
        raise UserError(f"Groups.rules: {rule!r} is no rule; expected ('regex', {{'lr_multiplier': 0.1}})")
    regex, values = rule
    try:
        re.compile(regex)
    except (re.error, TypeError) as error:
        raise UserError(f"Groups.rules: {regex!r} is no regular expression: {error}") from error
    for name, value in values.items():
        if name not in SETTINGS:
            raise UserError(
                f"Groups.rules: '{regex}' sets '{name}'; known are {', '.join(SETTINGS)}{did_you_mean(name, SETTINGS)}"
            )
        if name == "lr_multiplier":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise UserError(f"Groups.rules: '{regex}': lr_multiplier is {value!r}; expected a number, 0 or above")
        elif not isinstance(value, bool):
            raise UserError(f"Groups.rules: '{regex}': {name} is {value!r}; expected True or False")
