"""Runs of several processes on this machine, over the loopback; see tests/endtoend/command_runner.py."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "endtoend"))
from command_runner import CommandRunner, write_text


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    """Starts commands."""
    runner = CommandRunner(tmp_path_factory.mktemp("processes"))
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    """What all runs here have in common: the text, frozen once, on a mesh of eight devices."""
    directory = tmp_path_factory.mktemp("data")
    return {
        "MIXTURE_OR_TASK_NAME": write_text(directory / "words.txt"),
        "STORE_DIR": str(directory / "stores"),
        "EvaluationConfig__every_steps": 0,
        "MeshConfig__data": 2,
        "MeshConfig__fsdp": 4,
    }
