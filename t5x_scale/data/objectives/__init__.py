"""Objectives, one file each; see `interface` for what one is. Gin binds them as `objectives.CausalLm`, ….

Objectives are keyed by global row: the same row gives the same fields on any host, on any day.
"""

from t5x_scale.data.objectives.causal import CausalLm
from t5x_scale.data.objectives.interface import Example, Objective, Piece, RowKeys

__all__ = ["CausalLm", "Example", "Objective", "Piece", "RowKeys"]
