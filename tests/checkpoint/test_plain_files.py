"""A pipe, a device or a link in place of a file of a checkpoint: found before anything would wait for it."""

import contextlib
import os
import socket
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from t5x_scale.checkpoint.layout import DamagedError, read_document
from t5x_scale.checkpoint.lazy_reader import open_leaves, read_lazily
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.plain_files import check_plain_files
from t5x_scale.checkpoint.shard_files import ShardReader, copy_shards, write_shards
from t5x_scale.checkpoint.verifying import verify_step
from t5x_scale.core import files

ABSTRACT = {"a": jax.ShapeDtypeStruct((64,), jnp.float32)}


@pytest.fixture
def run(tmp_path):
    """A run with the steps 1 and 2."""
    with CheckpointManager(tmp_path / "run", CheckpointConfig(save_every_steps=1)) as manager:
        for step in (1, 2):
            manager.save(step, {"a": jnp.arange(64.0) * step}, {})
    return tmp_path / "run"


@pytest.fixture
def to_pipe():
    """Puts a pipe in place of a file. Who waits for it all the same is told after a while that it is empty."""
    pipes, closing = [], threading.Event()

    def replace(file):
        file.unlink()
        os.mkfifo(file)
        pipes.append(file)

    def end_reading():
        while not closing.wait(0.1):
            for pipe in pipes:
                with contextlib.suppress(OSError):  # Nobody waits.
                    os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))

    thread = threading.Thread(target=end_reading)
    thread.start()
    yield replace
    closing.set()
    thread.join()


def find_data(step_path):
    """A file of the arrays, from the step."""
    return min((step_path / "state" / "d").iterdir()).relative_to(step_path).as_posix()


PROGRAM = """
import sys
from t5x_scale.main import main
sys.exit(main(["verify", sys.argv[1]]))
"""


def test_the_command_ends(run):
    """In a process of its own: it would wait inside C++, where nothing of this one reaches."""
    pipe = run / "checkpoints" / "2" / "state" / "manifest.ocdbt"
    pipe.unlink()
    os.mkfifo(pipe)
    words = [sys.executable, "-c", PROGRAM, str(run)]
    result = subprocess.run(words, env=os.environ, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, result.stderr
    assert result.stdout.splitlines()[0] == "step 2: DAMAGED: its state/manifest.ocdbt is a pipe and no plain file"


@pytest.mark.parametrize("name", ["state/manifest.ocdbt", "state/_METADATA", "metadata/metadata", None])
def test_everyone_who_reads_names_it_and_falls_back(run, to_pipe, name):
    step_path = run / "checkpoints" / "2"
    name = name or find_data(step_path)
    document = read_document(files.to_path(step_path))
    to_pipe(step_path / name)
    said = f"its {name} is a pipe and no plain file"
    assert verify_step(files.to_path(step_path)).damage == said
    with pytest.raises(DamagedError, match=said):
        open_leaves(files.to_path(step_path), document)
    assert read_lazily(run)[0].name == "1"
    assert CheckpointManager(run).restore(ABSTRACT).step == 1


def test_what_is_allowed_and_what_is_not(tmp_path, monkeypatch):
    step_path = tmp_path / "1"
    (step_path / "state").mkdir(parents=True)
    (tmp_path / "elsewhere").write_text("bytes")
    (step_path / "state" / "linked").symlink_to(tmp_path / "elsewhere")
    check_plain_files(files.to_path(step_path))
    check_plain_files(files.to_path("gs://bucket/1"))
    odd = step_path / "state" / "odd"
    kinds = {tmp_path: "a link to a directory", "/dev/zero": "a device", "/nowhere": "a link to nothing"}
    for target, kind in kinds.items():
        odd.symlink_to(target)
        with pytest.raises(DamagedError, match=f"its state/odd is {kind}"):
            check_plain_files(files.to_path(step_path))
        odd.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        # The name of a socket is short.
        monkeypatch.chdir(odd.parent)
        listener.bind(odd.name)
        with pytest.raises(DamagedError, match="its state/odd is a socket"):
            check_plain_files(files.to_path(step_path))
    with pytest.raises(DamagedError, match="cannot be listed: it is missing"):
        check_plain_files(files.to_path(tmp_path / "2"))


def test_local_copies(run, to_pipe, tmp_path):
    document = read_document(files.to_path(run / "checkpoints" / "2"))
    write_shards(files.to_path(tmp_path / "local"), document, copy_shards({"a": jnp.arange(64.0) * 2}))
    ShardReader(files.to_path(tmp_path / "local" / "2"))
    to_pipe(tmp_path / "local" / "2" / "shards")
    with pytest.raises(DamagedError, match="its shards is a pipe"):
        ShardReader(files.to_path(tmp_path / "local" / "2"))
