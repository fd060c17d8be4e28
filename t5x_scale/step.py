"""One training step, a pure function of (state, batch), and one evaluation step.

micro-batch scan -> model -> token losses -> gradients -> clip, refuse what is not finite -> optimiser -> state
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.losses import Projection, TokenLosses, cross_entropy
from t5x_scale.models.interface import DecoderModel, OutputHead
from t5x_scale.models.layered import run_layered
from t5x_scale.models.pipeline import PipelineConfig, run_pipelined
from t5x_scale.models.stack import Run, split_rows
from t5x_scale.optim import guards, noise_scale
from t5x_scale.partitioning import length_order
from t5x_scale.partitioning.stages import num_stages, split_over_stages
from t5x_scale.train_state import TrainState

# One float32 of each step, in this order; see `metric_names`. The learning rate is the schedule's at this step; an
# optimiser counts its updates, and lags behind by those that were skipped.
METRICS = (
    "train/loss",
    "train/z_loss",
    "train/accuracy",
    "train/weight",
    "optim/learning_rate",
    "optim/grad_norm",
    "optim/skipped_updates",
)

# The orders of a step's work over layers and micro-batches.
ACCUMULATIONS = ("plain", "layered")

Batch = Mapping[str, jax.Array]

# Losses of tokens, and what layers ask for beside them, by name: sums over tokens, weighted alike.
Sums = tuple[TokenLosses, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Knobs of the step itself.

    Attributes:
      micro_batches: parts that the batch is cut into along its rows and whose gradients are summed; the loss is
        normalised once, by the weight of the whole batch, so their number changes memory and not the result.
      accumulation: `plain`, for each micro-batch through all layers, or `layered`, for each layer through all
        micro-batches: a layer's weights are then gathered once a step, and more is saved (see `models.layered`).
      pipeline: how each micro-batch, cut into smaller ones, flows through the stages of the mesh; None is no pipeline.
        With `layered`, weights are gathered once a round (see `models.pipeline`), and `micro_batches` stays 1.
      max_grad_norm: gradients are scaled down to this global norm (PaLM: 1.0); None is no clipping.
      z_loss: coefficient of (log Z)^2 (PaLM: 1e-4).
      loss_chunk_length: positions whose logits exist at once.
      context_order: in which order rows lie along a length that is split over devices: `zigzag`, in which all devices
        have equally much to attend to, or `contiguous` (see `partitioning.length_order`).
      noise_scale: whether the noise and the signal of gradients are recorded, which say how large a batch is worth its
        while (see `optim.noise_scale`). It takes micro-batches, and a norm of the gradients of each.
    """

    micro_batches: int = 1
    accumulation: str = "plain"
    pipeline: PipelineConfig | None = None
    max_grad_norm: float | None = 1.0
    z_loss: float = 1e-4
    loss_chunk_length: int = 128
    context_order: str = "zigzag"
    noise_scale: bool = False

    def __post_init__(self) -> None:
        if self.micro_batches < 1 or self.loss_chunk_length < 1:
            raise UserError(f"micro_batches and loss_chunk_length must be at least 1: {self}")
        check_choice("StepConfig.accumulation", self.accumulation, ACCUMULATIONS)
        if self.pipeline is not None and self.accumulation == "layered" and self.micro_batches > 1:
            raise UserError(
                f"StepConfig.micro_batches = {self.micro_batches}: in a layered pipeline the batch is cut by "
                "PipelineConfig.micro_batches alone"
            )
        length_order.check_order(self.context_order)
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise UserError(f"max_grad_norm is {self.max_grad_norm}; expected a positive number or None")
        if self.noise_scale and self.parts == 1:
            raise UserError(
                "StepConfig.noise_scale compares gradients of micro-batches with that of their batch: it needs "
                f"at least 2 micro-batches and accumulation 'plain', not {self.micro_batches} and {self.accumulation!r}"
            )

    def for_evaluation(self) -> StepConfig:
        """The same without gradients to accumulate."""
        return dataclasses.replace(self, micro_batches=1, accumulation="plain", noise_scale=False)

    @property
    def parts(self) -> int:
        """Parts of the batch that go through the whole model one after another."""
        return 1 if self.accumulation == "layered" else self.micro_batches

    @property
    def run(self) -> Run | None:
        """Who runs the layers for such a part; None is one layer after another."""
        is_layered = self.accumulation == "layered"
        if self.pipeline is not None:
            return functools.partial(run_pipelined, config=self.pipeline, gather_once=is_layered)
        return functools.partial(run_layered, micro_batches=self.micro_batches) if is_layered else None

    @property
    def chunk_length(self) -> int:
        """`loss_chunk_length` for a part: where it is cut only inside, the head sees all of its rows at once, and as
        many fewer positions keep the logits as small."""
        inside = self.pipeline.micro_batches if self.pipeline is not None else self.micro_batches // self.parts
        return max(self.loss_chunk_length // inside, 1)


def metric_names(model: DecoderModel, config: StepConfig | None = None) -> tuple[str, ...]:
    """What a step of `model` records: `METRICS`, then what its layers add to the loss (`train/balance_loss`, …).

    These are means over tokens as they are added, coefficients included, like `train/z_loss`. What `config` asks for
    comes last.
    """
    asked = noise_scale.METRICS if config is not None and config.noise_scale else ()
    return METRICS + tuple(f"train/{name}" for name in model.auxiliary_names) + asked


def make_record(rows: int, names: Sequence[str] = METRICS) -> jax.Array:
    """An empty device buffer for the metrics `names` of `rows` steps; step k writes row k mod `rows`."""
    return jnp.zeros((rows, len(names)), jnp.float32)


def make_train_step(
    model: DecoderModel,
    transformation: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    config: StepConfig,
    stop_frozen: Callable[[Any], Any] = lambda params: params,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, jax.Array]]:
    """Returns `(state, batch, record) -> (state, record)`, to be jitted.

    Args:
      model: the model.
      transformation: the optimiser.
      learning_rate: its schedule, for the record only.
      config: see `StepConfig`.
      stop_frozen: the parameters without gradients for what never changes, which then is not in the norm.
    """

    def train_step(state: TrainState, batch: Batch, record: jax.Array) -> tuple[TrainState, jax.Array]:
        batch = length_order.in_order(batch, config.context_order)
        (sums, auxiliary), grads, parts = _accumulate(model, config, stop_frozen, state.params, batch)
        weight = jnp.maximum(sums.weight, 1.0)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32) / weight, grads)
        norm = guards.global_norm(grads)
        if config.max_grad_norm is not None:
            grads = guards.clip_by_global_norm(grads, norm, config.max_grad_norm)
        updates, opt_state = transformation.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A loss or gradient that is not finite must not reach the parameters: the step then changes nothing.
        ok = jnp.isfinite(norm) & jnp.isfinite(_total(sums, auxiliary))
        params, opt_state = guards.select_finite(ok, (params, opt_state), (state.params, state.opt_state))
        row = jnp.stack(
            [
                sums.cross_entropy / weight,
                sums.z_loss / weight,
                sums.correct / weight,
                sums.weight,
                jnp.asarray(learning_rate(state.step), jnp.float32),
                norm,
                1.0 - ok,
                *(auxiliary[name] / weight for name in model.auxiliary_names),
                *(() if parts is None else noise_scale.noise_and_signal(parts, norm, weight)),
            ]
        )
        record = record.at[state.step % record.shape[0]].set(row)
        return TrainState(state.step + 1, params, opt_state), record

    return train_step


