"""Who is called slow, by what is a host's own."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.monitor.metric_log import read_metrics
from t5x_scale.monitor.peers import OwnTimes, Peers
from t5x_scale.monitor.speed_probe import Speeds
from t5x_scale.monitor.status import StatusLine
from t5x_scale.monitor.stragglers import HostTimes, Naming, StragglerConfig, find_stragglers
from t5x_scale.monitor.writers import MetricWriters

CONFIG = StragglerConfig()
EVEN = {"data": 0.002, "dispatch": 0.001, "host_probe": 0.004, "device_probe": 0.005}


def hosts(*changes, count=4, step_seconds=0.1):
    """Even hosts but for (process, measure, seconds)."""
    times = [HostTimes(i, f"host{i}", step_seconds, dict(EVEN), 4 * i) for i in range(count)]
    for process, measure, seconds in changes:
        times[process].seconds[measure] = seconds
    return times


def names(times, config=CONFIG):
    return [(straggler.process, straggler.measure) for straggler in find_stragglers(times, config)]


@pytest.mark.parametrize("count", [2, 3, 64])
@pytest.mark.parametrize(
    ("measure", "seconds"), [("data", 0.06), ("dispatch", 0.05), ("host_probe", 0.012), ("device_probe", 0.015)]
)
def test_the_slow_one_is_named(count, measure, seconds):
    assert names(hosts((1, measure, seconds), count=count)) == [(1, measure)]
    (straggler,) = find_stragglers(hosts((1, measure, seconds), count=count), CONFIG)
    assert straggler.peers_seconds == EVEN[measure]
    assert straggler.device == (4 if measure == "device_probe" else None)
    assert "process 1 on host1 is slower than its peers" in straggler.render()


def test_what_costs_nothing_is_not_named():
    # Ten times its peers' wait, and a fiftieth of the step.
    assert names(hosts((1, "data", 0.02))) == []
    assert names(hosts((1, "data", 0.02)), dataclasses.replace(CONFIG, least_share=0.1)) == [(1, "data")]


def test_two_slow_hosts_of_several_and_the_worst_of_each():
    times = hosts((0, "data", 0.05), (0, "host_probe", 0.4), (3, "device_probe", 0.02), count=5)
    assert names(times) == [(0, "data"), (3, "device_probe")]


@given(st.integers(1, 8), st.floats(1e-6, 10))
def test_equal_hosts_are_never_named(count, seconds):
    times = [HostTimes(i, "h", seconds, dict.fromkeys(EVEN, seconds)) for i in range(count)]
    assert names(times) == []
    assert names([HostTimes(i, "h", seconds, dict.fromkeys(EVEN, 0.0)) for i in range(count)]) == []


def test_what_is_not_known_is_not_compared():
    times = hosts((1, "data", 0.06), count=2)
    del times[0].seconds["data"]
    assert names(times) == []
    assert names([]) == []


def test_two_looks_name_and_two_forgive():
    naming, slow, even = Naming(CONFIG), hosts((2, "data", 0.06)), hosts()
    told = [tuple(map(len, naming.look(times))) for times in (slow, even, slow, slow, slow, even, slow, even, even)]
    assert told == [(0, 0), (0, 0), (0, 0), (1, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 1)]
    assert naming.render() == ""


def test_times_survive_being_sent():
    times = hosts((1, "data", 0.06))[1]
    assert HostTimes.from_json(times.to_json()) == times


class Board:
    def __init__(self):
        self.lines = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite
        self.lines[key] = value

    def key_value_dir_get(self, key):
        return [(name, value) for name, value in self.lines.items() if name.startswith(key)]


def test_the_first_process_tells_of_a_slow_one(tmp_path, capsys, caplog):
    board = Board()
    peers = [Peers(CONFIG, process, lambda: board) for process in range(3)]
    with MetricWriters(tmp_path) as writers, StatusLine() as line:
        peers[0].connect(writers, line)
        for peer, device in zip(peers, (0.005, 0.005, 0.02), strict=True):
            for _ in range(3):
                peer.own.probed(Speeds(0.004, {7: 0.004, 9: device}))
        for step in (10, 20, 30):
            for peer in reversed(peers):
                peer.exchange(step)
        assert line._remark == "slow: process 2 (device_probe 4.0x)"
        for _ in range(3):
            peers[2].own.probed(Speeds(0.004, {7: 0.004, 9: 0.005}))
        for step in (40, 50):
            for peer in reversed(peers):
                peer.exchange(step)
        assert line._remark == ""
    events = read_metrics(tmp_path).events
    assert [(event["process"], event["measure"], event.get("over")) for event in events] == [
        (2, "device_probe", None),
        (2, "device_probe", True),
    ]
    assert events[0]["device"] == 9
    assert "device 9" in caplog.text


def test_own_times_are_of_a_window(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("t5x_scale.monitor.peers.time.monotonic", lambda: float(next(clock)))
    counts = {"steps": 0, "waited": 0.0}
    own = OwnTimes(dataclasses.replace(CONFIG, window_seconds=20.0), 0)
    own.follow(lambda: (counts["steps"], counts["waited"], 0.5 * counts["waited"]))
    assert own.now().seconds == {}
    for waited in (1.0, 1.0, 1.0, 4.0, 4.0):
        counts["steps"] += 10
        counts["waited"] += 10 * waited
        times = own.now()
    # The early steps have left the window; ten steps took ten seconds.
    assert times.seconds == {"data": 4.0, "dispatch": 2.0}
    assert times.step_seconds == 1.0


@pytest.mark.parametrize(("name", "value"), [("factor", 1.0), ("least_share", 0), ("probe_every_steps", 1.5)])
def test_bad_settings(name, value):
    with pytest.raises(UserError, match=f"StragglerConfig.{name} is {value}"):
        StragglerConfig(**{name: value})
