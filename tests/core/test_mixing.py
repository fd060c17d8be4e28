"""SplitMix64's finaliser, by its published output and as a bijection."""

import numpy as np

from t5x_scale.core.mixing import GOLDEN, mix


def test_the_published_sequence():
    """The generator seeded with 1234567, as in the reference implementation."""
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * GOLDEN
    assert mix(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_no_two_numbers_meet_and_arguments_stay():
    values = np.arange(2**16, dtype=np.uint64)
    assert len(np.unique(mix(values))) == 2**16
    assert values[5] == 5
    assert mix(np.zeros((2, 3), np.uint64)).shape == (2, 3)
    assert mix(values[7]) == mix(values)[7]
