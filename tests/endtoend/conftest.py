"""The runner of commands, the text that they read, and one finished run to compare with."""

import pathlib
import types

import pytest
from command_runner import CommandRunner, write_text


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    """Starts commands; see command_runner.py."""
    runner = CommandRunner(tmp_path_factory.mktemp("processes"))
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A file of 60 kilobytes, as the name of a data source."""
    return write_text(tmp_path_factory.mktemp("data") / "words.txt")


@pytest.fixture(scope="session")
def finished(runner, source, tmp_path_factory):
    """The run of tiny.gin, never stopped: its directory `path` and its last step `steps`. Not to be touched."""
    path: pathlib.Path = tmp_path_factory.mktemp("finished") / "run"
    runner.run("train", anew=True, MODEL_DIR=str(path), MIXTURE_OR_TASK_NAME=source)
    return types.SimpleNamespace(path=path, steps=12)
