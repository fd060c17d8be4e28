"""A checkpoint that one process alone cannot use: both agree at once on the one before it, or on why there is none."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from command_runner import free_address

SCRIPT = """
import json, logging, sys
import jax, numpy as np
from t5x_scale.checkpoint import restore
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.core import patience
from t5x_scale.core.distributed import join_run
from t5x_scale.core.errors import UserError

logging.basicConfig(format="%(message)s")
join_run()
place, index, cases = sys.argv[1], jax.process_index(), sys.argv[2:]
mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.P("x"))

def make_state(step):
    kernel = np.random.default_rng(step).normal(size=(256, 256)).astype(np.float32)
    return {"kernel": jax.make_array_from_callback(kernel.shape, sharding, lambda box: kernel[box])}

def forbid(*unused):
    raise PermissionError(13, "Permission denied", "/somewhere/state/manifest.ocdbt")

def fail(*unused):
    raise ConnectionResetError(104, "Connection reset by peer", "/somewhere/state/d/1")

answers = [fail]

def fail_once(*given):
    return (answers.pop() if answers else usual)(*given)

READS = {"forbidden": forbid, "away": fail, "away_once": fail_once}
patience.WAITS_SECONDS = (0.1,)

if not cases:
    with CheckpointManager(f"{place}/run", CheckpointConfig(save_every_steps=1, keep=None)) as manager:
        for step in (1, 2):
            manager.save(step, make_state(step), {})
said = {}
for case in cases:
    usual = restore.read_leaves
    if case in READS and index == 1:
        restore.read_leaves = READS[case]
    local = f"{place}/local_{index}" if case == "lines" else None
    abstract = {"kernel": jax.ShapeDtypeStruct((256, 256), np.float32, sharding=sharding)}
    try:
        config = CheckpointConfig(local_directory=local)
        restored = CheckpointManager(f"{place}/{case}_{index}", config).restore(abstract)
        box = restored.state["kernel"].addressable_shards[0].data
        assert (np.asarray(box) == np.asarray(make_state(restored.step)["kernel"].addressable_shards[0].data)).all()
        said[case] = restored.step
    except UserError as error:
        said[case] = f"{type(error).__name__}: {error}"
    restore.read_leaves = usual
print(json.dumps(said), flush=True)
"""


def start(place, *cases):
    """What each of two processes said, and their errors."""
    together = {"JAX_COORDINATOR_ADDRESS": free_address(), "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(place), *cases],
            env={**os.environ, **together, "JAX_PROCESS_ID": str(index), "XLA_FLAGS": ""},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        streams = [process.communicate(timeout=90) for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail("they wait for each other")
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], streams
    return [json.loads(out.splitlines()[-1]) for out, _ in streams], [error for _, error in streams]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_data(step):
    """Deletes every file of values."""
    for path in step.glob("state/**/d/*"):
        path.unlink()


def change_document(step):
    """Its own digest is right: it is that of another save of the same step."""
    path = step / "metadata" / "metadata"
    shutil.copy(step.parent / "other", path)


CASES = {
    "manifest": lambda step: flip(step / "state" / "manifest.ocdbt"),
    "values": damage_data,
    "tree": lambda step: (step / "state" / "_METADATA").write_text("{"),
    "document": lambda step: flip(step / "metadata" / "metadata"),
    "other": change_document,
    "all": lambda step: [damage_data(each) for each in step.parent.iterdir() if each.is_dir()],
}


def test_both_go_back_together(tmp_path):
    start(tmp_path)
    for case, damage in CASES.items():
        for index in range(2):
            shutil.copytree(tmp_path / "run", tmp_path / f"{case}_{index}")
        steps = tmp_path / f"{case}_1" / "checkpoints"
        if case == "other":
            write_other(steps)
        damage(steps / "2")
    for case in ("forbidden", "away", "away_once"):
        for index in range(2):
            (tmp_path / f"{case}_{index}").symlink_to(tmp_path / "run")
    for index in range(2):
        shutil.copytree(tmp_path / "run", tmp_path / f"lines_{index}")
    (tmp_path / "lines_1" / "interventions.jsonl").write_text("{}\n")
    (first, second), errors = start(tmp_path, *CASES, "forbidden", "away", "away_once", "lines")
    undone = {case: 1 for case in CASES if case != "all"}
    assert {case: first[case] for case in undone} == undone, errors
    assert first["away_once"] == 2
    words = [{case: str(word).replace("_1/", "_0/") for case, word in said.items()} for said in (first, second)]
    assert words[0] == words[1], "but for the place of each"
    for error in errors:
        assert "state/manifest.ocdbt is damaged (process 1 of 2)" in error
        assert "the processes have different ones" in error
        assert "d/1: Connection reset by peer (process 1 of 2); trying again in 0.1 s" in error
        assert "Exception" not in error
    assert "is missing (process 1 of 2); put a copy of one back" in first["all"]
    # Nothing is known: the step before it is not taken.
    assert first["forbidden"].startswith("UserError: the arrays of step 2 cannot be read, and may be sound: state/man")
    assert first["forbidden"].endswith("manifest.ocdbt: Permission denied (process 1 of 2)")
    assert first["away"].startswith("StillAwayError: the arrays of step 2 cannot be read, as the storage does not")
    assert "(process 1 of 2); nothing was changed" in first["away"]
    assert first["lines"].startswith("UserError: line 1 of ")
    assert first["lines"].endswith("(process 1 of 2)")


def write_other(steps):
    """The document of step 2 with other metadata, and the digest that belongs to it."""
    from t5x_scale.checkpoint import layout

    document = layout.read_document(steps / "2")
    document.metadata["row"] = 5
    (steps / "other").write_text(json.dumps(layout.render_document(document)))
