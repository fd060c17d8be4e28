"""How the cloud names the machines of gin/hardware, as data.

Ours are named by chips (`v5p_64`, `v4_2x3072`: slices x chips), Cloud's by cores on some generations: `v5p-128` is 64
chips. On a 3D torus a number of chips is not yet a shape (512 chips are 8x8x8 or 4x8x16), and a mesh is made for one
shape: where the hardware file says which, that one is asked for, or refused.

Not every number of chips is a slice: on a 2D torus those of a list, on a 3D torus some of less than a cube of 4x4x4,
and cubes (most numbers of them: Cloud has the last word). The largest v5p is of 96 cubes ("the largest job").

Runtime versions: "TPU software versions", docs.cloud.google.com/tpu/docs/runtimes. Accelerator types and shapes: the
generation's page under docs.cloud.google.com/tpu/docs. What `--type` takes: gcloud 528 (its alpha takes more). Names
for XPK: the tables of XPK 1.16. All read in November 2026.
"""

from __future__ import annotations

import bisect
import dataclasses
import pathlib
import re
from collections.abc import Mapping

from t5x_scale.core.errors import UserError, did_you_mean

HARDWARE = pathlib.Path(__file__).resolve().parents[2] / "gin" / "hardware"


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of chips.

    Attributes:
      prefix: what accelerator types begin with.
      cores: cores a chip, which accelerator types count; 1 where they count chips.
      dimensions: of its torus.
      small: chips of its slices on a 2D torus, and of those of less than a cube on a 3D torus.
      cubes: of the largest slice on a 3D torus.
      runtime: the software version of its TPU VMs; None where there are none, and Kubernetes is the only way.
      takes_shapes: whether `gcloud` can be asked for a shape (`--type`, `--topology`).
      shapes: chips -> the shape that an accelerator type stands for, where it can not.
    """

    prefix: str
    cores: int
    dimensions: int
    small: tuple[int, ...]
    cubes: int
    runtime: str | None
    takes_shapes: bool = False
    shapes: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """Chips of every slice, ascending."""
        return [*self.small, *(_CUBE * cubes for cubes in range(1, self.cubes + 1))]


_CUBE = 4 * 4 * 4
_PLANE = (1, 4, 8, 16, 32, 64, 128, 256)
_LESS_THAN_A_CUBE = (4, 8, 16, 32)
_V5P = {4: "2x2x1", 8: "2x2x2", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
_V5P |= {1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16", 6144: "16x16x24"}
GENERATIONS = {
    "v4": Generation("v4", 2, 3, _LESS_THAN_A_CUBE, 64, "tpu-ubuntu2204-base", takes_shapes=True),
    "v5e": Generation("v5litepod", 1, 2, _PLANE, 0, "v2-alpha-tpuv5-lite"),
    "v5p": Generation("v5p", 2, 3, _LESS_THAN_A_CUBE, 96, "v2-alpha-tpuv5", shapes=_V5P),
    "v6e": Generation("v6e", 1, 2, _PLANE, 0, "v2-alpha-tpuv6e"),
    "tpu7x": Generation("tpu7x", 2, 3, (1, *_LESS_THAN_A_CUBE), 144, None),
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """What is rented: slices of so many chips each, and their shape where it is known (`4x4x4`)."""

    generation: Generation
    chips: int
    slices: int = 1
    shape: str | None = None

    @property
    def accelerator_type(self) -> str:
        """Cloud's name of one slice, such as `v5p-128`."""
        return f"{self.generation.prefix}-{self.chips * self.generation.cores}"

    @property
    def xpk_type(self) -> str:
        """XPK's name of one slice: with its shape on a 3D torus."""
        has_shape = self.shape is not None and self.generation.dimensions == 3
        return f"{self.generation.prefix}-{self.shape}" if has_shape else self.accelerator_type

    def slice_flags(self) -> list[str]:
        """What `gcloud` is told of one slice.

        Raises:
          UserError: it gives another shape for this number of chips.
        """
        if self.shape is not None and self.generation.takes_shapes:
            return [f"--type={self.generation.prefix}", f"--topology={self.shape}"]
        given = self.generation.shapes.get(self.chips, self.shape)
        if self.shape is not None and given != self.shape:
            raise UserError(
                f"{self.accelerator_type} comes as {given}, and the hardware file is for {self.shape}: use another, or "
                "tools/tpu/workload.py, which asks for shapes"
            )
        return [f"--accelerator-type={self.accelerator_type}"]


def find_machine(name: str) -> Machine:
    """The machine of a name: a file of gin/hardware (`v5p_64`), any of that form, or Cloud's own (`v5p-128`).

    Raises:
      UserError: there is no such machine; names the nearest.
    """
    ours = re.fullmatch(r"([a-z0-9]+)_(?:([1-9]\d{0,3})x)?(\d{1,9})", name)
    theirs = re.fullmatch(r"([a-z0-9]+)-(\d{1,9})", name)
    for word, generation in GENERATIONS.items():
        if ours and ours[1] == word:
            return Machine(generation, _check_size(name, word, int(ours[3])), int(ours[2] or 1), _read_shape(name))
        if theirs and theirs[1] == generation.prefix:
            return Machine(generation, _check_size(name, word, int(theirs[2]) / generation.cores))
    known = [path.stem for path in sorted(HARDWARE.glob("*.gin")) if path.stem.split("_")[0] in GENERATIONS]
    near = did_you_mean(name, known) or f"; there are {', '.join(known)}, and Cloud's own, such as v5p-128"
    raise UserError(f"no machine {name!r}{near}")


def _check_size(name: str, word: str, chips: float) -> int:
    """The number of chips again.

    Raises:
      UserError: no slice has so many; names those next below and above.
    """
    generation, sizes = GENERATIONS[word], GENERATIONS[word].sizes
    if chips in sizes:
        return int(chips)
    above = bisect.bisect(sizes, chips)
    near = [Machine(generation, size) for size in sizes[max(above - 1, 0) : above + 1]]
    written = " and ".join(f"{word}_{one.chips} (Cloud's {one.accelerator_type})" for one in near)
    joined = f"; two slices are {word}_2x{sizes[-1]}" if chips > sizes[-1] else ""
    raise UserError(
        f"no machine {name!r}: no slice of {word} has {chips:.10g} chips; nearest {'are' if len(near) > 1 else 'is'} "
        f"{written}{joined}"
    )


def _read_shape(name: str) -> str | None:
    path = HARDWARE / f"{name}.gin"
    found = re.search(r'^TOPOLOGY = "\w+:([\dx]+)"', path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1] if found else None
