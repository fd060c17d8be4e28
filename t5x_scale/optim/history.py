"""Gradients held against their history: clipped to what was usual, or refused where they are far beyond it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t5x_scale.core.errors import check_choice
from t5x_scale.optim.guards import global_norm, select_finite
from t5x_scale.optim.interface import (
    NO_OPTIONS,
    AxesTree,
    Optimizer,
    Options,
    Params,
    Schedule,
    check_ranges,
    frozen_paths,
)

CLIP, REFUSE = "clip", "refuse"
ACTIONS = (CLIP, REFUSE)


class HistoryState(NamedTuple):
    """The history, four scalars, and the state of the optimiser.

    Attributes:
      count: int32, gradients in the history.
      mean, variance: float32, of the logarithm of their norms.
      exceeded: int32, how many were clipped or refused.
      inner: of the wrapped optimiser.
    """

    count: jax.Array
    mean: jax.Array
    variance: jax.Array
    exceeded: jax.Array
    inner: Any


@dataclasses.dataclass(frozen=True)
class NormHistory:
    """Any optimiser, for gradients whose global norm is not far beyond what it has been.

    A running mean and variance of the logarithm of the norm tell what is usual; beyond `z_score` standard deviations
    above the mean a gradient is clipped to there, or its update is refused: parameters, moments and the schedule's
    count stay as they are. Into the history goes then what would have been allowed, so that a change that lasts is
    followed, the faster the longer it lasts. All of it is optimiser state, saved and resumed with it.

    The idea is that of ZClip (Kumar et al. 2025, arXiv 2504.02507), whose mean and variance (of decay 0.97, z 2.5) are
    of the norm itself and which clips the harder the larger the norm is, and of AdaGC (Wang et al. 2025, arXiv
    2502.11034), which has a mean of clipped norms for every tensor. A norm has no upper tail like a normal
    distribution's, its logarithm nearly has. `StepConfig.max_grad_norm` comes first: a history is of norms up to it.

    Attributes:
      optimizer: the optimiser to wrap.
      action: `clip` or `refuse`.
      z_score: standard deviations of the logarithm above its mean.
      min_growth: times the (geometric) mean that are always allowed, however quiet the run.
      decay: of the running mean and variance; they are plain ones as long as the history is shorter than that.
      warmup_updates: gradients to see before any is held back.
    """

    optimizer: Optimizer
    action: str = CLIP
    z_score: float = 3.0
    min_growth: float = 1.5
    decay: float = 0.97
    warmup_updates: int = 25

    def __post_init__(self) -> None:
        check_choice("NormHistory.action", self.action, ACTIONS)
        above = {"z_score": (0.0, math.inf), "min_growth": (1.0, math.inf), "warmup_updates": (2, math.inf)}
        check_ranges(self, **above, decay=(0.0, 1.0))

    @property
    def learning_rate(self) -> Schedule:
        """The wrapped optimiser's schedule."""
        return self.optimizer.learning_rate

    def make(self, axes: AxesTree, options: Options = NO_OPTIONS) -> optax.GradientTransformation:
        """See `interface.Optimizer`."""
        inner = self.optimizer.make(axes, options)

        def init(params: Any) -> HistoryState:
            # Each an array of its own: a step takes the memory of all of them.
            zeros = [jnp.zeros((), dtype) for dtype in (jnp.int32, jnp.float32, jnp.float32, jnp.int32)]
            return HistoryState(*zeros, inner.init(params))

        def update(updates: Any, state: HistoryState, params: Any) -> tuple[Any, HistoryState]:
            # A norm of 0 is no part of the history: there was nothing to learn, as in a batch of padding.
            norm = global_norm(updates)
            log_norm = jnp.log(jnp.where(norm > 0, norm, 1.0))
            limit = state.mean + jnp.maximum(self.z_score * jnp.sqrt(state.variance), math.log(self.min_growth))
            exceeds = (state.count >= self.warmup_updates) & (norm > 0) & (log_norm > limit)
            if self.action == CLIP:
                scale = jnp.where(exceeds, jnp.exp(limit - log_norm), 1.0)
                updates = jax.tree.map(lambda g: (g * scale).astype(g.dtype), updates)
            new, moved = inner.update(updates, state.inner, params)
            if self.action == REFUSE:
                # Minus zero: x + -0.0 is x in every bit, where -0.0 + 0.0 would become 0.0.
                still = jax.tree.map(lambda u: jnp.full_like(u, -0.0), new)
                new, moved = select_finite(~exceeds, (new, moved), (still, state.inner))
            return new, self._remember(state, norm > 0, jnp.where(exceeds, limit, log_norm), exceeds, moved)

        return optax.GradientTransformation(init, update)

    def _remember(
        self, state: HistoryState, counts: jax.Array, log_norm: jax.Array, exceeds: jax.Array, inner: Any
    ) -> HistoryState:
        """The history with one more norm, if it `counts`."""
        weight = jnp.maximum(1.0 - self.decay, 1.0 / (state.count + 1.0)) * counts
        change = log_norm - state.mean
        return HistoryState(
            count=jnp.where(counts, optax.safe_increment(state.count), state.count),
            mean=state.mean + weight * change,
            variance=(1.0 - weight) * (state.variance + weight * jnp.square(change)),
            exceeded=state.exceeded + exceeds,
            inner=inner,
        )

    def state_axes(self, abstract_params: Params, axes: AxesTree) -> HistoryState:
        """See `interface.Optimizer`."""
        return HistoryState((), (), (), (), self.optimizer.state_axes(abstract_params, axes))

    def frozen_paths(self, axes: AxesTree) -> frozenset[str]:
        """Paths of the parameters that the wrapped optimiser never changes."""
        return frozen_paths(self.optimizer, axes)

    def stop_layers(self, params: Params, axes: AxesTree) -> Params:
        """The parameters, without gradients for single layers that the wrapped optimiser never changes."""
        stop = getattr(self.optimizer, "stop_layers", None)
        return params if stop is None else stop(params, axes)
