"""TPU slices that are not here: the devices for which the TPU compiler compiles on any machine.

A topology is named as its makers do, generation and shape in chips: `v4:4x4x4`, `v5p:8x8x8`, `v5e:4x4`, `v6e:16x16`,
`tpu7x:4x4x4`. A chip is one device, or two (`tpu7x`): the sizes of a mesh multiply to the devices. Needs the package
`libtpu` (`pip install -e '.[tpu]'`) and no TPU.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.partitioning.proposals import divisors


class Generation(NamedTuple):
    """One generation of chips.

    Attributes:
      name: what the compiler calls it.
      chip_config: how the cores of a chip are joined.
      dimensions: of its torus.
      devices_per_chip: what a chip then is.
      has_single_chips: whether there are hosts of one chip, which join no others.
    """

    name: str
    chip_config: str
    dimensions: int
    devices_per_chip: int = 1
    has_single_chips: bool = False


GENERATIONS = {
    "v4": Generation("v4", "megacore", 3),
    "v5p": Generation("v5", "megacore", 3),
    "v5e": Generation("v5e", "default", 2, has_single_chips=True),
    "v6e": Generation("v6e", "default", 2, has_single_chips=True),
    "tpu7x": Generation("tpu7x", "default", 3, 2),
}
# No slice has more chips.
_MOST_CHIPS = 16 * 24 * 24
# Neither a metadata server nor a device is asked, and nothing is said about what they would have answered: the names of
# a host and a machine only have to look like some.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5p-128",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
_SINGLE_CHIP = "1x1"
_NAME = re.compile(r"([a-z0-9]+):([1-9]\d{0,4}(?:x[1-9]\d{0,4})*)")


def count_devices(name: str, num_slices: int = 1) -> int:
    """Devices of `num_slices` slices, from the name alone: without libtpu, and whether or not such slices can be had.

    Raises:
      UserError: the name is none.
    """
    generation, shape = _parse(name)
    return num_slices * math.prod(map(int, shape.split("x"))) * generation.devices_per_chip


def topology_devices(name: str, num_slices: int = 1) -> Sequence[jax.Device]:
    """The devices of `num_slices` slices, for compilation only.

    Raises:
      UserError: the name is none, the compiler does not know the shape, or libtpu is not installed.
    """
    generation, shape = _parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs the package libtpu: pip install -e '.[tpu]'")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": generation.chip_config, "num_slices": num_slices}
    if shape == _SINGLE_CHIP:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{generation.name}:{shape}", **options
        )
    except Exception as error:  # The plug-in raises what it likes.
        raise UserError(f"the TPU compiler does not know {name!r}: {str(error).splitlines()[0]}") from error
    expected = count_devices(name, num_slices)
    if len(description.devices) != expected:
        raise UserError(f"{name!r} is {expected} devices, and the compiler lists {len(description.devices)}")
    return description.devices


def _parse(name: str) -> tuple[Generation, str]:
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        near = name.strip().lower() if isinstance(name, str) else ""
        meant = f"did you mean {near!r}?" if _NAME.fullmatch(near) else "such as 'v5p:4x4x4'"
        raise UserError(f"TOPOLOGY is {name!r}; expected a generation and a shape, {meant}")
    word, shape = match.groups()
    if word not in GENERATIONS:
        near = did_you_mean(word, GENERATIONS) or f"; known are {', '.join(GENERATIONS)}"
        raise UserError(f"TOPOLOGY {name!r}: unknown generation {word!r}{near}")
    generation, sizes = GENERATIONS[word], [int(size) for size in shape.split("x")]
    chips, dimensions = math.prod(sizes), generation.dimensions
    if chips > _MOST_CHIPS:
        raise UserError(f"TOPOLOGY is {name!r}: {chips} chips, and no slice has more than {_MOST_CHIPS}")
    if len(sizes) != dimensions:
        raise UserError(
            f"TOPOLOGY is {name!r}: a slice of {word} is a {dimensions}D torus, of {dimensions} sizes; "
            f"{chips} chips are {word}:{_compact(chips, dimensions)}"
        )
    is_single = shape == _SINGLE_CHIP and generation.has_single_chips
    if any(size % 2 for size in sizes[:2]) and not is_single:
        near = "x".join(map(str, [size + size % 2 for size in sizes[:2]] + sizes[2:]))
        raise UserError(
            f"TOPOLOGY is {name!r}: a slice is made up of hosts of 2 x 2 chips; the nearest is {word}:{near}"
        )
    return generation, shape


def _compact(chips: int, dimensions: int) -> str:
    """The shape of `chips` whose sizes are the most alike: `4x4x8`."""
    shapes = itertools.combinations_with_replacement(divisors(chips), dimensions)
    return "x".join(map(str, min((shape for shape in shapes if math.prod(shape) == chips), key=sum)))
