import dataclasses
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError
from t5x_scale.data import objectives
from t5x_scale.data.objectives import CausalLm, Example, RowKeys
from t5x_scale.data.rows.packed_delivery import PackDocuments
from t5x_scale.data.token_store import TokenStore, TokenStoreWriter
from t5x_scale.data.vocabulary import load_vocabulary

LENGTH = 16
VOCABULARY = load_vocabulary("stdlib_8k")
SEPARATOR = VOCABULARY.eod_id
DOCUMENT_TOKENS = st.integers(0, 9).filter(lambda token: token != SEPARATOR)


def write(directory, documents, supervised=False, **options):
    with TokenStoreWriter(
        directory,
        source={},
        vocabulary_fingerprint="v",
        vocabulary_size=VOCABULARY.size,
        separator_id=SEPARATOR,
        supervised=supervised,
        **options,
    ) as writer:
        for document in documents:
            writer.add(np.array(document), len(document) // 2 if supervised else 0)
    return TokenStore.open(directory)


def random_documents(seed, number, longest):
    generator = np.random.default_rng(seed)
    return [generator.integers(20, 8000, generator.integers(1, longest)) for _ in range(number)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    directory = tmp_path_factory.mktemp("packed")
    return {
        "a": write(directory / "a", random_documents(0, 150, 40)),
        "b": write(directory / "b", random_documents(1, 60, 12), supervised=True),
    }


def epoch(delivery, name="a", seed=0):
    rows = np.arange(delivery.rows_per_epoch[name])
    return delivery.fields([name], np.zeros_like(rows), rows, RowKeys(seed, rows))


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], name)
        assert left[name].dtype == right[name].dtype


class PieceByPiece(CausalLm):
    """The same objective through the path of every other one."""


