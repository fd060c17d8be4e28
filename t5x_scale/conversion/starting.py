"""How a run begins from another checkpoint: opened, changed, verified, loaded into shards, accounted for."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t5x_scale.checkpoint import layout, multihost
from t5x_scale.checkpoint.together import read_together
from t5x_scale.conversion.loading import load_array, load_parameters
from t5x_scale.conversion.sources import Source, open_source
from t5x_scale.core import files
from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.core.leaves import render_origins
from t5x_scale.core.trees import check_shapes
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.records import name_differences
from t5x_scale.models.weights import Weights
from t5x_scale.optim.continuing import clock_mask
from t5x_scale.surgery.optimizer_state import join_state

LOGGER = logging.getLogger("t5x_scale.conversion")
OPTIMIZER_CHOICES = ("reset", "restore")
Surgery = Callable[[Weights], Weights]


@dataclasses.dataclass(frozen=True)
class Started:
    """What a run begins with.

    Attributes:
      params: the parameters, placed.
      opt_state: the optimiser's state, placed; None where it begins afresh.
      report: the origin of every tensor, to be kept beside the run.
    """

    params: Any
    opt_state: Any | None
    report: str


def apply_transforms(weights: Weights, transforms: Sequence[Surgery]) -> Weights:
    """The weights after all surgeries, in order.

    Raises:
      UserError: something in the list is no surgery, or one of them does not fit the model.
    """
    for surgery in transforms:
        if not callable(surgery) or isinstance(surgery, type):
            name = surgery.__name__ if isinstance(surgery, type) else repr(surgery)
            raise UserError(f"{name} is no surgery yet; a list holds calls, such as [@depth.DepthUpscale()]")
        weights = surgery(weights)
    return weights


def check_optimizer_choice(choice: str) -> None:
    """Raises a UserError unless `choice` is "reset" or "restore"."""
    check_choice("INITIAL_OPTIMIZER", choice, OPTIMIZER_CHOICES)


def start_from(
    path: str,
    transforms: Sequence[Surgery],
    abstract_params: Mapping[str, Any],
    abstract_opt_state: Any | None,
    architecture: Architecture | None,
) -> Started:
    """Loads a checkpoint of any kind, changed by surgeries, as the beginning of a run.

    Args:
      path: see `sources.open_source`.
      transforms: surgeries, applied to lazy tensors in order.
      abstract_params: of the run, with shardings.
      abstract_opt_state: likewise, to go on with the checkpoint's moments (schedules begin at step 0 in any case);
        None leaves its optimiser alone.
      architecture: of the run's model, to name what it computes otherwise than the checkpoint; None if unknown.

    Raises:
      UserError: what is there cannot be read, does not verify, or does not fit the model.
    """
    # Before surgeries the model is another one than the run's.
    source = _open_together(path, None if transforms else architecture, parameters_only=abstract_opt_state is None)
    weights = apply_transforms(source.weights, transforms)
    warn_of_differences(weights.architecture, architecture, source.place)
    params = load_parameters(weights.leaves, abstract_params, source.place)
    opt_state = None
    if abstract_opt_state is not None:
        opt_state = load_optimizer_state(weights, abstract_opt_state, source.place)
    fate = "afresh" if opt_state is None else "restored"
    report = f"from {source.place} ({source.kind}); optimiser: {fate}\n"
    return Started(params, opt_state, report + render_origins(weights.leaves, weights.dropped))


def load_optimizer_state(weights: Weights, abstract_opt_state: Any, source: str) -> Any:
    """The moments of `weights` and their counts, in the shards of a state; positions of schedules start at 0.

    Raises:
      UserError: see `check_optimizer_state`.
    """
    check_optimizer_state(weights, abstract_opt_state, source)
    found = join_state(weights.moments, weights.counters)
    wanted, clocks = _flatten_state(abstract_opt_state)
    placed = {
        path: _zeros(leaf) if clocks[path] else load_array(found[path].array, leaf) for path, leaf in wanted.items()
    }
    return layout.unflatten_leaves({"opt_state": abstract_opt_state}, placed)["opt_state"]


def check_optimizer_state(weights: Weights, abstract_opt_state: Any, source: str) -> None:
    """Checks that `weights` bring the state that an optimiser needs, reading none of it.

    Raises:
      UserError: there is no state, or it is that of another kind of optimiser.
    """
    if not weights.moments:
        raise UserError(
            f"{source} brings no optimiser state (it holds none, or a surgery reset it); set INITIAL_OPTIMIZER = "
            '"reset"'
        )
    found = join_state(weights.moments, weights.counters)
    wanted, clocks = _flatten_state(abstract_opt_state)
    # Positions of schedules are not taken from there.
    found, wanted = ({path: leaf for path, leaf in tree.items() if not clocks.get(path)} for tree in (found, wanted))
    hint = '; the same kind of optimiser is needed to restore its state, or INITIAL_OPTIMIZER = "reset"'
    check_shapes(found, wanted, source, leaf="leaf", user="this optimiser", hint=hint)


def _flatten_state(abstract_opt_state: Any) -> tuple[dict[str, Any], dict[str, bool]]:
    """The leaves of a state as a checkpoint names them, and which of them are positions of schedules."""
    trees = (abstract_opt_state, clock_mask(abstract_opt_state))
    wanted, clocks = (layout.flatten_leaves({"opt_state": tree}) for tree in trees)
    return wanted, clocks


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()


def warn_of_differences(saved: Architecture | None, asked: Architecture | None, place: str) -> None:
    """Says what a model computes otherwise with the parameters of `place` than the one that they were trained in."""
    if saved is None or asked is None:
        LOGGER.warning("what the model computes cannot be compared with %s: only shapes are", place)
        return
    # What has no meaning for either is not compared.
    for difference in name_differences(saved.normalized(), asked.normalized()):
        LOGGER.warning("this run computes otherwise than %s: %s", place, difference)


def _open_together(path: str, architecture: Architecture | None, parameters_only: bool) -> Source:
    """Opens a source on every process, the same step of it; process 0 alone reads all bits to verify them."""

    def open_verified() -> Source | None:
        return open_source(path, architecture, parameters_only=parameters_only) if multihost.is_primary() else None

    def open_same() -> Source:
        if source is not None:
            return source
        place = str(layout.step_directory(layout.find_step_directory(path)[0], steps[0])) if steps else path
        return open_source(place, architecture, parameters_only=parameters_only, verify=False)

    source = read_together(open_verified, path)
    is_own = source is not None and source.is_own
    steps = multihost.share_steps([int(files.to_path(source.place).name)] if is_own else [])
    return read_together(open_same, path)
