"""Small token stores and sources for the tests of this folder."""

import numpy as np
import pytest

from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.batch_source import BatchSource
from t5x_scale.data.freezing import freeze
from t5x_scale.data.objectives import CausalLm

VOCABULARY_SIZE = 60_000


@pytest.fixture(scope="session")
def make_store():
    return _make_store


@pytest.fixture(scope="session")
def make_source():
    return _make_source


def _make_store(directory, tokens):
    """A store of one document whose tokens count up from 2; the separator is 1."""
    return freeze(
        [np.arange(2, tokens + 1)],
        directory,
        source={"task": directory.name},
        vocabulary_fingerprint="v",
        vocabulary_size=VOCABULARY_SIZE,
        separator_id=1,
        chunk=1000,
    )


def _make_source(stores, rates=None, batch_size=8, *, length=16, seed=0, objective=None, **options):
    """A causal source over stores, at equal rates unless given."""
    schedule = batch_size if isinstance(batch_size, BatchSchedule) else BatchSchedule(batch_size)
    rates = rates or dict.fromkeys(stores, 1.0)
    return BatchSource(stores, rates, schedule, objective or CausalLm(), length=length, seed=seed, **options)
