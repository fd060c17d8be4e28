"""The platform's notice, from a fake of its metadata server."""

import pathlib
import sys
import threading
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from metadata_server import FakeMetadata

from t5x_scale.core.errors import UserError
from t5x_scale.core.maintenance import MaintenanceWatch
from t5x_scale.core.preemption import PreemptionConfig, StopSignal

POLL = 0.01


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize(
    ("name", "answer"), [("preempted", "TRUE"), ("maintenance_event", "TERMINATE_ON_HOST_MAINTENANCE")]
)
def test_a_notice_stops_the_run(name, answer):
    with FakeMetadata() as server, StopSignal(PreemptionConfig(poll_seconds=POLL, address=server.address)) as stop:
        assert wait_for(lambda: len(server.asked) > 4)
        assert not stop.is_requested(1)
        server.answers[name] = answer
        assert wait_for(lambda: stop.is_requested(2))
        assert stop.reason == f"{name.replace('_', '-')}: {answer}"
        count = len(server.asked)
        time.sleep(5 * POLL)
        assert len(server.asked) == count, "one notice is enough"


def test_a_migration_does_not_stop_it():
    migrating = FakeMetadata(maintenance_event="MIGRATE_ON_HOST_MAINTENANCE")
    with migrating as server, StopSignal(PreemptionConfig(poll_seconds=POLL, address=server.address)) as stop:
        assert wait_for(lambda: len(server.asked) > 6)
        assert not stop.is_requested(1)


def test_the_variable_of_the_platform_names_the_server(monkeypatch):
    with FakeMetadata(preempted="TRUE") as server:
        monkeypatch.setenv("GCE_METADATA_HOST", server.address)
        with StopSignal(PreemptionConfig(poll_seconds=POLL)) as stop:
            assert wait_for(lambda: stop.is_requested(1))


@pytest.mark.parametrize("flavor", [None, "Other"])
def test_another_server_is_not_believed(flavor):
    noticed = []
    with (
        FakeMetadata(flavor, preempted="TRUE") as server,
        MaintenanceWatch(noticed.append, POLL, server.address) as watch,
    ):
        assert wait_for(lambda: not watch._thread.is_alive())
        assert noticed == []


def test_where_nobody_answers_nothing_happens():
    with FakeMetadata() as server:
        address = server.address
    before = threading.active_count()
    with StopSignal(PreemptionConfig(poll_seconds=POLL, address=address)) as stop:
        assert wait_for(lambda: threading.active_count() == before)
        assert not stop.is_requested(1)


def test_a_server_that_is_away_for_a_moment_is_asked_again(monkeypatch):
    noticed, answers = [], iter([None, OSError("away"), OSError("away"), "preempted: TRUE"])

    def ask(self):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(MaintenanceWatch, "_ask", ask)
    with MaintenanceWatch(noticed.append, POLL, "nowhere"):
        assert wait_for(lambda: noticed)


def test_no_notice_after_the_end():
    with FakeMetadata() as server:
        noticed = []
        with MaintenanceWatch(noticed.append, POLL, server.address) as watch:
            assert wait_for(lambda: server.asked)
        server.answers["preempted"] = "TRUE"
        assert wait_for(lambda: not watch._thread.is_alive())
        assert noticed == []


def test_a_pause_that_makes_no_sense():
    with pytest.raises(UserError, match="poll_seconds is 0"):
        PreemptionConfig(poll_seconds=0)
