"""What is away is asked again, once, however many ask for one another."""

import errno

import pytest

from t5x_scale.core import patience
from t5x_scale.core.errors import StillAwayError, UnavailableError, UserError
from t5x_scale.core.patience import read_patiently

pytestmark = pytest.mark.usefixtures("waits")


def make_reader(*answers):
    """A function that raises or returns one answer after the other, the last for ever."""
    left = list(answers)

    def read():
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return read


AWAY = OSError(errno.ESTALE, "Stale file handle", "/nfs/store")


def test_what_was_away_for_a_moment_is_read(waits, caplog):
    assert read_patiently(make_reader(AWAY, AWAY, 7), "the store") == 7
    assert waits == [1.0, 4.0]
    assert caplog.messages == [
        f"the store cannot be read, as the storage does not answer: nfs/store: Stale file handle; trying again in {s} s"
        for s in (1, 4)
    ]


def test_a_reading_within_a_reading_is_not_waited_for_twice(waits):
    with pytest.raises(StillAwayError, match=r"^inner .*Stale file handle; nothing was changed, [^;]*once it does$"):
        read_patiently(lambda: read_patiently(make_reader(AWAY), "inner"), "outer")
    assert waits == list(patience.WAITS_SECONDS)


def test_words_do_not_decide_whether_it_was_waited_for(waits):
    """A message of somebody else may hold the words of ours."""
    read_patiently(make_reader(UnavailableError(f"away; {StillAwayError.CONCLUSION}"), 7), "the store")
    assert waits == [1.0]


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied", "/x"), UserError("mend it"), ValueError("a mistake")]
)
def test_what_waiting_does_not_mend_is_not_waited_for(waits, error):
    with pytest.raises(Exception, match=r"Permission denied|mend it|a mistake") as raised:
        read_patiently(make_reader(error), "the store")
    assert not waits
    assert not isinstance(raised.value, UnavailableError | OSError)
