import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import batch as batch_lib
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.batch_source import BatchSource
from t5x_scale.data.inspection import describe_mixture, describe_step, step_documents
from t5x_scale.data.mixtures.mixture_schedule import RatePlan
from t5x_scale.data.objectives import CausalLm
from t5x_scale.data.rows.packed_delivery import PackDocuments
from t5x_scale.data.vocabulary import load_vocabulary

BYTES = load_vocabulary("bytes")
PLAN = RatePlan(((0, {"sums": 1.0}), (4, {"sums": 0.25, "words": 0.75})))
SKIP = ((20, 26), (70, 90))


@pytest.fixture(scope="module")
def stores(words, sums):
    return {"words": words, "sums": sums}


def make_source(stores, batch_size=8, skip=SKIP, **options):
    objective = CausalLm().with_vocabulary(BYTES)
    schedule = BatchSchedule(batch_size)
    return BatchSource(stores, PLAN, schedule, objective, length=32, seed=3, max_epochs=None, skip=skip, **options)


def test_documents_are_those_of_the_batch(stores):
    source = make_source(stores)
    for step in (0, 3, 9):
        batch = source.batch(step)
        for origin in step_documents(source, step):
            store, tokens = stores[origin.source], []
            for part in origin.parts:
                start, stop = store.document_span(part.document)
                assert stop - start == part.size
                assert start + part.first == part.position
                tokens.append(store.tokens(part.position, part.position + part.stop - part.first))
            tokens = np.concatenate(tokens)
            np.testing.assert_array_equal(tokens[:-1], batch[batch_lib.INPUT_TOKENS][origin.row])
            np.testing.assert_array_equal(tokens[1:], batch[batch_lib.TARGET_TOKENS][origin.row])


def test_packed_documents_are_whole(stores):
    objective = CausalLm().with_vocabulary(BYTES)
    delivery = PackDocuments().make(stores, objective, 512)
    source = BatchSource(
        stores, PLAN, BatchSchedule(4), objective, length=512, seed=0, delivery=delivery, max_epochs=None
    )
    batch = source.batch(5)
    for origin in step_documents(source, 5):
        assert all((part.first, part.stop) == (0, part.size) for part in origin.parts)
        segments = batch[batch_lib.SEGMENT_IDS][origin.row]
        assert segments.max() == len(origin.parts)
        assert np.count_nonzero(segments) == sum(part.size for part in origin.parts)


def test_the_text_of_a_step(stores):
    source = make_source(stores)
    text = describe_step(source, 6, BYTES, show=5, characters=12)
    lines = text.splitlines()
    assert lines[0] == "step 6: 8 rows of 32 positions"
    assert lines[-1].startswith("3 more rows")
    # Six rows were jumped over before step 6.
    rows = [int(number) for number in re.findall(r"global row (\d+)", text)]
    assert rows == [54, 55, 56, 57, 58]
    for origin, line in zip(step_documents(source, 6, [0]), lines[1:2], strict=True):
        assert f"{origin.source}, epoch {origin.epoch}, row {origin.index} of" in line
    assert re.search(r"  document \d+, tokens \d+ to \d+ of \d+: ", text)


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 15), length=st.integers(1, 12))
def test_the_mixture_of_steps_is_counted(stores, first, length):
    source = make_source(stores)
    text = describe_mixture(source, first, first + length)
    shown = {name: int(rows) for name, rows in re.findall(r"^(\w+) +([\d,]+)  ", text, flags=re.M)}
    counted = dict.fromkeys(("sums", "words"), 0)
    for step in range(first, first + length):
        for origin in step_documents(source, step):
            counted[origin.source] += 1
    assert shown == {**counted, "all": 8 * length}


def test_the_mixture_in_tokens_and_epochs(stores):
    source = make_source(stores, skip=())
    lines = describe_mixture(source, 0, 8).splitlines()
    assert lines[0] == "steps 0 to 8: global rows 0 to 64"
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert rows["sums"][:3] == ["40", "1,280", "0.6250"]
    assert rows["sums"][3:] == ["0.000", "to", f"{40 / source.rows_per_epoch['sums']:.3f}"]
    assert rows["words"][:3] == ["24", "768", "0.3750"]


def test_a_run_whose_batch_size_changed(stores):
    first = make_source(stores)
    state = first.state(5)
    resumed = make_source(stores, batch_size=4).resumed(state, 5)
    for step in (2, 4):
        assert list(step_documents(resumed, step)) == list(step_documents(first, step))
        for name, field in first.batch(step).items():
            np.testing.assert_array_equal(resumed.batch(step)[name], field)
    assert len(list(step_documents(resumed, 5))) == 4
    # 44 rows, and the six that were jumped over.
    assert "global rows 0 to 50" in describe_mixture(resumed, 0, 6)
