import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.monitor.status import Status, StatusLine, format_count, format_duration, format_status


def test_the_line():
    status = Status(1200, 20000, 2.34561, 12345.0, 0.4623, 7530, 0.0031, 252)
    assert format_status(status) == (
        "step  1200/20000 | loss 2.3456 | 12.3k tok/s | MFU 46.2% | ETA 2h05m | data 0.3% | ckpt 4m12s"
    )


def test_unknown_numbers_keep_their_place_and_no_mfu_is_printed():
    assert format_status(Status(1, 10)) == "step  1/10 | loss - | - tok/s | ETA - | data - | ckpt -"
    assert "loss nan" in format_status(Status(1, 10, float("nan")))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00"),
        (954, "954"),
        (999.6, "1.00k"),
        (12345, "12.3k"),
        (999_600, "1.00M"),
        (780e9, "780B"),
        (1.5e12, "1.50T"),
        (float("nan"), "nan"),
    ],
)
def test_counts(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (44.6, "45s"), (60, "1m00s"), (7530, "2h05m"), (367200, "4d06h"), (float("inf"), "-")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


numbers = st.none() | st.floats()


@given(st.builds(Status, st.integers(0, 10**9), st.integers(1, 10**9), *[numbers] * 6))
def test_never_wider_than_a_terminal(status):
    line = format_status(status)
    assert len(line) <= 120
    assert "\n" not in line


def test_a_log_gets_plain_lines():
    stream = io.StringIO()
    with StatusLine(stream=stream) as line:
        line.update(Status(1, 10, 2.0))
        line.note("eval/books/loss 2.5")
        line.update(Status(2, 10, 1.0))
    assert stream.getvalue().splitlines() == [
        format_status(Status(1, 10, 2.0)),
        "eval/books/loss 2.5",
        format_status(Status(2, 10, 1.0)),
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_one_line_that_changes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    line = StatusLine(stream=stream)
    for step in (1, 2, 3):
        line.update(Status(step, 10, 2.0))
    line.note("a note")
    line.close()
    line.close()
    text = stream.getvalue()
    assert "\x1b[2K" in text  # The line is erased and drawn again in its place ...
    assert text.count("\n") <= 3  # ... and only the note and the last status stay.
    assert "a note" in text


def test_disabled_prints_nothing():
    stream = io.StringIO()
    with StatusLine(enabled=False, stream=stream) as line:
        line.update(Status(1, 10))
        line.note("text")
    assert stream.getvalue() == ""
