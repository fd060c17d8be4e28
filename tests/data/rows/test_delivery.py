import dataclasses
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError
from t5x_scale.data.freezing import freeze
from t5x_scale.data.objectives import CausalLm, RowKeys
from t5x_scale.data.rows.delivery import Windows, separate_documents

LENGTH = 16
SEPARATOR = 1


@pytest.fixture(scope="module")
def stores(make_store, tmp_path_factory):
    directory = tmp_path_factory.mktemp("stores")
    return {"long": make_store(directory / "long", 20_000), "short": make_store(directory / "short", 5_000)}


@pytest.fixture(scope="module")
def documents_store(tmp_path_factory):
    """Documents of 0 to 30 tokens beside the separator; token = 2 + number of the document; ids 0 in between."""
    generator = np.random.default_rng(5)
    documents = [np.full(size, 2 + number) for number, size in enumerate(generator.integers(1, 31, 200))]
    for document in documents[::3]:
        document[0] = 0
    return freeze(
        documents,
        tmp_path_factory.mktemp("documents") / "store",
        source={"task": "documents"},
        vocabulary_fingerprint="v",
        vocabulary_size=1000,
        separator_id=SEPARATOR,
    )


@dataclasses.dataclass(frozen=True)
class Moving(CausalLm):
    keeps_order: ClassVar[bool] = False


def test_rows_are_windows_of_the_sources_asked_for(stores):
    delivery = Windows().make(stores, CausalLm(), LENGTH)
    sources, indices = np.array([1, 0, 1]), np.array([3, 0, delivery.rows_per_epoch["short"] - 1])
    fields = delivery.fields(["long", "short"], sources, indices, RowKeys(0, np.arange(3)))
    assert batch_lib.check_batch(fields) == (3, LENGTH)
    assert set(fields) == set(batch_lib.REQUIRED)
    for row, (name, index) in enumerate([("short", 3), ("long", 0), ("short", indices[2])]):
        ((first, stop),) = delivery.spans(name, index)
        raw = stores[name].tokens(first, stop)
        np.testing.assert_array_equal(fields[batch_lib.INPUT_TOKENS][row], raw[:-1])
        np.testing.assert_array_equal(fields[batch_lib.TARGET_TOKENS][row], raw[1:])


def test_windows_say_what_they_are(stores):
    delivery = Windows().make(stores, CausalLm(), LENGTH)
    assert delivery.rows_per_epoch == {"long": (20_000 - 1) // LENGTH, "short": (5_000 - 1) // LENGTH}
    assert delivery.tokens_per_row == {"long": 16.0, "short": 16.0}
    left_over = 5_000 - 312 * 16 - 1
    assert delivery.statistics()["short"] == {
        "fill": 1.0,
        "raw_tokens_used": 1.0,
        "rows": 312,
        "tokens_left_over": left_over,
    }
    assert delivery.parts != Windows(attend_across_documents=False).make(stores, CausalLm(), LENGTH).parts
    with pytest.raises(ValueError, match="row 312 of 'short'"):
        delivery.spans("short", 312)


def test_a_source_shorter_than_a_row(stores):
    with pytest.raises(UserError, match="'short' has 5000 tokens, fewer than the 6001 of one row: use a shorter"):
        Windows().make(stores, CausalLm(), 6000)


def test_documents_cannot_be_kept_apart_once_they_moved(stores):
    assert Windows().make(stores, Moving(), LENGTH)
    with pytest.raises(UserError, match=r"causal_lm moves tokens.*PackDocuments") as error:
        Windows(attend_across_documents=False).make(stores, Moving(), LENGTH)
    assert "\n" not in str(error.value)


def test_no_document_sees_another(documents_store):
    store = documents_store
    delivery = Windows(attend_across_documents=False).make({"a": store}, CausalLm(), LENGTH)
    rows = np.arange(delivery.rows_per_epoch["a"])
    fields = delivery.fields(["a"], np.zeros_like(rows), rows, RowKeys(0, rows))
    assert batch_lib.check_batch(fields) == (len(rows), LENGTH)
    segments, positions = fields[batch_lib.SEGMENT_IDS], fields[batch_lib.POSITIONS]
    for row in rows:
        first = row * LENGTH
        documents = store.documents_of(np.arange(first, first + LENGTH + 1))
        for query in range(LENGTH):
            seen = [key for key in range(query + 1) if segments[row, key] == segments[row, query]]
            assert positions[row, query] == query - seen[0] == len(seen) - 1
            # The target's document, all of it that the window holds, and beside it nothing but the separator before it.
            own = documents[query + 1]
            inputs = fields[batch_lib.INPUT_TOKENS][row, seen]
            foreign = documents[seen] != own
            assert not foreign[1:].any()
            assert not foreign[0] or inputs[0] == SEPARATOR
            assert np.sum(~foreign) == np.sum(documents[: query + 1] == own)


@settings(max_examples=100, deadline=None)
@given(
    st_numpy.arrays(np.int32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.integers(0, 3)),
    st.integers(0, 3),
)
def test_documents_apart_position_by_position(tokens, separator):
    fields = separate_documents(tokens, np.full(len(tokens), separator))
    for row, segments, positions in zip(
        tokens, fields[batch_lib.SEGMENT_IDS], fields[batch_lib.POSITIONS], strict=True
    ):
        segment, position = 1, 0
        for index, token in enumerate(row):
            assert (segments[index], positions[index]) == (segment, position)
            segment, position = (segment + 1, 0) if token == separator else (segment, position + 1)


def test_each_row_is_cut_at_its_own_separator():
    tokens = np.array([[5, 1, 5, 2, 5], [5, 1, 5, 2, 5]], np.int32)
    fields = separate_documents(tokens, np.array([1, 2]))
    np.testing.assert_array_equal(fields[batch_lib.SEGMENT_IDS], [[1, 1, 2, 2, 2], [1, 1, 1, 1, 2]])
    np.testing.assert_array_equal(fields[batch_lib.POSITIONS], [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]])
