"""What hand-written kernels cost, of which the compiler knows nothing.

A Pallas call carries no `estimated_cycles`. What it states itself (`pallas_call(cost_estimate=…)`) is believed;
otherwise attention kernels are recognised by their names and counted from the shapes of queries and keys.
"""

from __future__ import annotations

import dataclasses
import math
import re

from t5x_scale.roofline.chips import Chip
from t5x_scale.roofline.hlo import Array, Computation, Instruction

_STATED = re.compile(r'"?cost_estimate"?:\s*\{([^}]*)\}')

# Products of a queries-by-keys square with the head size that a phase makes: the forward pass 2; the backward pass
# computes the scores again, then the gradients of values, weights, queries and keys, together or in two kernels.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "bwd": 5}


@dataclasses.dataclass(frozen=True)
class KernelModel:
    """How attention kernels run.

    Attributes:
      active_share: of the blocks that a kernel visits those that it computes; None is what a causal mask leaves of
        them.
      efficiency: share of the peak that a kernel reaches on active blocks, with a head as wide as the matrix unit.
      matrix_width: rows of the matrix unit; narrower heads leave the rest idle.
    """

    active_share: float | None = None
    efficiency: float = 0.6
    matrix_width: int = 128


@dataclasses.dataclass(frozen=True)
class KernelCost:
    """Name of the kernel, FLOPs that it runs and seconds."""

    name: str
    flops: float
    seconds: float


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction is a Pallas call."""
    return instruction.opcode == "custom-call" and '"tpu_custom_call"' in instruction.attributes


def kernel_cost(computation: Computation, instruction: Instruction, chip: Chip, model: KernelModel) -> KernelCost:
    """The cost of a Pallas call: stated, counted from shapes (attention), or its bytes."""
    name = kernel_name(instruction)
    moved = (computation.operand_bytes(instruction) + instruction.bytes) / (chip.hbm_bandwidth / chip.devices)
    stated = _stated(instruction)
    if stated is not None and stated[0] > 0:
        flops, width = stated[0], model.matrix_width
    else:
        flops, width = _attention_flops(instruction, computation.operands(instruction), model)
    efficiency = model.efficiency * min(1.0, width / model.matrix_width)
    return KernelCost(name, flops, max(flops / (chip.device_peak_flops * efficiency), moved))


def kernel_name(instruction: Instruction) -> str:
    """The kernel's name: the last part of the path that is not JAX's own word."""
    parts = [part for part in instruction.op_name.split("/") if part and part != "pallas_call"]
    return parts[-1] if parts else instruction.find(r"kernel_name\W+(\w+)") or "kernel"


def _stated(instruction: Instruction) -> tuple[float, float] | None:
    match = _STATED.search(instruction.attributes)
    if match is None:
        return None
    numbers = dict(re.findall(r'"?(\w+)"?:\s*"?([\d.e+]+)', match.group(1)))
    return float(numbers.get("flops", 0)), float(numbers.get("bytes_accessed", 0))


def _attention_flops(instruction: Instruction, operands: list[Instruction], model: KernelModel) -> tuple[float, int]:
    """(FLOPs, head size) of an attention kernel; (0, the matrix unit's width) of any other.

    The first two large floating-point operands are queries and keys. Splash kernels also bring a table of the blocks
    that they visit, [heads or 1, query blocks, visits], and the sizes of blocks in their metadata: rows that lie behind
    one another in one long sequence visit few of its blocks.
    """
    name = kernel_name(instruction)
    phase = next((phase for phase in _PRODUCTS if re.search(rf"(_|\b){phase}(_|\b)", name)), None)
    if phase is None and re.search("attention|splash|flash", name):
        phase = "bwd" if "transpose" in name or "backward" in name else "fwd"
    arrays = [operand.arrays[0] for operand in operands if operand.arrays]
    floats = [array for array in arrays if _is_float(array)]
    if phase is None or len(floats) < 2:
        return 0.0, model.matrix_width
    queries, keys = floats[0], floats[1]
    pairs = float(queries.size // queries.dims[-1] * keys.dims[-2])
    share = model.active_share
    table = next((array for array in arrays if array.dtype.startswith(("s", "u")) and len(array.dims) == 3), None)
    blocks = _blocks(instruction, phase)
    if table is not None and blocks is not None:
        visits = table.dims[-1] * table.dims[-2]
        pairs = float(math.prod(queries.dims[:-2])) * visits * blocks[0] * blocks[1]
        width = min(table.dims[-2:])
        share = (width + 1) / (2 * width) if share is None else share
    share = 0.5625 if share is None else share
    return 2.0 * _PRODUCTS[phase] * pairs * queries.dims[-1] * share, queries.dims[-1]


def _blocks(instruction: Instruction, phase: str) -> tuple[int, int] | None:
    """Queries and keys of a block, from the kernel's metadata."""
    suffix = {"fwd": "", "dq": "_dq", "dkv": "_dkv", "bwd": "_dkv"}[phase]
    sizes = [instruction.find(rf"block_{side}{suffix}\W+(\d+)") for side in ("q", "kv")]
    return (int(sizes[0]), int(sizes[1])) if all(sizes) else None


def _is_float(array: Array) -> bool:
    return array.dtype in ("bf16", "f32", "f16") and len(array.dims) >= 3