def make_gradients(
    model: DecoderModel, config: StepConfig, stop_frozen: Callable[[Any], Any] = lambda params: params
) -> Callable[[Any, Batch], tuple[jax.Array, Any]]:
    """Returns `(params, batch) -> (loss, gradients)` as a training step comes to them: sums, not normalised."""

    def gradients(params: Any, batch: Batch) -> tuple[jax.Array, Any]:
        batch = length_order.in_order(batch, config.context_order)
        sums, grads, _ = _accumulate(model, config, stop_frozen, params, batch)
        return _total(*sums), grads

    return gradients


def make_eval_step(model: DecoderModel, config: StepConfig) -> Callable[[Any, Batch], TokenLosses]:
    """Returns `(params, batch) -> TokenLosses` (sums, so that batches can be added), to be jitted."""
    config = config.for_evaluation()

    def eval_step(params: Any, batch: Batch) -> TokenLosses:
        return _losses(model, config, params, length_order.in_order(batch, config.context_order))[0]

    return eval_step


def make_row_eval_step(model: DecoderModel, config: StepConfig) -> Callable[[Any, Batch], TokenLosses]:
    """Returns `(params, batch) -> TokenLosses` whose sums are those of each row, [B], to be jitted."""
    config = config.for_evaluation()

    def row_eval_step(params: Any, batch: Batch) -> TokenLosses:
        batch = length_order.in_order(batch, config.context_order)
        head, hidden = model.head(params), model.hidden(params, batch, run=config.run).hidden

        def losses(*row: jax.Array) -> TokenLosses:
            return _cross_entropy(config, head, *(x[None] for x in row))

        return jax.vmap(losses)(hidden, batch[fields.TARGET_TOKENS], batch[fields.LOSS_WEIGHTS])

    return row_eval_step


