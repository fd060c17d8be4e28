"""Numbers scattered by a bijection of 64 bits, the same for all time: the finaliser of SplitMix64.

Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014. Orders of data, packing plans and what
surgeries draw are made of it, so that its constants are part of the format of runs and stores.
"""

from __future__ import annotations

import numpy as np

# What SplitMix64 counts in: multiples of it are far from each other in every bit.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STAGES = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST = np.uint64(31)


def mix(values: np.ndarray) -> np.ndarray:
    """uint64 of any shape to the same shape: every bit of the result depends on every bit of the argument."""
    with np.errstate(over="ignore"):  # Products wrap around, which numpy says of single numbers.
        for shift, factor in _STAGES:
            mixed = values >> shift
            mixed ^= values
            mixed *= factor
            values = mixed
    return values ^ (values >> _LAST)
