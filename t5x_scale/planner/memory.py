"""What a step needs of a device's memory, by a stated estimate: for what the compiler says there is `precompile`."""

from __future__ import annotations

import dataclasses
import math

from t5x_scale.models.accounting import DTYPE_BYTES, state_bytes
from t5x_scale.planner.meshes import MeshPlan
from t5x_scale.planner.shapes import Shape

# What is left of a device for a program (compilers keep some for themselves and for fragments).
USABLE = 0.92
# Positions whose logits exist at once (step.StepConfig.loss_chunk_length).
_LOSS_CHUNK = 128
# Arrays of the size of a layer's widest activation that are alive in its backward pass: gate, up, their product, and
# the gradients of these.
_ALIVE = 6
_TOKENS_AT_ONCE = 2**15
_MOST_PARTS = 4096


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a device.

    Attributes:
      state: parameters and two moments.
      gradients: in float32, of all parameters.
      gathered: weights of two layers in the compute dtype, as fsdp gathers them, and the token table's part.
      saved: the input of each layer, which the backward pass keeps under full rematerialisation.
      working: what a layer's backward pass computes again, and the logits of a chunk.
      available: of the device, for all of it.
      tokens: that a device has at once.
    """

    state: float
    gradients: float
    gathered: float
    saved: float
    working: float
    available: float
    tokens: float

    @property
    def total(self) -> float:
        return self.state + self.gradients + self.gathered + self.saved + self.working

    @property
    def fits(self) -> bool:
        return self.total <= self.available


def estimate_memory(
    shape: Shape, mesh: MeshPlan, rows: int, length: int, device_bytes: float, moments: int = 2
) -> MemoryPlan:
    """The memory of one device for one micro-batch with full rematerialisation.

    Args:
      shape: of the model.
      mesh: that splits it.
      rows: of a micro-batch, on all devices.
      length: of a row.
      device_bytes: of a device.
      moments: of the optimiser.
    """
    config, count = shape.config, shape.count
    split = mesh.fsdp * mesh.model
    width = DTYPE_BYTES[config.dtype]
    own_rows = rows / mesh.row_shares
    tokens = own_rows * length
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    widest = config.mlp_dim / mesh.model
    logits = 3 * 4 * own_rows * min(_LOSS_CHUNK, length) * config.vocab_size / mesh.model
    return MemoryPlan(
        state=state_bytes(count, config, moments=moments) / split,
        gradients=4 * count.total / split,
        gathered=width * (2 * count.per_layer + count.embedding) / mesh.model,
        saved=width * tokens * config.embed_dim * config.num_layers / mesh.model,
        working=width * tokens * (_ALIVE * widest + heads / mesh.model + 4 * config.embed_dim) + logits,
        available=USABLE * device_bytes,
        tokens=tokens,
    )


def choose_micro_batches(
    shape: Shape, mesh: MeshPlan, rows: int, length: int, device_bytes: float, smallest_rows: int | None = None
) -> tuple[int, MemoryPlan]:
    """The fewest micro-batches with which a step fits, and its memory; one row a device where none does.

    `smallest_rows` are those of the smallest batch of the run, which is cut into as many.
    """
    own_rows = math.gcd(rows, smallest_rows or rows) // mesh.row_shares
    # Kernels gain nothing from more tokens at once; a step in more parts than this is not one that is planned.
    least = rows / mesh.row_shares * length / _TOKENS_AT_ONCE
    parts = [part for part in range(1, min(own_rows, _MOST_PARTS) + 1) if own_rows % part == 0]
    parts = [part for part in parts if part >= least] or parts[-1:]
    plans = ((part, estimate_memory(shape, mesh, rows // part, length, device_bytes)) for part in parts)
    last = None
    for last in plans:
        if last[1].fits:
            break
    assert last is not None
    return last