def _losses(model: DecoderModel, config: StepConfig, params: Any, batch: Batch) -> Sums:
    if config.pipeline is None and num_stages() > 1:
        raise UserError(
            f"the mesh has stage={num_stages()} and StepConfig.pipeline is None: give gin/sharding/pipeline.gin"
        )
    head, output = model.head(params), model.hidden(params, batch, run=config.run)
    weights = batch[fields.LOSS_WEIGHTS]
    with split_over_stages(len(weights)):
        losses = _cross_entropy(config, head, output.hidden, batch[fields.TARGET_TOKENS], weights)
    # A row's auxiliary loss is a mean over its tokens. It stands beside the cross-entropy of each of them and is
    # weighed with it, and so is a sum over rows, normalised like the others by the weight of the whole batch.
    return losses, {name: jnp.sum(jnp.sum(weights, axis=1) * loss) for name, loss in output.auxiliary.items()}


def _total(losses: TokenLosses, auxiliary: dict[str, jax.Array]) -> jax.Array:
    return sum(auxiliary.values(), start=losses.total)


def _cross_entropy(
    config: StepConfig, head: OutputHead, hidden: jax.Array, targets: jax.Array, weights: jax.Array
) -> TokenLosses:
    return cross_entropy(
        hidden,
        head.table,
        targets,
        weights,
        projection=Projection(head.scale, head.vocab_first, head.soft_cap),
        z_loss=config.z_loss,
        chunk_length=config.chunk_length,
    )


def _accumulate(
    model: DecoderModel, config: StepConfig, stop_frozen: Callable[[Any], Any], params: Any, batch: Batch
) -> tuple[Sums, Any, noise_scale.Part | None]:
    """Sums of losses and of gradients over the batch, neither normalised, and the norms of its parts if asked for."""

    def total(params: Any, batch: Batch) -> tuple[jax.Array, Sums]:
        sums = _losses(model, config, stop_frozen(params), batch)
        return _total(*sums), sums

    def sums_and_gradients(batch: Batch) -> tuple[Sums, Any]:
        (_, sums), grads = jax.value_and_grad(total, has_aux=True)(params, batch)
        return sums, grads

    if config.parts == 1:
        return *sums_and_gradients(batch), None

    def add(carry: Any, part: Batch) -> tuple[Any, noise_scale.Part | None]:
        sums, grads = sums_and_gradients(part)
        noted = noise_scale.make_part(grads, sums[0].weight) if config.noise_scale else None
        return jax.tree.map(jnp.add, carry, (sums, grads)), noted

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    zero = jnp.zeros((), jnp.float32)
    sums = (TokenLosses(*(zero,) * len(TokenLosses._fields)), dict.fromkeys(model.auxiliary_names, zero))
    split = {name: split_rows(x, config.parts) for name, x in batch.items()}
    (sums, grads), noted = jax.lax.scan(add, (sums, zeros), split)
    return sums, grads, noted
