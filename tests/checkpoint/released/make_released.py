"""Writes a small checkpoint of what this version writes, as run and conversion do, for later versions to open.

    python tests/checkpoint/released/make_released.py format_1

Two archives stand beside this file then, `format_1_run.zip` and `format_1_converted.zip`, each with one MODEL_DIR. It
is called once, when `layout.FORMAT` has moved; what is there already is never written again.
"""

import os
import pathlib
import sys
import tempfile
import zipfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import jax.numpy as jnp
import numpy as np

from t5x_scale.checkpoint.lazy_reader import read_lazily
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.stream_writer import write_stream

HERE = pathlib.Path(__file__).resolve().parent
STEP = 7


def make_leaves() -> dict:
    """Numpy values of every kind of leaf that a run has, drawn in a way that no version of a library changes."""
    count = np.arange(4 * 6 * 8, dtype=np.int64)
    kernel = ((count * 2654435761 % 1009) / 1009 - 0.5).astype(np.float32).reshape(4, 6, 8)
    return {
        "params": {"decoder": {"kernel": kernel, "scale": (1 + count[:8] / 16).astype(jnp.bfloat16)}},
        "opt_state": ({"mu": -kernel}, {"count": np.int32(STEP), "flags": count[:5] % 2 == 0}),
        "step": np.int32(STEP),
    }


def make_state() -> dict:
    """The leaves on four devices, one of them split."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    split, whole = (jax.sharding.NamedSharding(mesh, spec) for spec in (jax.P("x"), jax.P()))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, split if np.ndim(leaf) == 3 else whole), make_leaves())


def write(name: str) -> None:
    """Writes both archives.

    Raises:
      FileExistsError: a released checkpoint of that name is there.
    """
    with tempfile.TemporaryDirectory() as directory:
        run, converted = pathlib.Path(directory) / "run", pathlib.Path(directory) / "converted"
        with CheckpointManager(run, CheckpointConfig(save_every_steps=1)) as manager:
            manager.save(STEP, make_state(), {"data": {"row": 56}, "run": {"refused": {"seed": 0}}})
        _, document, leaves = read_lazily(run)
        write_stream(converted, STEP, leaves, document.metadata, max_block_bytes=400)
        for model_dir in (run, converted):
            with zipfile.ZipFile(HERE / f"{name}_{model_dir.name}.zip", "x", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted(model_dir.rglob("*")):
                    if path.is_file():
                        archive.write(path, path.relative_to(model_dir))


if __name__ == "__main__":
    write(*sys.argv[1:])
