"""Numbers of lazy tensors equal numpy's, whatever the blocks."""

import math

import numpy as np
import pytest

from t5x_scale.checkpoint import integrity
from t5x_scale.conversion import statistics
from t5x_scale.conversion.statistics import compare_tensors, describe_tensor
from t5x_scale.core import lazy


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", 64)


def test_statistics_of_a_tensor_with_odd_values():
    values = np.random.default_rng(0).standard_normal((5, 7, 3)).astype(np.float32)
    values[1, 2, 0], values[4, 6, 2] = np.nan, -np.inf
    found = describe_tensor(lazy.from_array(values))
    finite = values[np.isfinite(values)].astype(np.float64)
    assert found.not_finite == 2
    assert found.rms == pytest.approx(np.sqrt(np.mean(finite**2)), rel=1e-12)
    assert found.mean == pytest.approx(finite.mean(), rel=1e-9)
    assert found.max_abs == np.abs(finite).max()
    assert found.fingerprint == integrity.to_text(integrity.fingerprint_array(values))


def test_differences():
    left = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    left[0, 0] = np.nan
    right = left.copy()
    assert compare_tensors(lazy.from_array(left), lazy.from_array(right)).is_equal
    right[3, 3] += 0.5
    found = compare_tensors(lazy.from_array(left), lazy.from_array(right))
    assert (found.is_equal, found.max_abs) == (False, pytest.approx(0.5, rel=1e-6))
    assert found.relative == pytest.approx(0.5 / np.sqrt(np.nansum(left.astype(np.float64) ** 2)), rel=1e-6)
    zeros = lazy.full((6, 5), "float32")
    assert compare_tensors(zeros, lazy.from_array(np.ones((6, 5), np.float32))).relative == math.inf
    with pytest.raises(ValueError, match="differ"):
        compare_tensors(zeros, lazy.full((5, 6), "float32"))
