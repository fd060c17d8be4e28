import collections
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.data import order


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_is_a_bijection(size, seed, epoch):
    image = order.permute(np.arange(size), size, order.order_key(seed, epoch, "a"))
    assert sorted(image.tolist()) == list(range(size))


@pytest.mark.parametrize("other", [(1, 0, "a"), (0, 1, "a"), (0, 0, "b")])
def test_every_argument_changes_the_order(other):
    def image(*arguments):
        return order.permute(np.arange(500), 500, order.order_key(*arguments))

    same = np.mean(image(0, 0, "a") == image(*other))
    assert same < 0.05


def test_neighbours_do_not_stay_neighbours():
    image = order.permute(np.arange(10_000), 10_000, order.order_key(0, 0, "a"))
    assert np.mean(np.abs(np.diff(image)) < 10) < 0.02
    # A random permutation's mean distance is a third of the size.
    assert abs(np.mean(np.abs(np.diff(image))) - 10_000 / 3) < 300


def test_order_is_part_of_the_format_of_a_run():
    # If this fails, runs started with an older version no longer resume on the data they would have seen.
    assert order.order_key(17, 2, "books") == 11993028283462548681
    assert order.permute(np.arange(5), 1_000_001, 123456789).tolist() == [941159, 46943, 689337, 835284, 796207]


def test_every_permutation_of_a_few_is_as_likely_as_any_other():
    counts = collections.Counter(
        tuple(order.permute(np.arange(4), 4, order.order_key(seed, 0, "a")).tolist()) for seed in range(4800)
    )
    assert len(counts) == 24
    # Pearson's statistic with 23 degrees of freedom exceeds 50 once in a thousand.
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 50


def test_part_of_an_order_is_the_same_as_the_whole():
    key = order.order_key(3, 1, "a")
    whole = order.permute(np.arange(1000), 1000, key)
    np.testing.assert_array_equal(order.permute(np.arange(300, 320), 1000, key), whole[300:320])


@pytest.mark.parametrize("size", [2**32 - 1, 2**32 + 1, 2**40, order.MAX_SIZE])
def test_large_sizes_stay_distinct(size):
    ends = np.concatenate([np.arange(2000), np.arange(size - 2000, size)])
    image = order.permute(ends, size, 9)
    assert len(set(image.tolist())) == len(ends)
    assert image.min() >= 0
    assert image.max() < size


@given(st.lists(st.tuples(st.integers(1, order.MAX_SIZE), st.integers(0, 2**64 - 1)), min_size=1, max_size=20))
def test_many_permutations_at_once(permutations):
    sizes = np.array([size for size, _ in permutations])
    keys = np.array([key for _, key in permutations], np.uint64)
    image = order.permute_each(sizes - 1, sizes, keys).tolist()
    assert image == [order.permute(np.array([size - 1]), size, key).tolist()[0] for size, key in permutations]


def test_what_cannot_be_permuted_is_refused():
    with pytest.raises(ValueError, match="cannot permute"):
        order.permute(np.arange(2), order.MAX_SIZE + 1, 9)
    for index in (-1, 10):
        with pytest.raises(ValueError, match="index"):
            order.permute(np.array([index]), 10, 9)
    assert order.permute(np.array([], np.int64), 10, 9).tolist() == []


def test_imports_only_numpy():
    code = (
        "import sys, numpy as np\n"
        "from t5x_scale.data import order\n"
        "order.permute(np.arange(3), 3, 1)\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'seqio', 'grain', 'jax')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