@dataclasses.dataclass(frozen=True)
class Choosing(CausalLm):
    """One or two positions of zeros behind each piece, and a random weight and prefix; has everything there is."""

    has_prefix: ClassVar[bool] = True

    def packed_length(self, num_tokens, choices):
        return np.asarray(num_tokens) + 1 + (choices % np.uint64(2)).astype(np.int64)

    def longest_piece(self, length):
        return length - 2

    def example(self, piece, choice, generator):
        made = CausalLm.example(self, piece, choice, generator)
        tail = np.zeros(1 + choice % 2, np.int32)
        weights = np.full(len(made.inputs) + len(tail), generator.random(), np.float32)
        return Example(np.append(made.inputs, tail), np.append(made.targets, tail), weights, len(piece.tokens) // 2)


@settings(max_examples=50, deadline=None)
@given(
    documents=st.lists(st.lists(DOCUMENT_TOKENS, min_size=1, max_size=40), min_size=1, max_size=30),
    fit=st.sampled_from(["best", "first"]),
    general=st.booleans(),
    sharded=st.booleans(),
)
def test_an_epoch_holds_every_token_once_behind_its_own_document(tmp_path_factory, documents, fit, general, sharded):
    store = write(tmp_path_factory.mktemp("epoch") / "s", documents, sharded=sharded)
    objective = PieceByPiece() if general else CausalLm()
    delivery = PackDocuments(fit=fit).make({"a": store}, objective, LENGTH)
    fields = epoch(delivery)
    assert batch_lib.check_batch(fields) == (delivery.rows_per_epoch["a"], LENGTH)
    stream = np.append(SEPARATOR, store.tokens(0, store.num_tokens))
    seen = np.zeros(store.num_tokens, int)
    for row in range(delivery.rows_per_epoch["a"]):
        begin = 0
        for segment, (first, stop) in enumerate(delivery.spans("a", row), start=1):
            seen[first:stop] += 1
            # One document, or a part of one.
            assert len(set(store.documents_of(np.array([first, stop - 1])).tolist())) == 1
            end = begin + stop - first
            for name, expected in {
                batch_lib.INPUT_TOKENS: stream[first:stop],
                batch_lib.TARGET_TOKENS: stream[first + 1 : stop + 1],
                batch_lib.LOSS_WEIGHTS: 1.0,
                batch_lib.SEGMENT_IDS: segment,
                batch_lib.POSITIONS: np.arange(stop - first),
            }.items():
                np.testing.assert_array_equal(fields[name][row, begin:end], expected, name)
            begin = end
        for name in fields:
            assert not fields[name][row, begin:].any(), name
    assert (seen == 1).all()
    assert fields[batch_lib.LOSS_WEIGHTS].sum() == store.num_tokens
    # The exact figures, not estimates.
    assert delivery.tokens_per_row["a"] == pytest.approx(store.num_tokens / len(fields[batch_lib.LOSS_WEIGHTS]))
    statistics = delivery.statistics()["a"]
    assert statistics["fill"] == pytest.approx(np.mean(fields[batch_lib.SEGMENT_IDS] > 0))
    assert statistics["fill"] + statistics["padding"] == pytest.approx(1)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("name", ["a", "b"])
def test_the_fast_path_is_the_general_one(stores, across, name):
    settings_ = PackDocuments(attend_across_documents=across)
    fast, slow = (epoch(settings_.make(stores, kind(), LENGTH), name) for kind in (CausalLm, PieceByPiece))
    assert_same(fast, slow)
    assert (batch_lib.SEGMENT_IDS in fast) == (batch_lib.POSITIONS in fast) == (not across)


@pytest.mark.parametrize("objective", [CausalLm(), PieceByPiece(), Choosing()], ids=["fast", "general", "choosing"])
def test_a_row_is_the_same_in_any_company(stores, objective):
    delivery = PackDocuments().make(stores, objective, LENGTH, seed=3)
    generator = np.random.default_rng(1)
    sources = generator.integers(0, 2, 20)
    indices = np.array([generator.integers(delivery.rows_per_epoch["ba"[source]]) for source in sources])
    keys = RowKeys(7, np.arange(100, 120))
    together = delivery.fields(["b", "a"], sources, indices, keys)
    batch_lib.check_batch(together)
    for row in range(20):
        one = np.array([row])
        alone = delivery.fields(["b", "a"], sources[one], indices[one], keys.take(one))
        assert_same({name: values[row] for name, values in together.items()}, {k: v[0] for k, v in alone.items()})
    if isinstance(objective, Choosing):
        other = delivery.fields(["b", "a"], sources, indices, RowKeys(8, np.arange(100, 120)))
        assert not np.array_equal(other[batch_lib.LOSS_WEIGHTS], together[batch_lib.LOSS_WEIGHTS])
        # What has no randomness but the plan's stays.
        np.testing.assert_array_equal(other[batch_lib.INPUT_TOKENS], together[batch_lib.INPUT_TOKENS])


def test_sequences_of_a_row_draw_one_after_another(stores):
    delivery = PackDocuments().make({"a": stores["a"]}, Choosing(), LENGTH)
    fields = epoch(delivery, seed=5)
    segments, weights = fields[batch_lib.SEGMENT_IDS], fields[batch_lib.LOSS_WEIGHTS]
    row = int(np.argmax(segments.max(axis=1)))
    generator = RowKeys(5, np.array([row]))[0]
    drawn = [np.float32(generator.random()) for _ in range(segments[row].max())]
    assert len(drawn) > 1
    for segment, weight in enumerate(drawn, start=1):
        assert set(weights[row, segments[row] == segment]) == {weight}


def test_the_prefix_is_each_segments_own(stores):
    fields = epoch(PackDocuments().make({"a": stores["a"]}, Choosing(), LENGTH))
    for row in range(5):
        for segment in range(1, fields[batch_lib.SEGMENT_IDS][row].max() + 1):
            prefix = fields[batch_lib.PREFIX][row, fields[batch_lib.SEGMENT_IDS][row] == segment]
            assert (np.diff(prefix) <= 0).all()
            assert len(prefix) // 2 - 1 <= prefix.sum() <= len(prefix) // 2


OBJECTIVES = [
    CausalLm(),
    objectives.PrefixLm(),
    objectives.SpanCorruption(),
    objectives.Ul2(),
    objectives.Ul2r(),
    objectives.FillInTheMiddle(),
    objectives.MaskedDiffusion(),
    objectives.MaskedDiffusion(shifted=True),
    objectives.Supervised(),
    objectives.Supervised(prefix_bidirectional=True),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("length", [32, 128])
def test_every_objective_packs_what_it_announced(stores, objective, length):
    objective = objective.with_vocabulary(VOCABULARY)
    delivery = PackDocuments().make(stores, objective, length, seed=2)
    for name in stores:
        fields = epoch(delivery, name)
        assert batch_lib.check_batch(fields) == (delivery.rows_per_epoch[name], length)
        assert (batch_lib.PREFIX in fields) == objective.has_prefix
        segments = fields[batch_lib.SEGMENT_IDS]
        assert delivery.tokens_per_row[name] == pytest.approx(np.sum(segments > 0) / len(segments))
        assert segments.max() == max(len(delivery.spans(name, row)) for row in range(len(segments)))
        assert not fields[batch_lib.LOSS_WEIGHTS][segments == 0].any()
        assert fields[batch_lib.LOSS_WEIGHTS].any()
        statistics = delivery.statistics()[name]
        left_out = statistics["documents_left_out"] + statistics["pieces_left_out"]
        spans = [span for row in range(len(segments)) for span in delivery.spans(name, row)]
        assert len(spans) == len(set(spans)) == statistics["pieces"]
        assert left_out or sum(stop - first for first, stop in spans) == stores[name].num_tokens


def test_targets_of_supervised_documents_alone_are_learnt(stores):
    objective = objectives.Supervised().with_vocabulary(VOCABULARY)
    fields = epoch(PackDocuments().make(stores, objective, LENGTH), "b")
    store = stores["b"]
    heads = store.target_starts(0, store.num_documents)
    lengths = np.diff(np.append(store.document_starts(0, store.num_documents), store.num_tokens))
    assert fields[batch_lib.LOSS_WEIGHTS].sum() == np.sum(lengths - heads)


def test_long_documents_are_split_where_the_objective_can(stores):
    store = {"a": stores["a"]}
    statistics = {
        policy: PackDocuments(long_documents=policy).make(store, CausalLm(), LENGTH).statistics()["a"]
        for policy in (None, "split", "drop")
    }
    assert statistics[None] == statistics["split"]
    assert statistics["split"]["documents_split"] == statistics["drop"]["documents_left_out"] > 0
    assert statistics["drop"]["positions"] + statistics["drop"]["tokens_left_out"] == stores["a"].num_tokens
    whole = PackDocuments().make(store, objectives.Supervised().with_vocabulary(VOCABULARY), LENGTH).statistics()["a"]
    assert whole["documents_left_out"] == statistics["drop"]["documents_left_out"]


@pytest.mark.parametrize(
    ("config", "objective", "message"),
    [
        (PackDocuments(fit="bets"), CausalLm(), r"PackDocuments.fit is 'bets' \(did you mean 'best'\?\)"),
        (PackDocuments(long_documents="dorp"), CausalLm(), r"long_documents is 'dorp' \(did you mean 'drop'\?\)"),
        (
            PackDocuments(long_documents="split"),
            objectives.Supervised(),
            "needs whole documents: set PackDocuments.long",
        ),
        (PackDocuments(attend_across_documents=True), Choosing(), "PackDocuments.attend_across_documents = False"),
    ],
)
def test_settings_that_cannot_be(stores, config, objective, message):
    with pytest.raises(UserError, match=message) as error:
        config.make(stores, objective, LENGTH)
    assert "\n" not in str(error.value)


def test_an_objective_that_does_not_keep_its_word(stores):
    class Short(CausalLm):
        def packed_length(self, num_tokens, choices):
            return np.maximum(num_tokens - 1, 1)

    with pytest.raises(ValueError, match=r"causal_lm makes (\d+) positions of a piece of \1 tokens, and said \d"):
        epoch(PackDocuments().make({"b": stores["b"]}, Short(), LENGTH), "b")


def test_what_the_rows_depend_on_is_in_the_parts(stores, tmp_path):
    made = [
        PackDocuments(**options).make(stores, CausalLm(), length, seed=seed).parts
        for options, length, seed in [
            ({}, LENGTH, 0),
            ({"fit": "first"}, LENGTH, 0),
            ({"attend_across_documents": True}, LENGTH, 0),
            ({"long_documents": "drop"}, LENGTH, 0),
            ({}, LENGTH, 1),
            ({}, LENGTH + 1, 0),
        ]
    ]
    assert len({str(parts) for parts in made}) == len(made)
    # Written out or not; and of the stores, which are compared by themselves, nothing: a run may take on another.
    other = {"c": write(tmp_path / "s", random_documents(5, 30, 20)), "a": stores["a"]}
    same = PackDocuments(long_documents="split").make(other, CausalLm(), LENGTH)
    assert same.parts == made[0]


def test_rows_outside_a_pass(stores):
    delivery = PackDocuments().make(stores, CausalLm(), LENGTH)
    for index in (-1, delivery.rows_per_epoch["a"]):
        with pytest.raises(ValueError, match="of 'a', which has"):
            delivery.spans("a", index)
