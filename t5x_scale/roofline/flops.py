"""FLOPs of the matrix products of a compiled program, as it runs them: recomputation included, padding left out.

A multiplication and its addition are two. The TPU compiler writes a product as a convolution, often with batch
dimensions disguised as dilated spatial ones; only positions at which a window meets data are counted.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from t5x_scale.roofline.hlo import Array, Computation, Instruction, Module


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """FLOPs of one instruction itself: of a `dot` or `convolution`, 0 of anything else."""
    operands = computation.operands(instruction)
    if instruction.opcode not in ("dot", "convolution") or len(operands) < 2:
        return 0.0
    if not (instruction.arrays and operands[0].arrays and operands[1].arrays):
        return 0.0
    left, right = operands[0].arrays[0], operands[1].arrays[0]
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        dims = [int(dim) for dim in contracted.group(1).split(",") if dim] if contracted else []
        return 2.0 * instruction.arrays[0].size * float(np.prod([left.dims[dim] for dim in dims] or [1]))
    return _convolution(instruction, left, right)


def fused_flops(module: Module, computation: Computation, instruction: Instruction) -> float:
    """FLOPs of one instruction and of what is fused into it; not of loops and calls."""
    if instruction.opcode == "fusion":
        inner = module.called(instruction, "calls")
        return sum(fused_flops(module, inner, part) for part in inner.instructions) if inner else 0.0
    return product_flops(computation, instruction)


def _convolution(instruction: Instruction, left: Array, right: Array) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        return 0.0
    inputs, kernel, output = labels.groups()
    result = instruction.arrays[0].dims
    flops = 2.0 * result[output.index("b")] * result[output.index("f")] * right.dims[kernel.index("i")]
    window = _window(instruction.attributes)
    for axis in range(len(output) - 2):
        label = str(axis)
        flops *= _meetings(
            left.dims[inputs.index(label)],
            right.dims[kernel.index(label)],
            result[output.index(label)],
            window("stride", axis, 1),
            window("pad", axis, 0),
            window("lhs_dilate", axis, 1),
            window("rhs_dilate", axis, 1),
        )
    return flops


def _window(attributes: str):
    """A function of (field, spatial axis, default) over `window={size=1x32 pad=0_0x31_31 …}`."""
    text = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=", 1) for part in text.group(1).split() if "=" in part) if text else {}

    def field(name: str, axis: int, default: int) -> int:
        values = fields.get(name, "").split("x")
        return int(values[axis].split("_")[0]) if axis < len(values) and values[axis] else default

    return field


@functools.lru_cache(maxsize=4096)
def _meetings(size: int, kernel: int, output: int, stride: int, pad: int, dilate: int, kernel_dilate: int) -> int:
    """Pairs (position of the output, position in the window) that meet an element of the input along one axis."""
    if kernel == 1 and pad == 0 and dilate == 1:
        return output
    position = np.arange(output)[:, None] * stride - pad + np.arange(kernel)[None] * kernel_dilate
    inside = (position >= 0) & (position <= (size - 1) * dilate) & (position % dilate == 0)
    return int(inside.sum())
