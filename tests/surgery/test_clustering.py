"""Clusters of equal size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.surgery.clustering import balanced_clusters


@settings(deadline=None)
@given(clusters=st.integers(1, 6), room=st.integers(1, 9), seed=st.integers(0, 99), same=st.booleans())
def test_all_clusters_have_one_size(clusters, room, seed, same):
    points = np.random.default_rng(seed).standard_normal((clusters * room, 3)).astype(np.float32)
    if same:
        points[:] = 1.0
    labels = balanced_clusters(points, clusters, seed)
    assert np.bincount(labels, minlength=clusters).tolist() == [room] * clusters
    assert np.array_equal(labels, balanced_clusters(points, clusters, seed))


def test_groups_that_lie_apart_are_found():
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat(np.arange(4), 10))
    points = (10 * np.eye(4)[truth] + 0.1 * rng.standard_normal((40, 4))).astype(np.float32)
    labels = balanced_clusters(points, 4, 0)
    assert len({(a, b) for a, b in zip(truth.tolist(), labels.tolist(), strict=True)}) == 4


def test_clusters_are_tighter_than_random_sets():
    points = np.random.default_rng(1).standard_normal((200, 5)).astype(np.float32)

    def spread(labels):
        return sum(np.square(points[labels == c] - points[labels == c].mean(0)).sum() for c in range(5))

    assert spread(balanced_clusters(points, 5, 0)) < 0.85 * spread(np.arange(200) % 5)


def test_an_uneven_number_is_refused():
    with pytest.raises(ValueError, match="7 points"):
        balanced_clusters(np.zeros((7, 2), np.float32), 2, 0)
