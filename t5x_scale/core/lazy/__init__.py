"""Arrays that are described, not held: a shape, a dtype, and a way to read any box of elements.

Conversions and surgeries are written as views on such arrays, so that a model of any size passes through a few
hundred megabytes: what is read is one block of one tensor at a time, in the order in which it lies in its file.

A `Region` has one slice a dimension, with start and stop inside the shape and step 1. What `read` returns must not
be written to: it may be a view of what somebody else holds.
"""

from __future__ import annotations

from t5x_scale.core.lazy.array import LazyArray, Region, block_shape, blocks, normalize, to_dtype
from t5x_scale.core.lazy.sources import from_array, full, normal, uniform
from t5x_scale.core.lazy.views import (
    cast,
    concatenate,
    elementwise,
    expand,
    mean,
    merge_axes,
    scale,
    select,
    split_axis,
    stack,
    take,
    take_slice,
    transpose,
)

__all__ = [
    "LazyArray",
    "Region",
    "block_shape",
    "blocks",
    "cast",
    "concatenate",
    "elementwise",
    "expand",
    "from_array",
    "full",
    "mean",
    "merge_axes",
    "normal",
    "normalize",
    "scale",
    "select",
    "split_axis",
    "stack",
    "take",
    "take_slice",
    "to_dtype",
    "transpose",
    "uniform",
]
