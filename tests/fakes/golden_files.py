"""Texts that are kept and compared: where parameters lie, and what a compiled step exchanges.

A change shows as a difference of two texts. If it is meant, `REWRITE_GOLDEN=1` before the same tests writes them anew,
and the difference stands in the commit.
"""

from __future__ import annotations

import difflib
import os
import pathlib

import numpy as np

from t5x_scale.commands import COMMANDS
from t5x_scale.config.load import Setting, load, make_arguments
from t5x_scale.program import Runtime
from t5x_scale.roofline import CHIPS, analyse
from t5x_scale.roofline.links import Machine

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
REWRITES = bool(os.environ.get("REWRITE_GOLDEN"))

# A model that suits each machine.
MODELS = {
    "cpu_1": "palm/tiny",
    "cpu_8": "palm/tiny",
    "h200_1": "pythia/1b",
    "tpu7x_64": "llama3.1/70b",
    "v4_2x3072": "palm/540b",
    "v4_512": "palm/62b",
    "v4_64": "palm/8b",
    "v5e_16": "gemma/2b",
    "v5e_256": "llama2/13b",
    "v5p_128": "llama3/70b",
    "v5p_2048": "llama3.1/405b",
    "v5p_512": "llama2/70b",
    "v5p_64": "mixtral/8x7b",
    "v6e_256": "llama3.1/8b",
}


def load_run(*files: str, **settings: object) -> dict:
    """The arguments of `precompile` for gin files and further settings `class_name__field`."""
    flags = [Setting(name.replace("__", "."), repr(value), f"--gin.{name}") for name, value in settings.items()]
    return make_arguments(load("precompile", COMMANDS, files=files, settings=flags, search_paths=[str(ROOT)]))


def files_of(hardware: str) -> tuple[str, str]:
    """The model file and the hardware file."""
    return f"gin/models/{MODELS[hardware]}.gin", f"gin/hardware/{hardware}.gin"


def sharding_text(runtime: Runtime) -> str:
    """A line for each parameter: path, shape, the mesh axes that split each dimension."""
    rows = [
        (row.path, "x".join(map(str, row.shape)), _partition(row.spec, len(row.shape)))
        for row in runtime.parameter_rows()
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(f"{path:{widths[0]}}  {shape:>{widths[1]}}  {spec}\n" for path, shape, spec in sorted(rows))


def collectives_text(text: str, mesh) -> str:
    """A line for each kind of collective and the mesh axes it spans: runs a step and MiB a step of a device."""
    sums: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}
    for row in analyse(text, _machine(mesh)).collectives:
        key = (row.kind, row.axes)
        sums[key] = sums.get(key, np.zeros(2)) + np.array([row.count, row.payload / 2**20])
    lines = [
        f"{kind:18}  {' x '.join(axes) or 'all':24}  {count:6g}  {size:12,.3f} MiB"
        for (kind, axes), (count, size) in sorted(sums.items())
    ]
    return "\n".join(lines) + "\n"


def mesh_text(mesh) -> str:
    """The axes that split something."""
    return " x ".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1) or "one device"


def check_golden(name: str, text: str) -> None:
    """Compares with tests/golden/<name>, or writes it."""
    path = GOLDEN / name
    if REWRITES:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return
    kept = path.read_text() if path.exists() else ""
    difference = "".join(
        difflib.unified_diff(kept.splitlines(True), text.splitlines(True), f"{name} as kept", "now", n=1)
    )
    assert not difference, f"\n{difference}\nIf this is meant: REWRITE_GOLDEN=1 and the same tests"


def _partition(spec, rank: int) -> str:
    entries = [*spec, *[None] * (rank - len(spec))]
    return ", ".join("-" if e is None else e if isinstance(e, str) else " x ".join(e) for e in entries)


def _machine(mesh) -> Machine:
    # Which chip it is changes seconds only.
    slices = np.array([getattr(device, "slice_index", 0) for device in mesh.devices.flat])
    return Machine(CHIPS["v4"], mesh.axis_names, mesh.devices.shape, None, slices, ())
