"""Work by threads: in order, a few pieces at a time, and nothing left running after an error."""

import contextlib
import threading
import time

import pytest

from t5x_scale.core.parallel import map_bounded


def test_results_come_in_the_order_of_the_items():
    def work(item):
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(map_bounded(work, range(50), workers=3)) == [item * item for item in range(50)]


def test_items_are_drawn_a_few_ahead_of_the_results():
    drawn = []

    def items():
        for item in range(100):
            drawn.append(item)
            yield item

    with contextlib.closing(map_bounded(str, items(), workers=2)) as results:
        for done, _ in enumerate(results):
            assert len(drawn) <= done + 4


def test_an_error_is_raised_once_everything_has_ended():
    running, started = set(), []

    def work(item):
        started.append(item)
        running.add(threading.get_ident())
        time.sleep(0.01)
        running.discard(threading.get_ident())
        if item == 3:
            raise KeyError(item)

    with pytest.raises(KeyError):
        list(map_bounded(work, range(1000), workers=2))
    assert not running
    assert len(started) <= 3 + 1 + 2 * 2


def test_nothing_to_do():
    assert list(map_bounded(str, [])) == []
