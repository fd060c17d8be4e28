"""Muon: orthogonalised momentum for the matrices of a model, Adam for everything else (arXiv 2502.16982)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import optax

from t5x_scale.core.trees import flatten, map_with_path, unflatten
from t5x_scale.optim import transforms
from t5x_scale.optim.interface import (
    NO_OPTIONS,
    STACKS,
    Axes,
    AxesTree,
    LeafOptions,
    Options,
    Params,
    Schedule,
    check_config,
    matching_state_axes,
)


@dataclasses.dataclass(frozen=True)
class Muon:
    """Muon from optax, applied to each matrix of a stack of layers or experts for itself.

    A parameter is a matrix if the first or the last of its dimensions (stacks aside) is `embed`; the dimensions on
    the other side are taken together, so a query kernel [embed, heads, kv] is a matrix of embed by heads * kv.
    Everything else (embeddings and heads, norm scales, biases) follows Adam with the same rate and decay.

    Attributes:
      learning_rate: of both; with `update_rms` an AdamW schedule can be kept as it is.
      beta: decay of the momentum of matrices.
      nesterov: whether the gradient is mixed in once more.
      newton_schulz_steps: iterations of the orthogonalisation.
      update_rms: RMS of a matrix's update before the rate, 0.2 being about that of AdamW. None scales by
        sqrt(max(1, fan_out / fan_in)) instead, which wants a much larger rate.
      adam_b1, adam_b2, eps: of Adam; eps also guards Muon's division by the norm.
      adam_lr_multiplier: rate of the Adam parameters relative to `learning_rate`.
      weight_decay: the parameters shrink by `lr * weight_decay` of themselves at each step.
      decay_min_rank: parameters of fewer dimensions a layer do not decay; 0: all decay.
      adam_axes: parameters with one of these axes are no matrices.
      momentum_dtype: storage of the first moments, `float32` or `bfloat16`.
    """

    learning_rate: Schedule
    beta: float = 0.95
    nesterov: bool = True
    newton_schulz_steps: int = 5
    update_rms: float | None = 0.2
    adam_b1: float = 0.9
    adam_b2: float = 0.95
    eps: float = 1e-8
    adam_lr_multiplier: float = 1.0
    weight_decay: float = 0.1
    decay_min_rank: int = 2
    adam_axes: tuple[str, ...] = ("vocab",)
    momentum_dtype: str = "float32"

    def __post_init__(self):
        check_config(
            self,
            beta=(0, 1),
            newton_schulz_steps=(1, math.inf),
            update_rms=(1e-6, math.inf),
            adam_b1=(0, 1),
            adam_b2=(0, 1),
            eps=(0, math.inf),
            adam_lr_multiplier=(0, math.inf),
            weight_decay=(0, math.inf),
        )

    def make(self, axes: AxesTree, options: Options = NO_OPTIONS) -> optax.GradientTransformation:
        """See `interface.Optimizer`."""
        matrices = self.matrices(axes)
        direction = transforms.split(
            {
                "muon": self._orthogonalize(matrices),
                "adam": optax.scale_by_adam(self.adam_b1, self.adam_b2, self.eps, mu_dtype=self.momentum_dtype),
            },
            {path: "muon" if path in matrices else "adam" for path in flatten(axes)},
        )
        multipliers = {path: options.get(path, LeafOptions()).lr_multiplier for path in flatten(axes)}
        for path in multipliers.keys() - matrices.keys():
            multipliers[path] *= self.adam_lr_multiplier
        chain = optax.chain(
            direction,
            transforms.add_decay(self.weight_decay, transforms.decay_factors(axes, options, self.decay_min_rank)),
            optax.scale_by_learning_rate(self.learning_rate),
            transforms.scale_leaves({path: LeafOptions(lr_multiplier=m) for path, m in multipliers.items()}),
        )
        return transforms.in_float32(chain, axes)

    def state_axes(self, abstract_params: Params, axes: AxesTree) -> Any:
        """See `interface.Optimizer`."""
        return matching_state_axes(self.make(axes), abstract_params, axes)

    def matrices(self, axes: AxesTree) -> dict[str, optax.contrib.MuonDimensionNumbers]:
        """`{path: dimensions}` of the parameters that are orthogonalised."""
        found = {path: matrix_dimensions(names, self.adam_axes) for path, names in flatten(axes).items()}
        return {path: dimensions for path, dimensions in found.items() if dimensions}

    def _orthogonalize(self, matrices: dict[str, optax.contrib.MuonDimensionNumbers]) -> optax.GradientTransformation:
        def size(path: str, update: jax.Array) -> jax.Array:
            fan_in, fan_out = (math.prod(update.shape[d] for d in dims) for dims in matrices[path])
            if self.update_rms is None:
                return update * math.sqrt(max(1.0, fan_out / fan_in))
            # An orthogonal matrix has an RMS of 1 / sqrt(its longer side).
            return update * (self.update_rms * math.sqrt(max(fan_in, fan_out)))

        return optax.chain(
            optax.contrib.scale_by_muon(
                ns_steps=self.newton_schulz_steps,
                beta=self.beta,
                eps=self.eps,
                mu_dtype=self.momentum_dtype,
                nesterov=self.nesterov,
                weight_dimension_numbers=unflatten(matrices),
            ),
            optax.stateless(lambda updates, params: map_with_path(size, updates)),
        )


def matrix_dimensions(names: Axes, adam_axes: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """The input and output dimensions of a matrix with these logical axes, or None for what is no matrix."""
    sides = tuple(d for d, name in enumerate(names) if name not in STACKS)
    # A side without a name is a list of rows, such as a table of positions.
    if len(sides) < 2 or any(name in adam_axes or name is None for name in names):
        return None
    if names[sides[0]] == "embed":
        return optax.contrib.MuonDimensionNumbers(sides[:1], sides[1:])
    if names[sides[-1]] == "embed":
        return optax.contrib.MuonDimensionNumbers(sides[:-1], sides[-1:])
    return None
