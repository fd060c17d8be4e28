"""A process in which nothing moves is ended in time, its stacks on record; one that moves or was stopped is not."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.monitor.phases import health_directory, read_phases
from t5x_scale.monitor.watchdog import WatchdogConfig

RUN = """
import os, queue, re, sys, threading, time
from t5x_scale.monitor.health import Health, HealthConfig
from t5x_scale.monitor.status import StatusLine
from t5x_scale.monitor.throughput import Throughput
from t5x_scale.monitor.watchdog import WatchdogConfig
from t5x_scale.monitor.writers import MetricWriters

limits = WatchdogConfig(timeout_seconds={timeout}, startup_seconds={startup}, saving_seconds={saving})
health = Health({directory!r}, HealthConfig(beat_seconds=0.05, watchdog=limits), command="t5x_scale train --all")

def hang_for_data():
    queue.Queue().get()

with MetricWriters({directory!r}) as writers, health:
    health.connect(writers, StatusLine(enabled=False), Throughput(1))
    print("ready", flush=True)
{body}
"""


def start(directory, body, timeout=0.5, startup=30.0, saving=30.0):
    program = RUN.format(
        directory=str(directory), timeout=timeout, startup=startup, saving=saving, body=textwrap.indent(body, "    ")
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process, time.monotonic()


def ends(process, begin, within):
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - begin < within, err
    return process.returncode, err


STEPPING = """
health.enter("step", 41)
health.measured(1, 0.01)
health.enter("data_wait", 42)
"""


def test_a_hung_source_of_data(tmp_path):
    process, begin = start(tmp_path, STEPPING + "hang_for_data()")
    code, err = ends(process, begin, 30.0)
    assert code == 75
    assert "in hang_for_data" in err
    last = err.splitlines()[-1]
    assert last.startswith("t5x_scale: error: nothing has moved for 1 s at step 42, in phase data_wait; ")
    assert last.endswith("The same command resumes from the newest checkpoint: t5x_scale train --all")
    stacks = (health_directory(tmp_path) / "stacks_0.txt").read_text()
    assert "in hang_for_data" in stacks
    assert "Thread" in stacks
    assert "at step 42" in stacks
    end = read_phases(tmp_path)[-1]
    assert (end["phase"], end["step"], end["during"]) == ("end", 42, "data_wait")
    assert end["reason"] == "watchdog: nothing had moved for 1 s in data_wait"
    assert '"event": "watchdog"' in (tmp_path / "metrics" / "metrics.jsonl").read_text()


def test_a_thread_inside_c_that_does_not_give_way(tmp_path):
    """A regular expression that backtracks for ever holds the interpreter: a timer in C ends the process."""
    body = """
import t5x_scale.monitor.watchdog as module
module._LAST_SECONDS_REMOTE = 0.2
time.sleep(0.2)
"""
    hold = "re.match('(a+)+$', 'a' * 64 + 'b')\n"
    process, begin = start(tmp_path, body + STEPPING + "time.sleep(0.1)\n" + hold, timeout=0.6, startup=0.6)
    code, err = ends(process, begin, 30.0)
    assert code == 1
    assert "Timeout (" in err
    assert "<module>" in err


def test_output_that_nobody_reads(tmp_path):
    body = "threading.Thread(target=lambda: [print('x' * 1000) for _ in range(1000)], daemon=True).start()\n"
    process, _ = start(tmp_path, body + STEPPING + "hang_for_data()")
    process.wait(timeout=30)
    assert process.returncode == 75
    process.communicate()


@pytest.mark.parametrize(("phase", "limit"), [("startup", "startup"), ("evaluation", "startup"), ("restore", "saving")])
def test_every_phase_has_its_limit(tmp_path, phase, limit):
    process, begin = start(tmp_path, f"health.enter({phase!r}, 7)\ntime.sleep(60)", timeout=0.1, **{limit: 1.0})
    code, err = ends(process, begin, 30.0)
    assert code == 75
    assert f"at step 7, in phase {phase}" in err


def test_what_moves_or_ends_is_let_be(tmp_path):
    body = """
    for step in range(20):
        health.enter("data_wait", step)
        health.enter("step")
        health.measured(1, 0.05)
        time.sleep(0.05)
    with health.during("checkpoint", 20):
        time.sleep(1.0)
    """
    process, begin = start(tmp_path, textwrap.dedent(body))
    assert ends(process, begin, 30.0) == (0, "")
    assert read_phases(tmp_path)[-1]["reason"] == "done"


def test_results_that_take_long_are_waited_for(tmp_path):
    process, begin = start(tmp_path, "health.enter('step', 1)\nhealth.measured(10, 0.5)\ntime.sleep(1.0)")
    code, err = ends(process, begin, 30.0)
    assert code == 0
    assert "the watchdog waits" in err


def test_a_process_that_was_stopped_was_not_hanging(tmp_path):
    process, begin = start(tmp_path, STEPPING + "time.sleep(1.2)", timeout=1.5)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2.0)
    os.kill(process.pid, signal.SIGCONT)
    assert ends(process, begin, 30.0) == (0, "")


def test_clocks_that_jump(tmp_path):
    jump = """
    honest, offset = time.time, 0.0
    time.time = lambda: honest() + offset
    health.enter("step", 1)
    health.measured(1, 0.01)
    for offset in (86400.0, -86400.0, 0.0):
        time.sleep(0.2)
        health.enter("step", 2)
    """
    process, begin = start(tmp_path, textwrap.dedent(jump))
    assert ends(process, begin, 30.0) == (0, "")


def test_limits():
    config = WatchdogConfig(timeout_seconds=600, startup_seconds=3600, saving_seconds=None)
    assert config.limit("step", None) == 3600  # Before the first results.
    assert config.limit("step", 100.0) == 600
    assert config.limit("data_wait", 300.0) == 900
    assert config.limit("compile", 1.0) == config.limit("evaluation", 1.0) == 3600
    assert config.limit("checkpoint", 1.0) == config.limit("rewind", 1.0) == float("inf")
    with pytest.raises(UserError, match="timeout_seconds is 0"):
        WatchdogConfig(timeout_seconds=0)
