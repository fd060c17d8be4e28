"""Where a law was fitted: ranges of its quantities, and lines about what lies outside of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError

# From there on a range that begins at nothing is taken to have begun.
_FAR_BELOW = 1e-3


class Domain:
    """Ranges of the quantities that a law was fitted on; what is not named is not limited.

    Domain(params=(70e6, 16e9), tokens=(5e9, 5e11))
    """

    def __init__(self, **ranges: tuple[float, float]):
        for name, (low, high) in ranges.items():
            if not low <= high:
                raise UserError(f"domain of {name}: the low end {low} is above the high end {high}")
        self.ranges: Mapping[str, tuple[float, float]] = MappingProxyType(dict(ranges))

    def __repr__(self) -> str:
        return f"Domain({', '.join(f'{name}={limits}' for name, limits in self.ranges.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Domain) and self.ranges == other.ranges

    __hash__ = None

    def outside(self, **quantities: Any) -> list[str]:
        """One line for each quantity that leaves its range, with its value and the range; of arrays the extremes."""
        lines = []
        for name, (low, high) in self.ranges.items():
            if quantities.get(name) is None:
                continue
            for value in sorted({float(np.min(quantities[name])), float(np.max(quantities[name]))}):
                # The ends of ranges are rounded in papers.
                if not low * (1 - 1e-6) <= value <= high * (1 + 1e-6):
                    lines.append(f"{name} = {value:.4g} is outside {low:.4g} to {high:.4g}")
        return lines

    def far_below(self, **quantities: Any) -> list[str]:
        """One line for each quantity far below a range of which a paper only says where it ends."""
        lines = []
        for name, (low, high) in self.ranges.items():
            if low != 0 or quantities.get(name) is None:
                continue
            value = float(np.min(quantities[name]))
            if 0 < value < high * _FAR_BELOW:
                lines.append(f"{name} = {value:.4g} is far below {high:.4g}, and where the range begins is not known")
        return lines

    def known_range(self, name: str) -> tuple[float, float] | None:
        """The range of a quantity, one that begins at nothing from where it is taken to have begun; None for none."""
        if name not in self.ranges:
            return None
        low, high = self.ranges[name]
        return (low if low > 0 else high * _FAR_BELOW), high
