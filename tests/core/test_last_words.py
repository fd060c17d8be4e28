"""A line that outlives the process that wanted it said."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal
from t5x_scale.core.last_words import LastWords
words = LastWords("it's over: $HOME `ls` %s")
{}
"""
ENDS = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "aborted": ("os.abort()", -signal.SIGABRT),
    "without a good-bye": ("os._exit(3)", 3),
    # As a terminal or a scheduler stops everything at once.
    "the whole group": ("os.killpg(os.getpgid(0), signal.SIGTERM)", -signal.SIGTERM),
}


def run(statement):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(statement)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )


@pytest.mark.parametrize("end", ENDS)
def test_said(end):
    statement, code = ENDS[end]
    result = run(statement)
    assert (result.returncode, result.stderr) == (code, "it's over: $HOME `ls` %s\n")


def test_something_else_is_said():
    assert run("words.change('now this'); os.abort()").stderr == "now this\n"


@pytest.mark.parametrize("statement", ["words.cancel(); words.cancel()", "words.cancel(); words.change('too late')"])
def test_not_said(statement):
    result = run(f"{statement}; os.abort()")
    assert (result.returncode, result.stderr) == (-signal.SIGABRT, "")
