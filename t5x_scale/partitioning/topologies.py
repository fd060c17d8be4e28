"""TPU slices that are not here: the devices for which the TPU compiler compiles on any machine.

A topology is named as its makers do, generation and shape: `v4:4x4x4`, `v5p:8x8x8`, `v5e:4x4`, `v6e:16x16`. Needs the
package `libtpu` (`pip install t5x_scale[tpu]`) and no TPU.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax

from t5x_scale.core.errors import UserError, did_you_mean

# What the compiler calls a generation, and whether two cores of a chip act as one device there.
GENERATIONS = {"v4": ("v4", True), "v5p": ("v5", True), "v5e": ("v5e", False), "v6e": ("v6e", False)}
_NAME = re.compile(r"([a-z0-9]+):(\d+(?:x\d+)*)")


def topology_devices(name: str, num_slices: int = 1) -> Sequence[jax.Device]:
    """The devices of `num_slices` slices, for compilation only.

    Raises:
      UserError: the name is none, the compiler does not know the shape, or libtpu is not installed.
    """
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise UserError(f"TOPOLOGY is {name!r}; expected a generation and a shape, such as 'v5p:4x4x4'")
    generation, shape = match.groups()
    if generation not in GENERATIONS:
        near = did_you_mean(generation, GENERATIONS) or f"; known are {', '.join(GENERATIONS)}"
        raise UserError(f"TOPOLOGY {name!r}: unknown generation {generation!r}{near}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs the package libtpu: pip install 't5x_scale[tpu]'")
    # Neither a metadata server nor a device is asked.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    from jax.experimental import topologies

    compiler_name, is_megacore = GENERATIONS[generation]
    options = {"chip_config_name": "megacore" if is_megacore else "default", "num_slices": num_slices}
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=f"{compiler_name}:{shape}", **options)
    except Exception as error:  # The plug-in raises what it likes.
        raise UserError(f"the TPU compiler does not know {name!r}: {str(error).splitlines()[0]}") from error
    chips = num_slices * math.prod(map(int, shape.split("x")))
    if len(description.devices) != chips:
        raise UserError(f"{name!r} is {chips} chips, and the compiler lists {len(description.devices)} devices")
    return description.devices
