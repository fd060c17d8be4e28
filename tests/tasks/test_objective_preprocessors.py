import functools

import numpy as np
import pytest

seqio = pytest.importorskip("seqio")
import tensorflow as tf  # noqa: E402

from t5x_scale.core import batch as batch_lib  # noqa: E402
from t5x_scale.core.errors import UserError  # noqa: E402
from t5x_scale.data import objectives  # noqa: E402
from t5x_scale.data.vocabulary import load_vocabulary  # noqa: E402
from tasks.objectives import as_preprocessor, decoder_features  # noqa: E402

LENGTH = 32
VOCABULARY = load_vocabulary("bytes")
DOCUMENTS = [np.random.default_rng(n).integers(8, 264, n) for n in (5, 70, 1, 33, 2, 120, 40)]
DOCUMENTS[1][3] = 0  # A token with id 0 is a token.


def read(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_generator(
        lambda: ({"targets": document} for document in DOCUMENTS),
        output_signature={"targets": tf.TensorSpec([None], tf.int32)},
    )


@pytest.fixture
def make_task():
    names = []

    def make(*preprocessors, features):
        names.append(f"objective_task_{len(names)}")
        source = seqio.FunctionDataSource(read, splits=("train",))
        return seqio.TaskRegistry.add(
            names[-1], source=source, preprocessors=preprocessors, output_features=features, metric_fns=[]
        )

    yield make
    for name in names:
        seqio.TaskRegistry.remove(name)


def rows_of(task, seed=0):
    return list(task.get_dataset(None, "train", shuffle=False, seed=seed).as_numpy_iterator())


@pytest.mark.parametrize("form", ["windows", "documents"])
@pytest.mark.parametrize(
    "objective",
    [
        objectives.CausalLm(),
        objectives.Ul2r(inputs_length=16),
        objectives.MaskedDiffusion(),
    ],
    ids=lambda o: o.name.partition("(")[0],
)
def test_rows_are_batches_and_follow_the_seed(make_task, objective, form):
    if form == "documents" and isinstance(objective, objectives.Ul2r):
        objective = objectives.Ul2r()  # A budget of inputs is of windows.
    features = decoder_features(objective, LENGTH, VOCABULARY, form=form)
    task = make_task(as_preprocessor(objective, LENGTH, VOCABULARY, form=form), features=features)
    rows = rows_of(task)
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    assert set(batch) == set(features)
    assert batch_lib.check_batch(batch) == (len(rows), LENGTH)
    again, other = rows_of(task), rows_of(task, seed=1)
    same = [all((row[name] == twin[name]).all() for name in row) for row, twin in zip(rows, again, strict=True)]
    assert all(same)
    if not isinstance(objective, objectives.CausalLm):
        assert any((row[name] != twin[name]).any() for row, twin in zip(rows, other, strict=False) for name in row)


def test_causal_windows_hold_the_stream_once(make_task):
    objective = objectives.CausalLm()
    task = make_task(
        as_preprocessor(objective, LENGTH, VOCABULARY), features=decoder_features(objective, LENGTH, VOCABULARY)
    )
    rows = rows_of(task)
    stream = np.concatenate([np.append(document, VOCABULARY.eod_id) for document in DOCUMENTS])
    assert len(rows) == len(stream) // LENGTH
    targets = np.concatenate([row["decoder_target_tokens"] for row in rows])
    inputs = np.concatenate([row["decoder_input_tokens"] for row in rows])
    assert targets.tolist() == stream[: len(targets)].tolist()
    assert inputs.tolist() == [VOCABULARY.eod_id, *targets[:-1]]


def test_documents_are_cut_never_shortened(make_task):
    objective = objectives.CausalLm()
    task = make_task(
        as_preprocessor(objective, LENGTH, VOCABULARY, form="documents"),
        features=decoder_features(objective, LENGTH, VOCABULARY, form="documents"),
    )
    rows = rows_of(task)
    real = [row["decoder_target_tokens"][row["decoder_segment_ids"] > 0] for row in rows]
    stream = np.concatenate([np.append(document, VOCABULARY.eod_id) for document in DOCUMENTS])
    assert np.concatenate(real).tolist() == stream.tolist()
    assert {int(row["decoder_loss_weights"].sum()) for row in rows} == {len(part) for part in real}


def test_inputs_and_targets_go_through_seqios_converter(make_task):
    objective = objectives.SpanCorruption(mode_tokens=True)
    passing = functools.partial(seqio.Feature, seqio.PassThroughVocabulary(VOCABULARY.size), add_eos=False)
    task = make_task(
        as_preprocessor(objective, LENGTH, VOCABULARY, output="inputs_targets"),
        features={"inputs": passing(), "targets": passing()},
    )
    rows = rows_of(task)
    stream = np.concatenate([np.append(document, VOCABULARY.eod_id) for document in DOCUMENTS])
    restored = np.concatenate([objectives.restore(row["inputs"], row["targets"], VOCABULARY) for row in rows])
    assert restored.tolist() == stream[: len(restored)].tolist()
    converter = seqio.PrefixLMFeatureConverter(pack=False)
    lengths = {"inputs": LENGTH, "targets": LENGTH}
    converted = converter(task.get_dataset(lengths, "train", shuffle=False, seed=0), lengths).as_numpy_iterator()
    for fields, row in zip(converted, rows, strict=True):
        if 0 not in row["inputs"]:  # SeqIO takes a token with id 0 for padding.
            learnt = fields["decoder_target_tokens"][fields["decoder_loss_weights"] > 0]
            assert learnt.tolist() == row["targets"].tolist()


def test_supervised_examples():
    dataset = tf.data.Dataset.from_tensors({"inputs": [20, 21, 22], "targets": [30, 31]})
    preprocess = as_preprocessor(objectives.Supervised(), 8, VOCABULARY, form="documents")
    [row] = preprocess(dataset).as_numpy_iterator()
    assert row["decoder_input_tokens"].tolist() == [1, 20, 21, 22, 30, 31, 0, 0]
    assert row["decoder_loss_weights"].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    with pytest.raises(tf.errors.OpError, match="a document of 6 tokens is longer than a row of 4"):
        list(as_preprocessor(objectives.Supervised(), 4, VOCABULARY, form="documents")(dataset))


def test_what_cannot_be_is_said_at_once():
    with pytest.raises(UserError, match="did you mean 'windows'"):
        as_preprocessor(objectives.CausalLm(), 8, VOCABULARY, form="window")
    with pytest.raises(UserError, match="output is 'fields'"):
        as_preprocessor(objectives.CausalLm(), 8, VOCABULARY, output="fields")
    with pytest.raises(UserError, match="whole documents"):
        as_preprocessor(objectives.Supervised(), 8, VOCABULARY)
    with pytest.raises(UserError, match="needs 512 sentinels"):
        as_preprocessor(objectives.Ul2r(), 4096, VOCABULARY)
    dataset = tf.data.Dataset.from_tensors({"targets": np.arange(8, 48)})
    diffusion = as_preprocessor(objectives.MaskedDiffusion(), 16, VOCABULARY, output="inputs_targets")
    with pytest.raises(tf.errors.OpError, match="not inputs followed by targets"):
        list(diffusion(dataset))
