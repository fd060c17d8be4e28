"""What hand-written kernels cost, of which the compiler knows nothing.

A Pallas call carries no `estimated_cycles`. Attention kernels are recognised by their names and counted from the shapes
of queries and keys; what others state themselves (`pallas_call(cost_estimate=…)`) is believed.
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
# One kernel for all gradients is called after two of them.
_ALL_GRADIENTS = 5
# What a causal mask leaves of eight blocks by eight, where nothing is known of the blocks.
_CAUSAL = 9 / 16


@dataclasses.dataclass(frozen=True)
class KernelModel:
    """How kernels run.

    Of attention, the constants are read off the schedules that the TPU compiler (libtpu 0.0.42) makes of JAX's splash
    for v5p, blocks of 512 by 512 and heads of 128: bundles, one a cycle, of what runs once a block are 1,164 forward,
    1,509 for dq and 1,874 for dk and dv, where products at the peak take 1,024, 1,536 and 2,048; 290, 163 and 331 more
    run at every visit. The same for v6e, not used: 899, 1,016 and 1,284; 258, 112 and 156; and of its one kernel for
    all gradients with blocks of 2,048, 23,305 in all. The model has 806, 986 and 1,165, and 21,760.

    Attributes:
      active_share: of the blocks that an attention kernel visits those that it computes; None is what a causal mask
        leaves of them.
      vector_operations: on each score of an attention kernel, forward or backward: mask, maximum, exponential, sum and
        what moves between registers.
      hidden_share: of the time of products, what vector work goes on beside. More is not in one block: the scores are
        all there before their maximum is known.
      visit_cycles: for each block that is visited, computed or not: indices, copies begun and waited for.
      efficiency: share of the peak that other kernels reach.
    """

    active_share: float | None = None
    vector_operations: float = 7.0
    hidden_share: float = 0.3
    visit_cycles: float = 260.0
    efficiency: float = 0.6


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
    """The cost of a Pallas call: counted from shapes (attention), stated, or its bytes."""
    name = kernel_name(instruction)
    moved = (computation.operand_bytes(instruction) + instruction.bytes) / (chip.hbm_bandwidth / chip.devices)
    attention = _attention(instruction, computation.operands(instruction), model)
    if attention is None:
        flops = _stated_flops(instruction)
        return KernelCost(name, flops, max(flops / (chip.device_peak_flops * model.efficiency), moved))
    flops = 2.0 * attention.products * attention.scores * attention.head
    # A head narrower than the matrix unit leaves the rest of it idle: it is summed over for the scores (rows), and it
    # is what the weighted values are wide (columns).
    matrix = flops / (chip.device_peak_flops * min(1.0, attention.head / chip.matrix_width))
    vector = visits = 0.0
    if chip.clock:
        vector = attention.scores * model.vector_operations / chip.vector_rate
        visits = attention.visits * model.visit_cycles / (chip.clock * chip.cores / chip.devices)
    seconds = matrix + max(vector - model.hidden_share * matrix, 0.0) + visits
    return KernelCost(name, flops, max(seconds, moved))


def kernel_name(instruction: Instruction) -> str:
    """The kernel's name: the last part of the path that is not JAX's own word."""
    parts = [part for part in instruction.op_name.split("/") if part and part != "pallas_call"]
    return parts[-1] if parts else instruction.find(r"kernel_name\W+(\w+)") or "kernel"


def _stated_flops(instruction: Instruction) -> float:
    match = _STATED.search(instruction.attributes)
    numbers = dict(re.findall(r'"?(\w+)"?:\s*"?([\d.e+]+)', match.group(1))) if match else {}
    return float(numbers.get("flops", 0))


@dataclasses.dataclass(frozen=True)
class _Attention:
    """An attention kernel: scores that it computes, products made with them, head size, blocks visited (0: unknown)."""

    scores: float
    products: int
    head: int
    visits: float = 0.0


def _attention(instruction: Instruction, operands: list[Instruction], model: KernelModel) -> _Attention | None:
    """What an attention kernel computes; None of any other.

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
        return None
    queries, keys = floats[0], floats[1]
    gradients = sum(_is_float(array) and array.dims[-2] >= keys.dims[-2] for array in instruction.arrays)
    products = _ALL_GRADIENTS if phase == "dkv" and gradients == 3 else _PRODUCTS[phase]
    scores, share = float(queries.size // queries.dims[-1] * keys.dims[-2]), model.active_share
    table = next((array for array in arrays if array.dtype.startswith(("s", "u")) and len(array.dims) == 3), None)
    blocks = _blocks(instruction, phase)
    visits = 0.0
    if table is not None and blocks is not None:
        width = min(table.dims[-2:])
        visits = float(math.prod(queries.dims[:-2])) * table.dims[-1] * table.dims[-2]
        scores = visits * blocks[0] * blocks[1]
        share = (width + 1) / (2 * width) if share is None else share
    return _Attention(scores * (_CAUSAL if share is None else share), products, queries.dims[-1], visits)


def _blocks(instruction: Instruction, phase: str) -> tuple[int, int] | None:
    """Queries and keys of a block, from the kernel's metadata."""
    suffix = {"fwd": "", "dq": "_dq", "dkv": "_dkv", "bwd": "_dkv"}[phase]
    sizes = [instruction.find(rf"block_{side}{suffix}\W+(\d+)") for side in ("q", "kv")]
    return (int(sizes[0]), int(sizes[1])) if all(sizes) else None


def _is_float(array: Array) -> bool:
    return array.dtype in ("bf16", "f32", "f16") and len(array.dims) >= 2
