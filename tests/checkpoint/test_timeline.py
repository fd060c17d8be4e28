"""interventions.jsonl: whole lines or none, read back as written, and what they make of checkpoints."""

import dataclasses
import errno
import json
import os

import pytest
from gcsfs.retry import HttpError
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.checkpoint.timeline import (
    Intervention,
    all_skipped,
    append_intervention,
    check_known,
    describe_known,
    interventions_path,
    is_stale,
    known_interventions,
    load_interventions,
)
from t5x_scale.core.errors import UnavailableError, UserError

FIRST = Intervention(1, 520, "loss 7.1, 4 nats above", 400, ((3360, 5760),), 1764150000.25)
SECOND = Intervention(2, 900, "«NaN»\nand more", 0, ((10, 20), (30, 40)), 1764150001.0)


def test_lines_are_read_back_as_they_were_written(tmp_path):
    assert load_interventions(tmp_path) == ()
    for one in (FIRST, SECOND):
        append_intervention(tmp_path, one)
    assert load_interventions(tmp_path) == (FIRST, SECOND)
    assert all_skipped([FIRST, SECOND]) == ((3360, 5760), (10, 20), (30, 40))
    assert len(interventions_path(tmp_path).read_text().splitlines()) == 2


def test_it_is_on_the_disk_before_anything_else_is_done(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    append_intervention(tmp_path, FIRST)
    assert len(interventions_path(tmp_path).read_bytes()) in synced


def test_every_part_of_a_line_is_no_decision(tmp_path):
    append_intervention(tmp_path, FIRST)
    whole = interventions_path(tmp_path).read_bytes()
    line = json.dumps({**json.loads(whole), "number": 2}).encode()
    for end in range(len(line) + 1):
        interventions_path(tmp_path).write_bytes(whole + line[:end])
        assert load_interventions(tmp_path) == (FIRST,)
    # The next one takes its place.
    append_intervention(tmp_path, SECOND)
    assert load_interventions(tmp_path) == (FIRST, SECOND)


@pytest.mark.parametrize(
    "change",
    [
        {"number": 2},
        {"number": True},
        {"spike_step": -1},
        {"rewind_to": 2.5},
        {"rewind_to": 2**80},
        {"rewind_to": 521},
        {"skip_rows": [[3360, 2**61]]},
        {"skip_rows": [[5, 5]]},
        {"skip_rows": [[5]]},
        {"skip_rows": None},
        {"skip_rows": [["0", 9]]},
        {"time": "NaN"},
        {"time": None},
    ],
)
def test_a_line_that_is_not_what_was_written_stops_the_run(tmp_path, change):
    append_intervention(tmp_path, FIRST)
    value = json.loads(interventions_path(tmp_path).read_text())
    interventions_path(tmp_path).write_text(json.dumps({**value, **change}) + "\n")
    with pytest.raises(UserError, match=r"line 1 of .*interventions\.jsonl is damaged"):
        load_interventions(tmp_path)


@pytest.mark.parametrize("content", [b"[]\n", b"{}\n", b"\xff\xfe\n", b"null\n", b"\n", b"[" * 100_000 + b"\n"])
def test_a_file_of_something_else(tmp_path, content):
    interventions_path(tmp_path).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_interventions(tmp_path)


def test_a_directory_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="nothing was done about the spike"):
        append_intervention(tmp_path / "nowhere", FIRST)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), UnavailableError),
        (HttpError({"code": 503, "message": "try later"}), UnavailableError),
        (HttpError({"code": 400, "message": "no"}), UserError),
    ],
)
def test_a_line_that_may_stand_is_not_denied(tmp_path, monkeypatch, error, kind):
    def fail(descriptor):
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="if the decision stands there all the same") as caught:
        append_intervention(tmp_path, FIRST)
    assert type(caught.value) is kind
    assert load_interventions(tmp_path) == (FIRST,)


def test_a_checkpoint_knows_what_the_file_must_hold(tmp_path):
    path = interventions_path(tmp_path)
    for known in ([], [FIRST], [FIRST, SECOND]):
        metadata = describe_known(known)
        assert known_interventions(metadata) == len(known)
        check_known(metadata, 500, [FIRST, SECOND], path)
        # Decided again, at another time.
        check_known(metadata, 500, [dataclasses.replace(FIRST, time=0.0), SECOND], path)
    for held in ([], [FIRST]):
        message = (
            rf"jsonl holds fewer interventions \({len(held)}\) than the checkpoint of step 500 knows \(2\): put back"
        )
        with pytest.raises(UserError, match=message):
            check_known(metadata, 500, held, path)
        with pytest.raises(UserError, match="INITIAL_CHECKPOINT_PATH"):
            check_known({"timeline": 2}, 500, held, path)


@pytest.mark.parametrize(
    "change", [{"spike_step": 521}, {"rewind_to": 399}, {"skip_rows": ((3361, 5760),)}, {"reason": "another"}]
)
def test_a_checkpoint_knows_other_lines(tmp_path, change):
    held = [dataclasses.replace(FIRST, **change), SECOND]
    with pytest.raises(UserError, match=r"lines 1 to 1 of .* are not those that the checkpoint of step 500"):
        check_known(describe_known([FIRST]), 500, held, tmp_path)
    # From before there was a digest.
    check_known({"timeline": 1}, 500, held, tmp_path)
    check_known({}, 500, held, tmp_path)


def test_which_checkpoints_are_of_a_course_that_was_given_up():
    both = [FIRST, SECOND]
    assert known_interventions({}) == 0
    assert known_interventions({"timeline": 2}) == 2
    assert is_stale(500, 0, [FIRST])
    assert not is_stale(400, 0, [FIRST])
    assert not is_stale(500, 1, [FIRST])
    # The second went back to the beginning, beyond where the first went.
    assert is_stale(500, 1, both)
    assert is_stale(400, 0, both)
    assert not is_stale(500, 2, both)


@given(backs=st.lists(st.integers(0, 30), max_size=6), data=st.data())
def test_the_checkpoints_left_are_those_of_the_last_course(backs, data):
    """A simulation: a run saves every step, and goes back now and then. Of each step the newest save counts."""
    interventions, saved, step = [], {}, 0
    for number, back in enumerate(backs, 1):
        end = step + data.draw(st.integers(0, 9))
        saved |= dict.fromkeys(range(step, end), len(interventions))
        step, back = end, min(back, end)
        interventions.append(Intervention(number, step, "", back, ((0, 1),), 0.0))
        # The process may die before any of them is set aside: later saves find out.
        saved_now = {s: known for s, known in saved.items() if not is_stale(s, known, interventions)}
        assert saved_now == {s: known for s, known in saved.items() if s <= back}
        saved, step = saved_now, back
