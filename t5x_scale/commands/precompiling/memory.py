"""What a compiled step takes of a device's memory, and what for."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from t5x_scale.program import Runtime
from t5x_scale.roofline.memory import Memory
from t5x_scale.run_files import bytes_text

# Bytes of a device's memory that a program may use, as the TPU compiler of libtpu 0.0.42 says when one does not fit.
USABLE_HBM: dict[str, int] = {
    "TPU v4": int(30.75 * 2**30),
    "TPU v5 lite": int(15.75 * 2**30),
    "TPU v5": int(95.74 * 2**30),
    "TPU v6 lite": int(31.25 * 2**30),
    "TPU7x": int(94.75 * 2**30),
}


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes of one device while a step runs.

    Attributes:
      parameters, optimizer_state: the shards that a device holds, as their shapes say.
      inputs: batch, metrics, and what the compiler pads the state with.
      activations: what layers save for the backward pass.
      temporaries: everything else that exists for a while: gathered weights, gradients, activations of one layer.
      results: beyond the state, which takes the place of the old one.
      program: the code.
      host: temporaries in the host's memory, of this device.
      peak: the most that exists at once, without the program; None where the compiler does not say. It may be less than
        the parts together, since temporaries are counted by the room they are given, and parts of it serve twice.
      usable: what a program may take of a device; None where nobody says.
    """

    parameters: int
    optimizer_state: int
    inputs: int
    activations: int
    temporaries: int
    results: int
    program: int
    host: int = 0
    peak: int | None = None
    usable: int | None = None

    @property
    def parts(self) -> dict[str, int]:
        """What it consists of, by name."""
        return {
            "parameters": self.parameters,
            "optimiser state": self.optimizer_state,
            "batch and metrics": self.inputs,
            "saved activations": self.activations,
            "other temporaries": self.temporaries,
            "results beyond the donated state": self.results,
            "program": self.program,
        }

    @property
    def total(self) -> int:
        """Of the device's own memory, at once."""
        together = sum(self.parts.values())
        return together if not self.peak else min(together, self.peak + self.program)

    @property
    def fits(self) -> bool:
        """Whether it does; the compiler refuses most of what does not."""
        return self.usable is None or self.total <= self.usable

    def lines(self) -> list[str]:
        """A table."""
        whole = "" if self.usable is None else f"  of {bytes_text(self.usable)}, {self.total / self.usable:.0%}"
        if self.total < sum(self.parts.values()):
            whole += "  (less than its parts: room that serves twice)"
        lines = [f"  {name:34}{bytes_text(size):>14}" for name, size in self.parts.items()]
        lines.append(f"  {'a device, at once':34}{bytes_text(self.total):>14}{whole}")
        return lines + ([f"  {'and of its host':34}{bytes_text(self.host):>14}"] if self.host else [])


def measure(runtime: Runtime, taken: Memory, peak: int | None = None) -> StepMemory:
    """The memory of a step of `runtime`, of which the compiler said what it takes in all, and at once."""
    state = runtime.abstract_state
    parameters, optimizer_state = shard_bytes(state.params), shard_bytes(state.opt_state)
    activations = min(taken.stacked, taken.temporaries)
    return StepMemory(
        parameters=parameters,
        optimizer_state=optimizer_state,
        inputs=max(taken.state - parameters - optimizer_state, 0),
        activations=activations,
        temporaries=taken.temporaries - activations,
        results=taken.results,
        program=taken.program,
        host=taken.host,
        peak=peak or None,
        usable=USABLE_HBM.get(runtime.mesh.devices.flat[0].device_kind),
    )


def shard_bytes(tree: Any) -> int:
    """Bytes on each device of a tree of `ShapeDtypeStruct`s with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
