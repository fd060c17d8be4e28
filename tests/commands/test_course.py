"""What a start and a turn make of the lines and checkpoints that are there."""

import contextlib
import dataclasses
import types

import pytest

from t5x_scale.checkpoint import together
from t5x_scale.checkpoint.layout import DamagedError
from t5x_scale.checkpoint.manager import Restored
from t5x_scale.checkpoint.resume import make_run_record
from t5x_scale.checkpoint.timeline import Intervention, append_intervention, interventions_path, load_interventions
from t5x_scale.commands.training import course
from t5x_scale.commands.training.course import Course
from t5x_scale.core import patience
from t5x_scale.core.errors import UnavailableError, UserError
from t5x_scale.monitor.spikes import Spike, SpikeGuard

SPIKE = Spike(1100, "a reason")


def make_record(**recorded):
    return make_run_record({}, recorded, {}, {})


@dataclasses.dataclass
class Source:
    """Eight rows a step, enough for `steps` of them."""

    steps: int = 5000
    skipped: tuple = ()
    at: int = 0

    def skipping(self, intervals):
        return dataclasses.replace(self, skipped=(*self.skipped, *intervals))

    def resumed(self, state, step):
        assert state == {"row": 8 * step}
        return dataclasses.replace(self, at=step)

    def row_interval(self, first, end):
        return 8 * first, 8 * end

    def check_enough(self, train_steps):
        if 8 * train_steps + sum(end - first for first, end in self.skipped) > 8 * self.steps:
            raise UserError("raise MAX_EPOCHS")


class Manager:
    """Checkpoints by their metadata; a damaged one has none."""

    def __init__(self, **saved):
        self.saved = {int(name.strip("_")): metadata for name, metadata in saved.items()}
        self.aside = []

    def steps(self):
        return sorted(self.saved)

    def latest(self):
        return max(self.saved, default=None)

    def wait(self, is_last=True):
        pass

    def set_aside(self, steps):
        for step in steps:
            self.aside.append(step)
            del self.saved[step]

    def read_metadata(self, step):
        if self.saved[step] is None:
            raise DamagedError("damaged")
        return self.saved[step]

    def restore(self, abstract):
        step = max(step for step, metadata in self.saved.items() if metadata is not None)
        return Restored(f"state {step}", self.saved[step], step, {})


def saved(step, timeline=None, spikes=None, **recorded):
    known = {} if timeline is None else {"timeline": timeline}
    return {"data": {"row": 8 * step}, "run": make_record(**recorded), "spikes": spikes, **known}


@pytest.fixture
def make_course(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "begin", lambda *_: "the beginning")

    def make(manager, source=None, recorded=None, **guard):
        health = types.SimpleNamespace(during=lambda phase: contextlib.nullcontext())
        runtime = types.SimpleNamespace(abstract_state=None)
        record = make_record(**(recorded or {}))
        return Course(
            str(tmp_path), runtime, manager, source or Source(), record, None, 4000, SpikeGuard(**guard), health
        )

    return make


def write(tmp_path, *pairs):
    for number, (spike, back) in enumerate(pairs, 1):
        append_intervention(tmp_path, Intervention(number, spike, "", back, ((8 * spike, 8 * spike + 80),), 0.0))


@pytest.mark.parametrize("number", range(3))
def test_an_error_of_one_process_ends_all(make_course, tmp_path, monkeypatch, number):
    """In reading the lines, the list of stale checkpoints, and the rows; before anything is set aside."""
    write(tmp_path, (1100, 1000))
    manager = Manager(_1000=saved(1000), _1200=saved(1200, 0))
    answers = [None] * number + [UserError("seen by another")]
    monkeypatch.setattr(together.multihost, "share_error", lambda error: answers.pop(0))
    with pytest.raises(UserError, match="seen by another"):
        make_course(manager).start()
    assert not manager.aside


