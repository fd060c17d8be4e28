"""`t5x_scale verify`: what is whole, what is damaged and where, without a device."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.checkpoint.lazy_reader import read_lazily
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.stream_writer import write_stream
from t5x_scale.main import main

KERNEL = np.random.default_rng(0).normal(size=(4, 64, 64)).astype(np.float32)


@pytest.fixture
def run(tmp_path):
    """A run with the steps 10, 20 and 30."""
    with CheckpointManager(tmp_path / "run", CheckpointConfig(save_every_steps=10)) as manager:
        for step in (10, 20, 30):
            manager.save(step, {"params": {"kernel": jnp.asarray(KERNEL * step), "scale": jnp.ones(4)}}, {})
    return tmp_path / "run"


def verify(capsys, *words):
    """The exit code and the lines of the command."""
    code = main(["verify", *map(str, words)])
    return code, capsys.readouterr().out.splitlines()


def damage(step_path):
    """Changes a byte in the largest file of a step."""
    file = max((path for path in step_path.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def test_a_whole_run(run, capsys):
    code, lines = verify(capsys, run)
    assert code == 0
    assert [line.split(",")[0] for line in lines[:3]] == ["step 30: ok", "step 20: ok", "step 10: ok"]
    assert "2 leaves, 65.6 kB; " in lines[0]
    assert "beside them are read by no restore" in lines[0]
    assert lines[3:] == [f"all verify: 3 of 3 in {run}/checkpoints"]


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/20"])
def test_what_else_may_be_named(run, capsys, name):
    code, lines = verify(capsys, run / name)
    assert code == 0
    assert lines[-1].startswith("all verify: 1 of 1" if name.endswith("20") else "all verify: 3 of 3")


def test_one_step(run, capsys):
    damage(run / "checkpoints" / "30")
    assert verify(capsys, run, "--step=20")[0] == 0
    code, lines = verify(capsys, run, "--step=30")
    assert code == 1
    assert lines[-1].endswith("none of them verifies")


def test_damage_is_named(run, capsys):
    damage(run / "checkpoints" / "30")
    (run / "checkpoints" / "20" / "metadata" / "metadata").unlink()
    code, lines = verify(capsys, run)
    assert code == 1
    assert lines[0].startswith("step 30: DAMAGED: ")
    assert "'params/kernel'" in lines[0]
    assert lines[1].startswith("step 20: DAMAGED: its metadata cannot be read: it is missing")
    assert lines[2].startswith("step 10: ok")
    assert lines[3] == f"2 of 3 in {run}/checkpoints are damaged; the newest that verifies is step 10"


def test_all_damaged_leaves_are_named(tmp_path, capsys):
    with CheckpointManager(tmp_path / "run", CheckpointConfig(save_every_steps=1)) as manager:
        manager.save(1, {"params": {name: jnp.asarray(KERNEL) for name in "abcde"}}, {})
    _, document, leaves = read_lazily(tmp_path / "run")
    path = write_stream(tmp_path / "converted", 0, leaves, document.metadata)
    for name in "bcde":
        file = path / "state" / f"params.{name}" / "0.0.0"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    code, lines = verify(capsys, tmp_path / "converted")
    assert code == 1
    assert "4 leaves, 'params/b', 'params/c', 'params/d' and 1 more; the first: " in lines[0]


def test_a_converted_checkpoint(run, tmp_path, capsys):
    _, document, leaves = read_lazily(run)
    path = write_stream(tmp_path / "converted", 0, leaves, document.metadata, max_block_bytes=10_000)
    code, lines = verify(capsys, tmp_path / "converted")
    assert code == 0
    assert lines[0].startswith("step 0: ok, 2 leaves, 65.6 kB; ")
    chunk = path / "state" / "params.kernel" / "1.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert verify(capsys, tmp_path / "converted")[0] == 1


def test_files_of_strangers_are_named(run, capsys):
    (run / "checkpoints" / "30" / "notes.txt").write_text("a note")
    (run / "checkpoints" / "30" / "state" / "params.other").mkdir()
    (run / "checkpoints" / "30" / "state" / "params.other" / "0").write_text("0")
    code, lines = verify(capsys, run, "--step=30")
    assert code == 0, "nothing reads them"
    assert lines[0].endswith("; it did not write 'notes.txt', 'state/params.other/0'")


def test_bytes_that_nothing_reads_are_harmless_and_counted(run, capsys):
    """The manifest of the one process's own database, which was joined into the one that is read."""
    before = verify(capsys, run, "--step=30")
    (run / "checkpoints" / "30" / "state" / "ocdbt.process_0" / "manifest.ocdbt").write_bytes(b"")
    code, lines = verify(capsys, run, "--step=30")
    assert code == before[0] == 0
    assert lines[0] != before[1][0], "fewer bytes beside the leaves"


def test_what_is_no_checkpoint_is_named(run, capsys):
    (run / "checkpoints" / "40.orbax-checkpoint-tmp").mkdir()
    (run / "checkpoints" / "35.set_aside").mkdir()
    code, lines = verify(capsys, run)
    assert code == 0
    assert lines[3] == "40.orbax-checkpoint-tmp: not finished; not looked at"
    assert lines[4] == "35.set_aside: set aside, of a course that the run left; not looked at"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "does not exist; name a MODEL_DIR"),
        (["run", "--step=7"], "has no checkpoint of step 7; it has 30, 20, 10"),
        ([], "say what is to be read: t5x_scale verify MODEL_DIR"),
    ],
)
def test_what_cannot_be_looked_at(run, capsys, monkeypatch, words, message):
    monkeypatch.chdir(run.parent)
    assert main(["verify", *words]) == 1
    assert message in capsys.readouterr().err


PROGRAM = """
import sys
from t5x_scale.main import main
code = main(["verify", sys.argv[1]])
from jax._src import xla_bridge
assert not xla_bridge._backends, "a backend was started"
sys.exit(code)
"""


def test_no_backend_is_started(run):
    """A TPU that is not there is not missed, and one that trains is not disturbed."""
    env = {**os.environ, "JAX_PLATFORMS": "tpu"}
    words = [sys.executable, "-c", PROGRAM, str(run)]
    result = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(": ok, ") == 3


LARGE = """
import resource, sys
from t5x_scale.main import main
main(["verify", sys.argv[1]])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = main(["verify", sys.argv[2]])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
sys.exit(code)
"""


def test_memory_does_not_grow_with_the_checkpoint(run, tmp_path):
    """Half a gigabyte of arrays passes through a fraction of it."""
    large = tmp_path / "large"
    with CheckpointManager(large, CheckpointConfig(save_every_steps=1, read_back=False)) as manager:
        manager.save(1, {"params": {"kernel": jnp.zeros((128, 1024, 1024), jnp.float32)}}, {})
    words = [sys.executable, "-c", LARGE, str(run), str(large)]
    result = subprocess.run(words, env=os.environ, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.splitlines()[-1]) < 300, "megabytes"
