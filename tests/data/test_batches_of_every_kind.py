"""Every objective, in windows and in packed documents: the same bytes for any number of hosts, after any cut."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import batch as batch_lib
from t5x_scale.data import objectives
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.batch_source import BatchSource
from t5x_scale.data.mixtures.mixture_schedule import RatePlan
from t5x_scale.data.rows.delivery import Windows
from t5x_scale.data.rows.packed_delivery import PackDocuments
from t5x_scale.data.store_writer import TokenStoreWriter
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary("bytes")
LENGTH = 96
RAMP = BatchSchedule(((0, 4), (3, 8), (6, 12)))
PLAN = RatePlan(((0, {"long": 1.0}), (4, {"long": 1.0, "short": 1.0})))
WINDOWS = [
    objectives.CausalLm(),
    objectives.PrefixLm(),
    objectives.SpanCorruption(),
    objectives.Ul2(),
    objectives.Ul2r(),
    objectives.FillInTheMiddle(),
    objectives.MaskedDiffusion(),
]
KINDS = [
    *((objective, Windows()) for objective in WINDOWS),
    (objectives.CausalLm(), Windows(attend_across_documents=False)),
    *((objective, PackDocuments()) for objective in [*WINDOWS, objectives.Supervised()]),
    (objectives.CausalLm(), PackDocuments("first", attend_across_documents=True)),
]


def kind_name(kind):
    return "-".join(type(part).__name__ for part in kind)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Long documents of 50 to 400 tokens and short ones of 3 to 30, each with inputs and targets."""
    directory, generator = tmp_path_factory.mktemp("stores"), np.random.default_rng(0)
    return {
        name: _write(directory / name, generator, documents, low, high)
        for name, documents, low, high in (("long", 200, 50, 400), ("short", 1500, 3, 30))
    }


def _write(directory, generator, documents, low, high):
    writer = TokenStoreWriter(
        directory,
        source={"task": directory.name},
        vocabulary_fingerprint=VOCABULARY.fingerprint,
        vocabulary_size=VOCABULARY.size,
        separator_id=VOCABULARY.eod_id,
        supervised=True,
    )
    with writer:
        for length in generator.integers(low, high, documents):
            writer.add(generator.integers(8, 264, length), target_start=int(length) // 2)
    return TokenStore.open(directory)


@pytest.fixture(scope="module")
def make(stores):
    def make(kind, seed=0, rates=PLAN, schedule=RAMP, **options):
        objective = kind[0].with_vocabulary(VOCABULARY)
        delivery = kind[1].make(stores, objective, LENGTH, seed=seed)
        return BatchSource(
            stores, rates, schedule, objective, length=LENGTH, seed=seed, delivery=delivery, max_epochs=None, **options
        )

    return make


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].tobytes() == right[name].tobytes(), name


@pytest.mark.parametrize("kind", KINDS, ids=kind_name)
def test_hosts_and_cuts_change_nothing(make, kind):
    whole = make(kind, skip=[(30, 41)])

    @settings(max_examples=6, deadline=None)
    @given(step=st.integers(0, 200), hosts=st.sampled_from([1, 2, 4]), cut=st.integers(0, 20))
    def check(step, hosts, cut):
        expected = whole.batch(step)
        assert batch_lib.check_batch(expected) == (RAMP.size(step), LENGTH)
        parts = [make(kind, skip=[(30, 41)], process_index=i, process_count=hosts).batch(step) for i in range(hosts)]
        assert_same({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, expected)
        state = json.dumps(whole.state(cut))
        assert len(state) < 1024
        assert_same(make(kind, skip=[(30, 41)]).resumed(json.loads(state), cut).batch(cut), whole.batch(cut))

    check()


@pytest.mark.parametrize("kind", KINDS, ids=kind_name)
def test_ids_weights_and_padding(make, kind):
    batch = make(kind).batch(7)
    weights = batch[batch_lib.LOSS_WEIGHTS]
    for name in (batch_lib.INPUT_TOKENS, batch_lib.TARGET_TOKENS):
        assert batch[name].min() >= 0
        assert batch[name].max() < VOCABULARY.size
    assert weights.min() >= 0
    assert (weights.sum(axis=1) > 0).any()
    if batch_lib.SEGMENT_IDS in batch:
        assert not weights[batch[batch_lib.SEGMENT_IDS] == 0].any()
    assert (batch_lib.PREFIX in batch) == kind[0].has_prefix
    if batch_lib.PREFIX in batch and not isinstance(kind[0], objectives.MaskedDiffusion):
        prefix = batch[batch_lib.PREFIX] == 1
        # All of a prefix but its last position sees the token it would have to predict.
        inner = prefix[:, :-1] & prefix[:, 1:] & _same_segment(batch)
        assert not weights[:, :-1][inner].any()


def _same_segment(batch):
    segments = batch.get(batch_lib.SEGMENT_IDS, np.ones_like(batch[batch_lib.INPUT_TOKENS]))
    return segments[:, :-1] == segments[:, 1:]


@pytest.mark.parametrize("packing", [Windows(), PackDocuments()], ids=lambda packing: type(packing).__name__)
def test_equal_rates_are_equal_tokens_whatever_the_lengths_of_documents(make, packing):
    source = make((objectives.CausalLm(), packing), rates={"long": 1.0, "short": 1.0}, schedule=BatchSchedule(8))
    tokens = dict.fromkeys(source.names, 0)
    for step in range(150):
        locations = source.locate(np.arange(step * 8, step * 8 + 8))
        weights = source.fields(locations)[batch_lib.LOSS_WEIGHTS].sum(axis=1)
        for number, name in enumerate(source.names):
            tokens[name] += weights[locations.sources == number].sum()
    assert tokens["long"] == pytest.approx(tokens["short"], rel=0.03)
    counts = source.token_counts(150)
    assert counts["short"] == pytest.approx(tokens["short"], rel=0.03)
