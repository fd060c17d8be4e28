"""Bits that differ are found, and the device named where it can be."""

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.monitor.corruption import ProbeConfig, compare_answers, compare_copies, compare_twice

DEVICES, NAMES = (10, 11, 12, 13), ("loss", "a", "b")


def prints(seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, (4, 3, 2), dtype=np.uint32)


def test_the_same_twice():
    first, second = prints(), prints()
    assert compare_twice(first, second, DEVICES, NAMES) is None
    second[2, 1, 0] ^= 1
    difference = compare_twice(first, second, DEVICES, NAMES)
    assert (difference.kind, difference.devices, difference.arrays) == ("gradients", (12,), ("a",))
    assert "on device 12, in a" in difference.render()


def test_copies_are_compared_with_copies_only():
    # The first array lies on all devices alike, the second is split in two, the third in four.
    shards = [("all",) * 4, ("left", "left", "right", "right"), (0, 1, 2, 3)]
    held = prints()
    held[:, 0] = held[0, 0]
    held[1, 1], held[3, 1] = held[0, 1], held[2, 1]
    assert compare_copies(held, shards, DEVICES, NAMES) is None
    held[3, 0, 1] ^= 4
    assert compare_copies(held, shards, DEVICES, NAMES).devices == (13,)
    held[3, 0, 1] ^= 4
    held[0, 1, 0] ^= 4  # One of two: nobody knows which.
    difference = compare_copies(held, shards, DEVICES, NAMES)
    assert (difference.devices, difference.arrays) == ((10, 11), ("a",))


def test_answers():
    answers = np.full(4, 7, np.uint32)
    assert compare_answers(answers, DEVICES) is None
    answers[1] = 8
    assert compare_answers(answers, DEVICES).devices == (11,)
    assert compare_answers(answers[:1], DEVICES[:1]) is None


def test_when():
    assert not any(ProbeConfig().is_due(step) for step in range(100))
    assert [step for step in range(10) if ProbeConfig(every_steps=4).is_due(step)] == [4, 8]
    with pytest.raises(UserError, match="every_steps is -1"):
        ProbeConfig(every_steps=-1)
