"""Peak dense bfloat16 matmul FLOP/s of one device, by the name JAX gives to its kind.

A *device* here is what `jax.devices()` lists, so that `peak_flops(kind) * jax.device_count()` is the peak of
the system: a core on TPU v2, v3 and TPU7x (two a chip), a whole chip on v4 and v5p (their two cores act as
one "megacore"; a runtime started with megacore switched off lists two devices a chip, each worth half of
the number here), on v4i, v5e and v6e (one core), and a GPU.
"""

from __future__ import annotations

import re

from t5x_scale.roofline.chips import CHIPS

# Of the generations that runs are planned for `roofline.chips` owns the numbers; JAX calls a kind one way or the other.
# The rest: jax/_src/pallas/mosaic/tpu_info.py, as are the cores a chip of v2 and v3.
_TPU: dict[str, float] = {
    "TPU v2": 46e12 / 2,
    "TPU v3": 123e12 / 2,
    "TPU v4 lite": 137e12,
    **{
        kind: chip.device_peak_flops
        for chip in CHIPS.values()
        if chip.torus
        for kind in (chip.kind, f"TPU {chip.name}")
    },
}

# NVIDIA's data sheets, which print twice these numbers, "with sparsity" (A100: both). The first match counts.
_GPU: tuple[tuple[str, float], ...] = (
    (r"NVIDIA A100\b.*", 312e12),  # A100 data sheet; all form factors.
    (r"NVIDIA H100 PCIe\b.*", 756e12),  # H100 data sheet.
    (r"NVIDIA H100 NVL\b.*", 835e12),  # H100 NVL product brief, one of its two boards.
    (r"NVIDIA H100\b.*", CHIPS["h100"].device_peak_flops),
    (r"NVIDIA GH200\b.*", 989e12),  # GH200 data sheet: the Hopper of the H100 SXM.
    (r"NVIDIA H200 NVL\b.*", 835e12),  # H200 data sheet.
    (r"NVIDIA H200\b.*", CHIPS["h200"].device_peak_flops),
    (r"NVIDIA B200\b.*", 2250e12),  # Blackwell architecture technical brief, HGX B200, per GPU.
    (r"NVIDIA GB200\b.*", 2500e12),  # Blackwell architecture technical brief, GB200, per GPU.
)


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bf16 FLOP/s of one device of this `jax.Device.device_kind`.

    Returns None for a CPU and for a kind that is not in the table: no utilisation is printed then, rather
    than one with an invented denominator.
    """
    if device_kind in _TPU:
        return _TPU[device_kind]
    return next((peak for pattern, peak in _GPU if re.fullmatch(pattern, device_kind)), None)