def test_storage_that_is_away_leaves_no_stale_checkpoint_in_the_run(make_course, tmp_path, monkeypatch):
    """What is not known to be stale would be gone on from."""
    write(tmp_path, (1100, 1000))
    manager, asked = Manager(_1000=saved(1000), _1200=saved(1200, 0)), []
    usual = manager.read_metadata

    def read(step):
        asked.append(step)
        if is_away(len(asked)):
            raise UnavailableError("away")
        return usual(step)

    monkeypatch.setattr(manager, "read_metadata", read)
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    is_away = lambda count: count > 1  # noqa: E731  (the first question is of the lines)
    with pytest.raises(UnavailableError, match="away; nothing was changed"):
        make_course(manager).start()
    assert not manager.aside
    asked.clear()
    is_away = lambda count: count == 2  # noqa: E731
    assert make_course(manager).start().step == 1000
    assert manager.aside == [1200]


def test_a_decision_that_cannot_be_written_ends_all(make_course, tmp_path, monkeypatch):
    manager = Manager(_1000=saved(1000))
    answers = [None, None, UserError("the disk of process 0 is full")]  # To the lines, the list, and the decision.
    monkeypatch.setattr(together.multihost, "share_error", lambda error: answers.pop(0))
    with pytest.raises(UserError, match="the disk of process 0 is full"):
        make_course(manager).go_back(SPIKE, Source())
    assert not answers


def test_whatever_keeps_a_decision_from_being_written_is_told_to_all(make_course, monkeypatch):
    def fail(*unused):
        raise RuntimeError("a client's")

    told = []
    monkeypatch.setattr(course, "append_intervention", fail)
    monkeypatch.setattr(together.multihost, "share_error", lambda error: told.append(error) or error)
    with pytest.raises(RuntimeError, match="a client's") as caught:
        make_course(Manager(_1000=saved(1000))).go_back(SPIKE, Source())
    assert told[-1] is caught.value


def test_a_run_begins(make_course):
    start = make_course(Manager()).start()
    assert (start.step, start.state, start.spikes, start.carried_out) == (0, "the beginning", None, ())
    assert start.metadata["timeline"] == 0


def test_a_run_goes_on(make_course, tmp_path):
    # A checkpoint of before there were interventions says nothing of them.
    start = make_course(Manager(_900=saved(900), _1000=saved(1000, spikes={"told": True}))).start()
    assert (start.step, start.state, start.spikes) == (1000, "state 1000", {"told": True})
    assert start.source == Source(at=1000)


def test_what_was_given_up_is_set_aside_and_the_rest_jumped_over(make_course, tmp_path):
    write(tmp_path, (1100, 1000), (1500, 1300))
    manager = Manager(
        _900=saved(900),
        _1000=saved(1000, 0),
        _1200=saved(1200, 0),
        _1300=saved(1300, 1),
        _1400=saved(1400, 1),
        _1450=None,
    )
    start = make_course(manager).start()
    assert manager.aside == [1200, 1400], "what is damaged is left to the restore"
    assert (start.step, start.metadata["timeline"]) == (1300, 2)
    assert start.source.skipped == ((8800, 8880), (12000, 12080))
    assert [one.number for one in start.carried_out] == [2]


def test_lines_that_a_checkpoint_knows_were_lost(make_course, tmp_path):
    write(tmp_path, (1100, 1000))
    manager = Manager(_1000=saved(1000, 0), _1200=saved(1200, 0), _1300=saved(1300, 2), _1400=None)
    with pytest.raises(
        UserError, match=r"fewer interventions \(1\) than the checkpoint of step 1300 knows \(2\): put back"
    ):
        make_course(manager).start()
    assert manager.aside == []
    # The second line, without its end.
    with open(interventions_path(tmp_path), "a") as file:
        file.write('{"number": 2, "spike_step": 1300, "reason": "", "rewind_to": 1200')
    with pytest.raises(UserError, match=r"knows \(2\)"):
        make_course(manager).start()


