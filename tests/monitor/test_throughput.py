import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.monitor.peaks import peak_flops
from t5x_scale.monitor.phases import CHECKPOINT, EVALUATION, REWIND
from t5x_scale.monitor.throughput import SECONDS, Throughput


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_palm_540b_row(clock):
    """PaLM, table 3: 238.3K tokens/s on 6144 TPU v4 is 46.2 % MFU, 45.7 % without attention."""
    parameters, layers, heads, head_dim, length = 540.35e9, 118, 48, 256, 2048
    attention = 12 * layers * heads * head_dim * length
    tokens_per_step = 2048 * 2048
    rates = {}
    for name, flops in (("with", 6 * parameters + attention), ("without", 6 * parameters)):
        throughput = Throughput(
            tokens_per_step,
            flops_per_token=flops,
            flops_per_token_causal=6 * parameters + attention / 2,
            peak_flops_per_device=peak_flops("TPU v4"),
            device_count=6144,
            clock=clock,
        )
        throughput.completed(1)
        clock.now += 10 * tokens_per_step / 238.3e3
        rates[name] = throughput.completed(11)
    assert rates["with"].tokens_per_second == pytest.approx(238.3e3)
    assert round(rates["with"].mfu * 100, 1) == 46.2
    assert round(rates["without"].mfu * 100, 1) == 45.7
    assert rates["without"].mfu < rates["with"].mfu_causal < rates["with"].mfu


def test_first_interval_is_startup_and_pauses_are_not_step_time(clock):
    throughput = Throughput(1000, clock=clock)
    clock.now += 60  # Compilation.
    assert throughput.completed(10) is None
    clock.now += 2
    with throughput.pause(EVALUATION):
        clock.now += 7
    clock.now += 2
    with throughput.pause(CHECKPOINT):
        clock.now += 1
    rates = throughput.completed(14)
    assert (rates.steps, rates.seconds_per_step, rates.tokens_per_second) == (4, 1.0, 1000.0)
    seconds = throughput.seconds()
    assert (seconds["startup"], seconds["step"], seconds["evaluation"], seconds["checkpoint"]) == (60, 4, 7, 1)
    # Ten steps of one second, and the eight seconds of pauses that came with every four steps.
    assert throughput.eta(24) == pytest.approx(10 * (1 + 8 / 4))


def test_data_wait_is_part_of_the_step_time(clock):
    throughput = Throughput(1000, clock=clock)
    throughput.completed(1)
    for _ in range(4):
        with throughput.data_wait():
            clock.now += 0.5
        clock.now += 1.5
    rates = throughput.completed(5)
    assert rates.seconds_per_step == 2.0
    assert rates.data_wait_fraction == 0.25
    assert throughput.seconds()["data_wait"] == 2.0
    assert rates.to_metrics() == {
        "throughput/seconds_per_step": 2.0,
        "throughput/tokens_per_second": 500.0,
        "throughput/data_wait_fraction": 0.25,
    }


class Listener:
    """What the loop was at, and the places told."""

    def __init__(self):
        self.phase, self.told, self.intervals = "startup", [], []

    def enter(self, phase, step=None):
        before, self.phase = self.phase, phase
        self.told.append((phase, step))
        return before

    def measured(self, steps, seconds):
        self.intervals.append((steps, seconds))


def test_compiling_is_told_and_counted_apart(clock):
    listener = Listener()
    throughput = Throughput(1000, listener=listener, before={"startup": 5.0, "restore": 7.0}, clock=clock)
    for step, rows, seconds in ((0, 8, 30), (1, 8, 2), (2, 16, 40), (3, 16, 2)):
        with throughput.data_wait(step):
            clock.now += 1
        with throughput.dispatch(rows):
            clock.now += seconds
        throughput.completed(step + 1)
    compile_first = [("data_wait", 0), ("step", None), ("compile", None), ("step", None)]
    ordinary = [("data_wait", 1), ("step", None)]
    assert listener.told[:6] == compile_first + ordinary
    assert [phase for phase, _ in listener.told].count("compile") == 2
    assert listener.intervals == [(1, 3.0), (1, 1.0), (1, 3.0)]
    seconds = throughput.seconds()
    assert (seconds["startup"], seconds["restore"], seconds["compile"]) == (5, 7, 70)
    assert sum(seconds.values()) == 5 + 7 + 30 + 2 + 40 + 2 + 4
    steps, waited, _ = throughput.own_times()
    assert (steps, waited) == (2, 3.0)  # What everybody waits for at first is nobody's.


def test_nothing_is_known_before_two_reports(clock):
    throughput = Throughput(1000, clock=clock)
    assert throughput.eta(100) is None
    assert throughput.completed(3) is None
    clock.now += 1
    assert throughput.completed(3) is None  # No new step.
    assert throughput.eta(100) is None
    assert throughput.completed(4).seconds_per_step == 1.0


def test_tokens_of_a_batch_schedule(clock):
    throughput = Throughput(1000, clock=clock)
    throughput.completed(1)
    clock.now += 2
    assert throughput.completed(3, tokens=5000).tokens_per_second == 2500.0


@given(st.lists(st.tuples(st.sampled_from(["run", "data", "evaluation", "restore"]), st.floats(0, 100)), max_size=30))
def test_shares_add_up_to_the_whole(events):
    clock = Clock()
    throughput = Throughput(1, clock=clock)
    for step, (kind, seconds) in enumerate(events, 1):
        if kind == "run":
            clock.now += seconds
        elif kind == "data":
            with throughput.data_wait():
                clock.now += seconds
        else:
            with throughput.pause(kind):
                clock.now += seconds
        throughput.completed(step)
    parts = throughput.seconds()
    assert math.isclose(sum(parts.values()), clock.now - 1000.0, abs_tol=1e-6)
    assert all(value >= -1e-9 for value in parts.values())
    if clock.now > 1000.0:
        metrics = throughput.to_metrics()
        assert math.isclose(metrics.pop(SECONDS), clock.now - 1000.0)
        assert math.isclose(sum(metrics.values()), 1.0)


def test_going_back_loses_what_was_not_reported_and_counts_on_from_there(clock):
    throughput = Throughput(1000, clock=clock)
    clock.now += 60
    throughput.completed(10)
    clock.now += 10
    throughput.completed(20)
    clock.now += 3  # Steps whose results nobody wants.
    with throughput.pause(REWIND):
        clock.now += 5
    throughput.moved_back(12)
    clock.now += 4
    rates = throughput.completed(16)
    assert (rates.step, rates.steps, rates.seconds_per_step) == (16, 4, 1.0)
    assert throughput.seconds()[REWIND] == 8
    assert sum(throughput.seconds().values()) == pytest.approx(82)
