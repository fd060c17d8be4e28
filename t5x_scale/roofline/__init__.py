"""From the optimised program of a training step to its time: what computes, what waits, and what bounds it.

    machine = make_machine(mesh, "v5p:4x4x4")
    report = analyse(compiled.as_text(), machine, compiled.memory_analysis(), ModelFlops(tokens, full, causal))
    print(to_text(report))

Knows nothing of models: what a model needs comes in as numbers.
"""

from t5x_scale.roofline.chips import CHIPS, Chip, find_chip
from t5x_scale.roofline.kernels import KernelModel
from t5x_scale.roofline.links import Constants, Machine, make_machine
from t5x_scale.roofline.predict import ModelFlops, Report, analyse
from t5x_scale.roofline.report import to_json, to_text

__all__ = [
    "CHIPS",
    "Chip",
    "Constants",
    "KernelModel",
    "Machine",
    "ModelFlops",
    "Report",
    "analyse",
    "find_chip",
    "make_machine",
    "to_json",
    "to_text",
]
