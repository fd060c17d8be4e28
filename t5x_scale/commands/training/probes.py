"""What the loop does now and then beside its steps: it times fixed work, and asks whether the devices count right."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from t5x_scale.checkpoint.layout import flatten_leaves
from t5x_scale.core.errors import UserError
from t5x_scale.monitor.corruption import Difference, compare_answers, compare_copies, compare_twice
from t5x_scale.monitor.health import Health
from t5x_scale.monitor.speed_probe import known_answers, measure_speeds
from t5x_scale.monitor.writers import MetricWriters
from t5x_scale.program import Runtime
from t5x_scale.train_state import TrainState

logger = logging.getLogger(__name__)

_LOSS = "loss"


class Probes:
    """Both probes of a run. They need the devices for themselves: let these run dry before."""

    def __init__(self, runtime: Runtime, health: Health, writers: MetricWriters):
        self._runtime, self._health, self._writers = runtime, health, writers
        self._config = health.config.probe
        every = health.config.stragglers.probe_every_steps
        self._every = every if jax.process_count() > 1 else 0
        self._devices = [device.id for device in runtime.mesh.devices.flat]

    def is_due(self, step: int) -> bool:
        """Whether `run` has anything to do after `step` steps; the same in every process."""
        return self._config.is_due(step) or self._is_timing_due(step)

    def run(self, step: int, state: TrainState, batch: Any) -> None:
        """Does what is due.

        Args:
          step: steps done.
          state: after them; it is left as it is.
          batch: the next.

        Raises:
          UserError: bits differ, and the configuration says to stop then.
        """
        if self._is_timing_due(step):
            self._health.peers.own.probed(measure_speeds(jax.local_devices()))
        if not self._config.is_due(step):
            return
        differences = self._find_differences(state, batch)
        self._writers.event("probe", step, differences=[difference.to_event() for difference in differences])
        for difference in differences:
            logger.warning("step %d: silent data corruption: %s", step, difference.render())
        if differences and self._config.stop:
            said = "; ".join(difference.render() for difference in differences)
            raise UserError(
                f"stopped at step {step}: {said}. Take the machine out; the same command resumes from "
                "the newest checkpoint"
            )

    def _is_timing_due(self, step: int) -> bool:
        return bool(self._every) and step > 0 and step % self._every == 0

    def _find_differences(self, state: TrainState, batch: Any) -> list[Difference]:
        runtime, devices = self._runtime, self._devices
        names = [_LOSS, *flatten_leaves(runtime.abstract_params)]
        first, second = (np.asarray(runtime.gradient_prints(state.params, batch)) for _ in range(2))
        leaves = flatten_leaves(runtime.abstract_state)
        shards = [_places(leaf, runtime.mesh.devices.flat) for leaf in leaves.values()]
        found = [
            compare_twice(first, second, devices, names),
            compare_copies(np.asarray(runtime.state_prints(state)), shards, devices, list(leaves)),
            compare_answers(known_answers(runtime.mesh), devices),
        ]
        return [difference for difference in found if difference is not None]


def _places(leaf: jax.ShapeDtypeStruct, devices: Iterable[jax.Device]) -> list[tuple[tuple[int, int, int], ...]]:
    """Which part of an array each device holds."""
    held = leaf.sharding.devices_indices_map(leaf.shape)
    return [
        tuple(part.indices(size) for part, size in zip(held[device], leaf.shape, strict=True)) for device in devices
    ]
