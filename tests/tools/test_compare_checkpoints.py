"""The comparison tool, called as a user calls it."""

import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest

from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "compare_checkpoints.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, value in (("a", 1.0), ("same", 1.0), ("other", 2.0)):
        state = {"params": {"kernel": jnp.full((4,), value), "scale": jnp.ones(3)}}
        with CheckpointManager(root / name, CheckpointConfig(save_every_steps=1)) as manager:
            manager.save(7, state, {})
    return root


def compare(*paths):
    return subprocess.run([sys.executable, TOOL, *map(str, paths)], capture_output=True, text=True, timeout=60)


def test_equal(runs):
    result = compare(runs / "a", runs / "same" / "checkpoints" / "7")
    assert result.returncode == 0, result.stderr
    assert "2 leaves, 0 different; steps equal" in result.stdout
    digests = {line.split("digest ")[1].split()[0] for line in result.stdout.splitlines() if "digest" in line}
    assert len(digests) == 1


def test_different(runs):
    result = compare(runs / "a", runs / "other")
    assert result.returncode == 1
    assert "2 leaves, 1 different" in result.stdout
    assert [line.split()[-1] for line in result.stdout.splitlines() if "DIFFERENT" in line] == ["params/kernel"]


def test_nothing_there(runs):
    result = compare(runs / "a", runs / "absent")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "does not exist" in result.stderr