def test_lines_that_a_checkpoint_knows_were_others(make_course, tmp_path):
    write(tmp_path, (1100, 1000))
    metadata = make_course(Manager(_1000=saved(1000, 0))).start().metadata
    manager = Manager(_1000=saved(1000, 0), _1200={**saved(1200), **metadata})
    assert make_course(manager).start().step == 1200
    interventions_path(tmp_path).unlink()
    write(tmp_path, (1100, 900))
    with pytest.raises(UserError, match=r"lines 1 to 1 of .* are not those"):
        make_course(manager).start()
    assert manager.aside == []


def test_only_the_restored_checkpoint_tells_of_lost_lines(make_course):
    # As those in the memory of the machines do.
    manager = Manager(_1000=saved(1000, 1))
    manager.steps = list
    with pytest.raises(UserError, match=r"the checkpoint of step 1000 knows \(1\)"):
        make_course(manager).start()


def test_lines_are_lost_while_the_run_goes_on(make_course, tmp_path):
    write(tmp_path, (40, 0))
    course = make_course(Manager())
    start = course.start()
    course.manager.saved = {1000: saved(1000, 0)}
    interventions_path(tmp_path).unlink()
    with pytest.raises(UserError, match=r"began at step 1100: a reason; .* has changed since this process began"):
        course.go_back(SPIKE, start.source)
    assert load_interventions(tmp_path) == ()


def test_what_cannot_be_followed_sets_nothing_aside(make_course, tmp_path):
    append_intervention(tmp_path, Intervention(1, 1100, "", 1000, ((100, 8800),), 0.0))
    manager = Manager(_900=None, _1000=saved(1000, 0), _1200=saved(1200, 0))
    match = "no checkpoint was set aside"
    with pytest.raises(UserError, match=f"raise MAX_EPOCHS .*{match}"):
        make_course(manager, Source(steps=4200)).start()
    source = Source()
    source.resumed = refuse
    source.skipping = lambda intervals: source
    with pytest.raises(UserError, match=f"must lie ahead .*{match}"):
        make_course(manager, source).start()
    assert manager.aside == []


def refuse(state, step):
    raise UserError("rows to skip must lie ahead")


def test_back_to_the_beginning(make_course, tmp_path):
    write(tmp_path, (40, 0))
    manager = Manager(_50=saved(50, 0))
    start = make_course(manager).start()
    assert manager.aside == [50]
    assert (start.state, len(start.carried_out), start.source.skipped) == ("the beginning", 1, ((320, 400),))


def test_another_rate_has_another_level_of_loss(make_course):
    manager = Manager(_1000=saved(1000, spikes={"told": True}, rate=1.0))
    assert make_course(manager, recorded={"rate": 1.0}).start().spikes == {"told": True}
    assert make_course(manager, recorded={"rate": 2.0}).start().spikes is None


def test_a_decision_is_a_line_and_nothing_more(make_course, tmp_path):
    manager = Manager(_900=saved(900), _1000=saved(1000), _1100=saved(1100), _1200=saved(1200))
    decided = make_course(manager).go_back(SPIKE, Source())
    assert load_interventions(tmp_path) == (decided,)
    assert (decided.rewind_to, decided.skip_rows) == (1000, ((8000, 10400),))
    assert manager.steps() == [900, 1000, 1100, 1200]


def test_a_spike_that_ends_the_run_leaves_no_line(make_course, tmp_path):
    with pytest.raises(UserError, match="policy is 'stop'"):
        make_course(Manager(_1000=saved(1000)), policy="stop").go_back(SPIKE, Source())
    with pytest.raises(UserError, match="needs more data than there is: raise MAX_EPOCHS"):
        make_course(Manager(_1000=saved(1000))).go_back(SPIKE, Source(steps=4200))
    assert load_interventions(tmp_path) == ()
