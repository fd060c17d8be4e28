"""A run with three checkpoints, damaged again and again: what restoring and verifying make of each case."""

import collections
import pathlib
import random
import shutil

import damage
import jax
import jax.numpy as jnp
import numpy as np

from t5x_scale.checkpoint import layout, verifying
from t5x_scale.checkpoint.lazy_reader import read_lazily
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.stream_writer import write_stream
from t5x_scale.core import files

FORMS = ("run", "converted")
STEPS = (10, 20, 30)


def make_state(step):
    """Leaves of several dtypes and sizes, some of them alike in all steps and some constant."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.P("x"))
    generator = np.random.default_rng(step)
    kernel = jax.device_put(generator.normal(size=(8, 24, 16)).astype(np.float32), sharding)
    return {
        "params": {
            "kernel": kernel,
            "scale": jnp.ones((16,), jnp.bfloat16),
            "table": jax.device_put(generator.integers(0, 9, (64, 8)).astype(np.int32), sharding),
        },
        "opt_state": ({"mu": jax.device_put(np.zeros((8, 24, 16), np.float32), sharding)}, {"count": jnp.int32(step)}),
        "step": jnp.int32(step),
    }


def make_run(directory, form):
    """`directory/run` with three steps, and `directory/older` with an older save of the same steps."""
    for name, shift in (("run", 0), ("older", 1)):
        model_dir = directory / name
        with CheckpointManager(model_dir, CheckpointConfig(save_every_steps=1, read_back=False)) as manager:
            for step in STEPS:
                manager.save(step, make_state(step + shift), {"row": step})
        if form == "converted":
            source = model_dir.rename(directory / f"{name}_as_saved")
            for step in STEPS:
                _, document, leaves = read_lazily(source / "checkpoints" / str(step))
                write_stream(model_dir, step, leaves, document.metadata, max_block_bytes=3000)
    return directory / "run"


class Drill:
    """Damages the newest step of a run in a copy of it, and says what became of it."""

    def __init__(self, directory: pathlib.Path, form: str):
        self.run = make_run(directory, form)
        self.older = directory / "older"
        self.copy = directory / "copy"
        self.newest = STEPS[-1]
        state = make_state(0)
        self.abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        self.expected = {step: jax.tree.map(np.asarray, make_state(step)) for step in STEPS}

    def names(self):
        """The files of the newest step."""
        return damage.list_files(self.run / "checkpoints" / str(self.newest))

    def try_case(self, kind: str, name: str, generator: random.Random) -> tuple[damage.Case, int, verifying.Verdict]:
        """Damages, verifies and restores; asserts that nothing wrong was restored and nothing deleted.

        Returns:
          The case, the step that was restored, and what verifying says of the newest step.
        """
        if self.copy.exists():
            shutil.rmtree(self.copy)
        shutil.copytree(self.run, self.copy)
        step_path = self.copy / "checkpoints" / str(self.newest)
        # Half of the older ones are of another step, half an older save of this one.
        older = self.run / "checkpoints" / str(STEPS[-2])
        if generator.random() < 0.5:
            older = self.older / "checkpoints" / str(self.newest)
        case = damage.damage(step_path, older, kind, name, generator)
        before = damage.list_files(self.copy)
        verdict = verifying.verify_step(files.to_path(step_path))
        restored = CheckpointManager(self.copy).restore(self.abstract)
        assert damage.list_files(self.copy) == before, case
        expected = self.expected[restored.step]
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, restored.state), expected)
        assert restored.metadata["row"] == restored.step, case
        assert restored.step in (self.newest, STEPS[-2]), case
        # Verifying may be the stricter of the two, never the laxer.
        assert verdict.damage or restored.step == self.newest, f"verify trusts what a restore does not: {case}"
        return case, restored.step, verdict

    def continue_run(self):
        """Goes on from what is left: the damaged step is set aside, and a new one saved in its place."""
        with CheckpointManager(self.copy, CheckpointConfig(save_every_steps=10, keep=2)) as manager:
            manager.restore(self.abstract)
            manager.save(self.newest, make_state(self.newest), {"row": self.newest})
        return sorted(path.name for path in (self.copy / layout.CHECKPOINTS).iterdir())


def run_cases(drill: Drill, cases: int, seed: int) -> collections.Counter:
    """So many cases, every kind of damage in turn to files drawn at random.

    Returns:
      How many fell back to the step before, and how many restored the newest with the same bits, by kind.
    """
    generator, names, outcomes = random.Random(seed), drill.names(), collections.Counter()
    kinds = list(damage.KINDS)
    for number in range(cases):
        case, step, _ = drill.try_case(kinds[number % len(kinds)], generator.choice(names), generator)
        outcomes[case.kind, "identical" if step == drill.newest else "fell back"] += 1
    return outcomes
