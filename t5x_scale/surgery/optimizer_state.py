"""The state of an optimiser taken apart: moments that go with the parameters, and everything else.

All optimisers of `t5x_scale.optim` keep their averages as trees like that of the parameters, so their paths in a
checkpoint end in paths of parameters: `opt_state/0/mu/decoder/final_norm/scale`. What stands before is the slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from t5x_scale.core.leaves import Leaf, Leaves
from t5x_scale.surgery.interface import LAYERS


def split_state(leaves: Leaves, parameters: Leaves) -> tuple[dict[str, dict[str, Leaf]], dict[str, Leaf]]:
    """The moments and the counters of `Weights`.

    Args:
      leaves: of the optimiser's state, by their path in the checkpoint.
      parameters: of the model, by theirs.

    Returns:
      `{slot: {parameter path: Leaf}}`, the leaves named with the axes of their parameters; and `{path: Leaf}` of
      those that belong to no parameter, such as numbers of updates. A path that ends in those of two parameters
      belongs to the longer.
    """
    moments: dict[str, dict[str, Leaf]] = {}
    counters: dict[str, Leaf] = {}
    for path, leaf in leaves.items():
        slot, parameter = next(_ways_to_cut(path, parameters), ("", ""))
        if slot:
            moments.setdefault(slot, {})[parameter] = _with_axes_of(leaf, parameters[parameter])
        else:
            counters[path] = leaf
    return moments, counters


def join_state(moments: Mapping[str, Leaves], counters: Leaves) -> dict[str, Leaf]:
    """The inverse of `split_state`: all leaves by their path in the checkpoint."""
    joined = {f"{slot}/{path}": leaf for slot, leaves in moments.items() for path, leaf in leaves.items()}
    return joined | dict(counters)


def _ways_to_cut(path: str, parameters: Leaves) -> Iterator[tuple[str, str]]:
    """`(slot, parameter)` of each way to read the path, that with the longest parameter first."""
    parts = path.split("/")
    for cut in range(1, len(parts)):
        if (parameter := "/".join(parts[cut:])) in parameters:
            yield "/".join(parts[:cut]), parameter


def _with_axes_of(leaf: Leaf, parameter: Leaf) -> Leaf:
    """The leaf with its parameter's axes; of a leaf of another shape only the stack of layers is sure."""
    axes: tuple[str | None, ...] = (None,) * leaf.array.ndim
    if leaf.shape == parameter.shape:
        axes = parameter.axes
    elif parameter.axes[:1] == (LAYERS,) and leaf.shape[:1] == parameter.shape[:1]:
        axes = (LAYERS, *axes[1:])
    return Leaf(leaf.array, axes, leaf.origin)
