"""Pipeline parallelism: groups of layers on stages, through which micro-batches flow.

The mesh axis `stage` holds the stages; all that a stage does is written once, with a leading axis of stages that is
split over it, and after each turn what a stage made moves on to the next. At turn t stage s works on micro-batch
(t - s) mod M. With `repeats` > 1 a micro-batch goes round: stage s holds the groups s, s + S, s + 2 S, … of layers, in
the order of the layers, and the micro-batches of one round follow those of the last without a gap. So M micro-batches
take `M * repeats + S - 1` turns of which S - 1 are idle (`bubble_share`), and each turn is the shorter the more groups
there are. Groups of one layer are the modular placement, layer l on stage l mod S (Lamy-Poirier 2021, arXiv
2106.02679).

What it costs in communication, each step and stage: the residual stream of a micro-batch to the next stage every turn
(a permutation, forward and backward); the embedded batch to all stages and the result back; and with `repeats` > 1 the
parameters. They are stored as ever, layers in their natural order and split over `stage` in S blocks, which are the
groups only when `repeats` is 1. Otherwise each device exchanges its own share of the parameters with the other stages
once on the way forward, in the dtype in which they are used, and its gradients once on the way back: as many bytes as
it stores, little beside what gathering over `fsdp` moves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_scale.core.errors import UserError
from t5x_scale.layers.masks import Mask
from t5x_scale.layers.residual import RESIDUAL_AXES
from t5x_scale.layers.tensor_names import RESIDUAL
from t5x_scale.models.held import Held, dtypes_of_use, gather_held, hold, map_held, use, while_held
from t5x_scale.models.layered import is_dear
from t5x_scale.models.stack import Noted, Rows, Stack, join_rows, split_rows
from t5x_scale.partitioning.axes import Axes
from t5x_scale.partitioning.proposals import nearest_parts
from t5x_scale.partitioning.shardings import activation_rules, constrain, current_rules
from t5x_scale.partitioning.stages import AXIS, check_rows, num_stages, shift, split_over_stages, to_stages

MODULAR = "modular"


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """How a batch flows through the stages of the mesh.

    Attributes:
      micro_batches: parts of the batch that follow one another; the more, the smaller the share of idle turns. At
        least as many as there are stages if `repeats` is more than 1.
      repeats: groups of layers that each stage holds, or `modular` for groups of one layer: as often a micro-batch
        goes round.
    """

    micro_batches: int
    repeats: int | str = 1

    def __post_init__(self) -> None:
        """Raises:
        UserError: a number is none, or not positive.
        """
        if not isinstance(self.micro_batches, int) or self.micro_batches < 1:
            raise UserError(f"PipelineConfig.micro_batches is {self.micro_batches!r}; expected a positive number")
        if self.repeats != MODULAR and (not isinstance(self.repeats, int) or self.repeats < 1):
            raise UserError(f"PipelineConfig.repeats is {self.repeats!r}; expected a positive number or '{MODULAR}'")


class Schedule(NamedTuple):
    """Layer `(r * stages + s) * layers + j` is the j-th of the r-th group on stage s."""

    stages: int
    repeats: int
    layers: int
    micro_batches: int

    @property
    def turns(self) -> int:
        """How often all stages work."""
        return self.micro_batches * self.repeats + self.stages - 1

    @property
    def bubble_share(self) -> float:
        """The share of all work of stages that is idle: `(S - 1) / (M * repeats + S - 1)`."""
        return (self.stages - 1) / self.turns


def make_schedule(config: PipelineConfig, stages: int, num_layers: int) -> Schedule:
    """The schedule of a model of `num_layers`.

    Raises:
      UserError: the layers do not divide, or there are fewer micro-batches than a round takes.
    """
    repeats = max(num_layers // stages, 1) if config.repeats == MODULAR else config.repeats
    if num_layers % (stages * repeats):
        written = f"stage={stages} x repeats={repeats}"
        # None where the layers do not divide over the stages alone.
        own = 0 if num_layers % stages else num_layers // stages
        near = " or ".join(f"repeats={number}" for number in nearest_parts(own, repeats, own))
        raise UserError(
            f"pipeline: {num_layers} layers do not divide over {written} = {stages * repeats} groups"
            f"{f'; {near} would do' if near else ''}"
        )
    if repeats > 1 and config.micro_batches < stages:
        raise UserError(
            f"pipeline: {config.micro_batches} micro-batches are fewer than stage={stages}; with repeats={repeats} "
            "the first must not come round before the last has entered"
        )
    return Schedule(stages, repeats, num_layers // (stages * repeats), config.micro_batches)


def run_pipelined(
    stack: Stack, x_BLD: jax.Array, mask: Mask, positions: jax.Array, *, config: PipelineConfig, gather_once: bool
) -> tuple[jax.Array, Noted]:
    """Runs `stack` on the stages of the mesh of the current `activation_rules`; on one stage without.

    Args:
      stack, x_BLD, mask, positions: as for any `Run`.
      config: the schedule.
      gather_once: whether a group's weights are gathered once a round (twice where rounds overlap) and kept for all
        its micro-batches, instead of for each of them.

    Returns:
      The result, its rows split over `stage` too if they divide, and what the layers noted.

    Raises:
      UserError: layers or rows do not divide.
    """
    schedule = make_schedule(config, num_stages(), stack.num_layers)
    rows = Rows(mask, positions, x_BLD.shape[0], schedule.micro_batches)
    x_MBLD = split_rows(x_BLD, schedule.micro_batches)
    check_rows(x_MBLD.shape[1])
    x_MBLD, noted = _Flow(stack, rows, schedule, gather_once).run(x_MBLD)
    with split_over_stages(x_BLD.shape[0]):
        return constrain(join_rows(x_MBLD), RESIDUAL_AXES), noted


class _Groups(NamedTuple):
    """Parameters (`Held`) and windows of groups of layers, every leaf [..., stages, layers, ...]."""

    params: Any
    windows: jax.Array | None


class _State(NamedTuple):
    """Between two turns: what enters each stage [S, B, L, D], and what waits in front of the first [S, M, B, L, D].

    All stages keep a place for what waits, though only the first one's is read: what does not move costs nothing.
    """

    inflow: jax.Array
    waiting: jax.Array


class _Flow:
    """The turns of one forward pass."""

    def __init__(self, stack: Stack, rows: Rows, schedule: Schedule, gather_once: bool):
        self.stack, self.rows, self.schedule, self.gather_once = stack, rows, schedule, gather_once
        # What a layer gets is kept, so that within a turn no layer runs a third time.
        inputs = jax.checkpoint_policies.save_only_these_names(RESIDUAL)
        policy = _as_for_one_stage(stack.policy or is_dear)
        self.policy = jax.checkpoint_policies.save_from_both_policies(policy, inputs)

    def run(self, x_MBLD: jax.Array) -> tuple[jax.Array, Noted]:
        """All turns."""
        stages, repeats, _, parts = self.schedule
        state = _State(
            inflow=_on_stages(jnp.zeros((stages, *x_MBLD.shape[1:]), x_MBLD.dtype)),
            waiting=_on_stages(jnp.broadcast_to(x_MBLD, (stages, *x_MBLD.shape))),
        )
        groups = self._groups(x_MBLD)
        # While a round begins, the later stages still work on the one before, with other layers.
        before = jax.tree.map(lambda x: jnp.concatenate([x[:1], x[:-1]]), groups)
        all_but_last, last = (jax.tree.map(lambda x, i=i: x[i], (groups, before)) for i in (slice(0, -1), -1))
        firsts, noted = jnp.arange(repeats, dtype=jnp.int32) * parts, []
        if repeats > 1:
            a_round = self._checkpoint(functools.partial(self._round, turns=parts))
            state, found = jax.lax.scan(a_round, state, (*all_but_last, firsts[:-1]))
            noted.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found))
        # Outside of a loop XLA would find what is computed again, and keep it instead.
        last_round = functools.partial(self._round, turns=parts + stages - 1)
        state, found = jax.checkpoint(last_round, policy=self.policy)(state, (*last, firsts[-1]))
        noted.append(found)
        # A sum of the first stage's and nothing, which every stage needs a part of.
        first = jnp.arange(stages).reshape(-1, *(1,) * x_MBLD.ndim) == 0
        out = jnp.sum(jnp.where(first, state.waiting, 0), axis=0, dtype=x_MBLD.dtype)
        return out, self._in_order(jax.tree.map(lambda *x: jnp.concatenate(x), *noted))

    def _axes(self, *leading: str | None) -> Any:
        return jax.tree.map(lambda _, names: (*leading, *names), self.stack.params, self.stack.axes)

    def _groups(self, x_MBLD: jax.Array) -> _Groups:
        """Leaves [repeats, stages, layers, ...]."""
        stages, repeats, layers, _ = self.schedule
        stack = self.stack
        axes = self._axes("layers")
        first = jax.tree.map(lambda leaf: leaf[0], (stack.params, stack.windows, x_MBLD, self.rows.split))
        params, window, x, part = first
        dtypes = dtypes_of_use(lambda params: stack.layer(params, window, x, *self.rows.join(part)), params)

        def place(held: Held, names: Axes) -> Held:
            return Held(*(to_stages(leaf, names, repeats, layers) for leaf in held))

        held = map_held(place, hold(stack.params, axes, dtypes), axes)
        windows = None if stack.windows is None else stack.windows.reshape(repeats, stages, layers)
        return _Groups(held, windows)

    def _round(self, state: _State, own: tuple[_Groups, _Groups, jax.Array], *, turns: int) -> tuple[_State, Noted]:
        """Some turns, in which the micro-batches enter new groups.

        Args:
          state: as the turn before left it.
          own: the new groups, those of the round before, and the number of the first turn.
          turns: how many.
        """
        now, before, first = own
        if self.gather_once:
            axes = self._axes("layers", None)
            now, before = (_Groups(gather_held(group.params, axes), group.windows) for group in (now, before))

        def turn(state: _State, index: jax.Array) -> tuple[_State, Noted]:
            stage = jnp.arange(self.schedule.stages, dtype=jnp.int32)
            is_first = stage.reshape(-1, *(1,) * (state.inflow.ndim - 1)) == 0
            entering = (first + index) % self.schedule.micro_batches
            part = (first + index - stage) % self.schedule.micro_batches
            x = jnp.where(is_first, _at(state.waiting, entering), state.inflow)
            own = [leaf[part] for leaf in self.rows.split]
            y, noted = work(now, before, _on_stages(x), own, index >= stage)
            return self._advance(state, _on_stages(y), first + index), noted

        work = self._checkpoint(self._work)
        return jax.lax.scan(turn, state, jnp.arange(turns, dtype=jnp.int32))

    def _work(
        self, now: _Groups, before: _Groups, x_SBLD: jax.Array, own: list[jax.Array], is_now: jax.Array
    ) -> tuple[jax.Array, Noted]:
        """One turn of all stages: `is_now` [S] says which group each of them works with."""

        def stage(
            now: _Groups, before: _Groups, x: jax.Array, own: list[jax.Array], is_now: jax.Array
        ) -> tuple[jax.Array, Noted]:
            group = now
            if self.schedule.repeats > 1:
                group = jax.tree.map(lambda a, b: jnp.where(is_now, a, b), now, before)

            def layer(x: jax.Array, group: _Groups) -> tuple[jax.Array, Noted]:
                return self.stack.layer(use(group.params), group.windows, x, *self.rows.join(own))

            return jax.lax.scan(self._checkpoint(layer), x, group)

        with _inside(self.gather_once):
            return jax.vmap(stage, spmd_axis_name=AXIS if num_stages() > 1 else None)(now, before, x_SBLD, own, is_now)

    def _advance(self, state: _State, y_SBLD: jax.Array, turn: jax.Array) -> _State:
        """Hands on to the next stage, and from the last to those that wait in front of the first."""
        inflow = shift(y_SBLD, RESIDUAL_AXES)
        left = turn - (self.schedule.stages - 1)
        place = left % self.schedule.micro_batches
        arrived = jnp.where(left >= 0, inflow, _at(state.waiting, place))
        return _State(inflow, jax.lax.dynamic_update_index_in_dim(state.waiting, arrived, place, 1))

    def _in_order(self, noted: Noted) -> Noted:
        """From [turns, stages, layers, rows] to [layers of the model, B]."""
        stages, repeats, layers, parts = self.schedule
        r, s, m = jnp.arange(repeats)[:, None, None], jnp.arange(stages)[:, None], jnp.arange(parts)
        turn = r * parts + m + s

        def order(x: jax.Array) -> jax.Array:
            # [repeats, stages, parts, layers, rows] to [layers of the model, parts, rows].
            x = jnp.swapaxes(x[turn, s], 2, 3).reshape(repeats * stages * layers, parts, -1)
            return jax.vmap(join_rows)(x)

        return {name: order(x) for name, x in noted.items()}

    def _checkpoint(self, function: Any) -> Any:
        return jax.checkpoint(function, policy=self.policy, prevent_cse=False)


def _as_for_one_stage(policy: Callable[..., Any]) -> Callable[..., Any]:
    """`policy`, to which a product of all stages looks like that of one: without the dimension of stages."""

    def decide(primitive: Any, *args: Any, **params: Any) -> Any:
        if primitive is jax.lax.dot_general_p:
            contracted, (left, right) = params["dimension_numbers"]
            params = {**params, "dimension_numbers": (contracted, (left[1:], right[1:]))}
        return policy(primitive, *args, **params)

    return decide


def _at(x: jax.Array, place: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, place, 1, keepdims=False)


@contextlib.contextmanager
def _inside(gather_once: bool) -> Iterator[None]:
    """The rules for layers, whose parameters may be gathered already."""
    context = current_rules()
    if context is None or not gather_once:
        yield
        return
    with activation_rules(context[0], while_held(context[1])):
        yield


def _on_stages(x: jax.Array) -> jax.Array:
    """Pins [S, (M,) B, L, D]."""
    return constrain(x, ("layers", *(None,) * (x.ndim - 4), *RESIDUAL_AXES))
