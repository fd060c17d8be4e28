import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError
from t5x_scale.data.eval_source import EvalSource
from t5x_scale.data.freezing import freeze
from t5x_scale.data.objectives import CausalLm, FillInTheMiddle, MaskedDiffusion
from t5x_scale.data.rows.delivery import Windows
from t5x_scale.data.vocabulary import load_vocabulary


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(2, 200), length=st.integers(1, 40), hosts=st.sampled_from([1, 2]))
def test_every_target_once_in_order(make_store, tmp_path_factory, tokens, length, hosts):
    store = make_store(tmp_path_factory.mktemp("e") / "s", tokens)
    sources = [
        EvalSource("s", store, CausalLm(), length=length, batch_size=4, process_index=index, process_count=hosts)
        for index in range(hosts)
    ]
    targets, inputs = [], []
    for index in range(sources[0].num_batches):
        for source in sources:
            batch = source.batch(index)
            assert batch_lib.check_batch(batch) == (4 // hosts, length)
            counted = batch[batch_lib.LOSS_WEIGHTS] == 1
            targets.append(batch[batch_lib.TARGET_TOKENS][counted])
            inputs.append(batch[batch_lib.INPUT_TOKENS][counted])
    stream = store.tokens(0, tokens)
    np.testing.assert_array_equal(np.concatenate(targets), stream[1:])
    np.testing.assert_array_equal(np.concatenate(inputs), stream[:-1])


@pytest.mark.parametrize("max_batches", [1, 2, 3, 99])
def test_max_batches(make_store, tmp_path, max_batches):
    store = make_store(tmp_path / "s", 100)
    source = EvalSource("s", store, CausalLm(), length=16, batch_size=3, max_batches=max_batches)
    assert source.num_batches == min(max_batches, 3)
    weights = [source.batch(index)[batch_lib.LOSS_WEIGHTS].sum() for index in range(source.num_batches)]
    assert sum(weights) == [48, 96, 99][source.num_batches - 1]
    with pytest.raises(IndexError):
        source.batch(source.num_batches)


def test_whole_rows_only_for_an_objective_of_another_form(make_store, tmp_path):
    class Wide(CausalLm):
        def stride(self, length):
            return length + 1

    source = EvalSource("s", make_store(tmp_path / "s", 100), Wide(), length=9, batch_size=4)
    assert source.num_rows == 10
    source = EvalSource("t", make_store(tmp_path / "t", 99), Wide(), length=9, batch_size=4)
    assert source.num_rows == 9


def test_too_short(make_store, tmp_path):
    class Wide(CausalLm):
        def stride(self, length):
            return length + 1

    with pytest.raises(UserError, match="'s' has 5 tokens"):
        EvalSource("s", make_store(tmp_path / "s", 5), Wide(), length=9, batch_size=4)
    with pytest.raises(UserError, match="does not divide"):
        EvalSource("s", make_store(tmp_path / "t", 5), CausalLm(), length=2, batch_size=4, process_count=3)


@pytest.mark.parametrize("objective", [FillInTheMiddle(rate=1.0), MaskedDiffusion(shifted=True)])
def test_no_padding_where_tokens_move_or_are_seen_from_both_sides(make_store, tmp_path, objective):
    objective = objective.with_vocabulary(load_vocabulary("bytes"))
    tokens = 3 * 16 + 1 + 9
    source = EvalSource("s", make_store(tmp_path / "s", tokens), objective, length=16, batch_size=4)
    assert source.num_rows == 3
    batch = source.batch(0)
    assert not (batch[batch_lib.INPUT_TOKENS][:3] == 0).any()


def test_documents_of_a_pass_can_be_kept_apart(tmp_path):
    documents = [np.array([5, 6, 7]), np.array([8, 9])]
    settings = {"vocabulary_fingerprint": "v", "vocabulary_size": 10, "separator_id": 1}
    store = freeze(documents, tmp_path / "s", source={"task": "s"}, **settings)
    source = EvalSource("s", store, CausalLm(), length=4, batch_size=2, packing=Windows(attend_across_documents=False))
    batch = source.batch(0)
    assert batch[batch_lib.TARGET_TOKENS].tolist() == [[6, 7, 1, 8], [9, 1, 0, 0]]
    assert batch[batch_lib.LOSS_WEIGHTS].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch[batch_lib.SEGMENT_IDS][0].tolist() == [1, 1, 1, 2]
    assert batch[batch_lib.POSITIONS][0].tolist() == [0, 1, 2, 0]
