"""The phase log and the heartbeat of a process."""

import json
import threading
import time

import pytest

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.monitor import health as health_module
from t5x_scale.monitor.health import Health, HealthConfig
from t5x_scale.monitor.phases import CHECKPOINT, DATA_WAIT, RESTORE, STEP, health_directory, read_phases

OFTEN = HealthConfig(beat_seconds=0.02)


def changes(directory, process=0):
    return [(line["phase"], line["step"]) for line in read_phases(directory, process)]


def beat(directory, process=0):
    return json.loads((health_directory(directory) / f"host_{process}.json").read_text())


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("remote", [False, True])
def test_changes_of_phase_are_on_record_and_steps_are_not(tmp_path, bucket, remote):
    directory = files.to_path(f"{bucket}/run") if remote else tmp_path
    with Health(directory, process=3, processes=4) as health:
        with health.during(RESTORE):
            pass
        for step in range(7, 1000):
            health.enter(DATA_WAIT, step)
            health.enter(STEP)
            if step == 500:
                with health.during(CHECKPOINT, step):
                    health.async_save(500, "begin")
        assert health.place[:2] == (STEP, 999)
    assert changes(directory, 3) == [
        ("startup", 0),
        ("restore", 0),
        ("startup", 0),
        ("step", 7),
        ("checkpoint", 500),
        ("async_save", 500),
        ("step", 500),
        ("end", 999),
    ]
    lines = read_phases(directory, 3)
    assert lines[0]["processes"] == 4
    assert lines[5]["edge"] == "begin"
    assert lines[-1]["reason"] == "done"
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert beat(directory, 3)["phase"] == "end"


def test_a_line_can_be_read_at_once(tmp_path):
    with Health(tmp_path) as health:
        health.enter(CHECKPOINT, 5)
        assert changes(tmp_path)[-1] == ("checkpoint", 5)


def test_why_a_process_ended(tmp_path):
    with pytest.raises(UserError), Health(tmp_path):
        raise UserError("the disk is full")
    with Health(tmp_path) as health:
        health.ending("SIGTERM")
    assert [line["reason"] for line in read_phases(tmp_path) if line["phase"] == "end"] == [
        "UserError: the disk is full",
        "SIGTERM",
    ]


def test_a_long_wait_for_data_is_on_record(tmp_path, monkeypatch):
    monkeypatch.setattr(health_module, "LONG_WAIT_SECONDS", 0.02)
    with Health(tmp_path, OFTEN) as health:
        health.enter(STEP, 4)
        health.enter(DATA_WAIT, 5)
        wait_for(lambda: changes(tmp_path)[-1] == ("data_wait", 5))
        health.enter(STEP)
        assert changes(tmp_path)[-2:] == [("data_wait", 5), ("step", 5)]


def test_the_heart_beats_while_the_thread_of_the_loop_does_not_run(tmp_path):
    with Health(tmp_path, OFTEN) as health:
        health.enter(STEP, 4)
        wait_for(lambda: (health_directory(tmp_path) / "host_0.json").exists() and beat(tmp_path)["step"] == 4)
        first = beat(tmp_path)
        wait_for(lambda: beat(tmp_path)["time"] > first["time"])
        second = beat(tmp_path)
        assert second["step"] == 4
        assert second["phase"] == "step"
        assert second["memory_bytes"] > 1e6
        assert second["seconds_in_phase"] > first["seconds_in_phase"]


def test_an_object_store_is_asked_about_once_a_minute(bucket, monkeypatch):
    written = []
    monkeypatch.setattr(files, "write_json", lambda path, value: written.append(value))
    with Health(f"{bucket}/run", OFTEN):
        time.sleep(0.3)
    assert len(written) == 2  # Its first beat and its last.


def test_what_cannot_be_written_ends_nothing(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Health(tmp_path, OFTEN) as health:
        monkeypatch.setattr(files, "write_json", full)
        monkeypatch.setattr(files.AppendLog, "flush", full)
        for step in range(5):
            health.enter(CHECKPOINT, step)
        time.sleep(0.1)
    assert sum("phase log cannot be written" in message for message in caplog.messages) == 1
    assert sum("heartbeat" in message for message in caplog.messages) == 1


def test_seconds_by_phase_add_up(tmp_path):
    health = Health(tmp_path)
    begin = sum(health.seconds().values())
    start = time.monotonic()
    with health.during(RESTORE):
        time.sleep(0.05)
    seconds = health.seconds()
    assert seconds["restore"] >= 0.05
    assert sum(seconds.values()) - begin == pytest.approx(time.monotonic() - start, abs=0.02)
    assert seconds["startup"] > 0.1  # Since this process began, imports included.


def test_a_change_of_phase_takes_microseconds(tmp_path):
    with Health(tmp_path) as health:
        health.enter(STEP, 0)

        def per_step():
            start = time.perf_counter()
            for step in range(2000):
                health.enter(DATA_WAIT, step)
                health.enter(STEP)
            return (time.perf_counter() - start) / 2000

        assert min(per_step() for _ in range(5)) < 20e-6


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="beat_seconds is 0"):
        HealthConfig(beat_seconds=0)


def test_no_thread_is_left(tmp_path):
    with Health(tmp_path):
        pass
    assert not any(thread.name == "health" for thread in threading.enumerate())
