"""Objectives, one file each; see `interface` for what one is. Gin binds them as `objectives.CausalLm`, ….

Objectives are keyed by global row: the same row gives the same fields on any host, on any day.
"""

from t5x_scale.data.objectives.causal import CausalLm
from t5x_scale.data.objectives.denoisers import Denoiser, PrefixDenoiser, SpanDenoiser
from t5x_scale.data.objectives.fim import FillInTheMiddle
from t5x_scale.data.objectives.infill import SpanFromBothSides, SpanFromLeft
from t5x_scale.data.objectives.interface import Example, Objective, Piece, RowKeys
from t5x_scale.data.objectives.masked_diffusion import MaskedDiffusion
from t5x_scale.data.objectives.noise_lengths import noise_counts, raw_length_for
from t5x_scale.data.objectives.prefix_lm import PrefixLm
from t5x_scale.data.objectives.restoring import examples_of, inputs_and_targets, restore
from t5x_scale.data.objectives.span_corruption import SpanCorruption
from t5x_scale.data.objectives.supervised import Supervised
from t5x_scale.data.objectives.ul2 import UL2_DENOISERS, UL2R_DENOISERS, UL2R_RATES, Ul2, Ul2r

__all__ = [
    "UL2R_DENOISERS",
    "UL2R_RATES",
    "UL2_DENOISERS",
    "CausalLm",
    "Denoiser",
    "Example",
    "FillInTheMiddle",
    "MaskedDiffusion",
    "Objective",
    "Piece",
    "PrefixDenoiser",
    "PrefixLm",
    "RowKeys",
    "SpanCorruption",
    "SpanDenoiser",
    "SpanFromBothSides",
    "SpanFromLeft",
    "Supervised",
    "Ul2",
    "Ul2r",
    "examples_of",
    "inputs_and_targets",
    "noise_counts",
    "raw_length_for",
    "restore",
]
