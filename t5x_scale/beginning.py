"""What a run begins with: values drawn from its seed, or a checkpoint of any kind, changed on the way in."""

from __future__ import annotations

import dataclasses
import logging

import jax

from t5x_scale.checkpoint.restore import OriginReport, read_document, restore_parameters
from t5x_scale.checkpoint.together import read_together
from t5x_scale.conversion.sources import is_own, open_source, recorded_architecture
from t5x_scale.conversion.starting import (
    Surgery,
    apply_transforms,
    check_optimizer_choice,
    check_optimizer_state,
    start_from,
    warn_of_differences,
)
from t5x_scale.core.errors import UserError
from t5x_scale.core.files import to_path, write_text
from t5x_scale.core.trees import check_shapes, flatten
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.assembly import from_description
from t5x_scale.models.interface import Params
from t5x_scale.models.weights import Weights
from t5x_scale.optim.frozen_layers import find_frozen_layers
from t5x_scale.program import Runtime
from t5x_scale.surgery.depth import find_new_layers, render_layers
from t5x_scale.train_state import TrainState

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a new run begins with.

    Attributes:
      checkpoint_path: a checkpoint of any kind that can be read; None draws the parameters from the seed.
      transforms: surgeries on it, in order.
      optimizer: "reset" begins afresh, "restore" goes on with the checkpoint's moments.
    """

    checkpoint_path: str | None = None
    transforms: tuple[Surgery, ...] = ()
    optimizer: str = "reset"

    def __post_init__(self) -> None:
        check_optimizer_choice(self.optimizer)
        if not self.checkpoint_path and (self.transforms or self.optimizer != "reset"):
            raise UserError(
                "INITIAL_TRANSFORMS and INITIAL_OPTIMIZER change what is in a checkpoint: set INITIAL_CHECKPOINT_PATH"
            )


def check_beginning(runtime: Runtime, beginning: Beginning) -> None:
    """Checks that a checkpoint fits the run, reading none of its tensors: before hours are spent on data.

    Raises:
      UserError: it cannot be opened, a surgery does not fit it, or the result does not fit the model or the optimiser.
    """
    path = beginning.checkpoint_path
    if not path:
        return
    architecture = None if beginning.transforms else find_architecture(runtime)
    is_reset = beginning.optimizer == "reset"
    weights = open_source(path, architecture, parameters_only=is_reset, verify=False).weights
    weights = apply_transforms(weights, beginning.transforms)
    check_shapes(weights.leaves, flatten(runtime.abstract_params), path)
    _check_new_layers(weights, runtime, path)
    if not is_reset:
        check_optimizer_state(weights, runtime.abstract_state.opt_state, path)


def _check_new_layers(weights: Weights, runtime: Runtime, path: str) -> None:
    """Checks that of an expanded model the new layers are those that train, where some are frozen."""
    frozen = find_frozen_layers(runtime.program.optimizer)
    num_layers = runtime.program.model.config.num_layers
    new = find_new_layers(weights.recipe, num_layers)
    if frozen is None or not new or set(frozen.trained_layers(num_layers)) == set(new):
        return
    trained = render_layers(frozen.trained_layers(num_layers))
    text = f"block expansion made layers {render_layers(new)} of {path}, and FrozenLayers trains {trained}"
    if frozen.train_every is None:
        logger.warning("%s", text)
        return
    every = new[0] + 1
    remedy = "" if num_layers % every else f"set FrozenLayers.train_every (TRAIN_EVERY) to {every}, or "
    raise UserError(f"{text}: {remedy}list what shall train in FrozenLayers.trained")


def begin(model_dir: str, runtime: Runtime, beginning: Beginning) -> TrainState:
    """The state of a new run at step 0, and beside the run `origin.txt`: where every parameter came from."""
    path = beginning.checkpoint_path
    if not path:
        return runtime.init_state()
    if _is_own(path) and not beginning.transforms and beginning.optimizer == "reset":
        params, report = _restore(path, runtime)
        _write_origin(model_dir, report.render())
        return runtime.state_from(params)
    opt_state = runtime.abstract_state.opt_state if beginning.optimizer == "restore" else None
    started = start_from(path, beginning.transforms, runtime.abstract_params, opt_state, find_architecture(runtime))
    _write_origin(model_dir, started.report)
    return runtime.state_from(started.params, started.opt_state)


def load_parameters(runtime: Runtime, path: str) -> tuple[Params, str]:
    """The parameters of a checkpoint of any kind in the shards of a model, and what to call it."""
    if _is_own(path):
        params, report = _restore(path, runtime)
        return params, report.source
    started = start_from(path, (), runtime.abstract_params, None, find_architecture(runtime))
    return started.params, path


def _is_own(path: str) -> bool:
    """`is_own`, with one outcome where it cannot be found out by all processes."""
    return read_together(lambda: is_own(path), path)


def _restore(path: str, runtime: Runtime) -> tuple[Params, OriginReport]:
    """The parameters of a checkpoint of ours as they are: read in parallel, and verified on the devices."""
    params, report = restore_parameters(path, runtime.abstract_params)
    asked = find_architecture(runtime)
    if asked is not None:
        saved = recorded_architecture(read_document(to_path(report.source)).metadata)
        warn_of_differences(saved, asked, report.source)
    return params, report


def find_architecture(runtime: Runtime) -> Architecture | None:
    """What the run's model computes; None where an Architecture cannot say it."""
    try:
        return from_description(runtime.program.model.architecture())
    except UserError:
        return None


def _write_origin(model_dir: str, report: str) -> None:
    if jax.process_index() == 0:
        write_text(to_path(model_dir) / "origin.txt", report + "\n")
