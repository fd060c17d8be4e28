"""Live streams of SeqIO tasks and mixtures."""

import functools
import itertools

import numpy as np
import pytest
from live_streams import LiveConfig, assert_same

from t5x_scale.core.errors import UserError
from t5x_scale.data import seqio_source
from t5x_scale.data.live import make_live_pipeline, open_live_eval_stores
from t5x_scale.data.objectives import Supervised
from t5x_scale.data.rows.packed_delivery import PackDocuments
from t5x_scale.data.seqio_source import SeqioVocabulary, iterate_documents
from t5x_scale.data.vocabulary import load_vocabulary

seqio, tf = seqio_source.seqio, seqio_source.tf

TEXT = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)
BYTES = load_vocabulary("bytes")
SHIPPED_8K = load_vocabulary("stdlib_8k")
LONG = [f"document {number} " * (1 + number % 17) + "|" for number in range(60)]
SHORT = [f"{number};" for number in range(400)]
CALLS = itertools.count()


def from_columns(columns, splits=("train", "validation")):
    def make_dataset(split, shuffle_files):
        return tf.data.Dataset.from_tensor_slices(columns)

    return seqio.FunctionDataSource(make_dataset, splits=splits)


def from_generator(make):
    """As many people write sources: no seed, and nothing that TensorFlow could save."""

    def make_dataset(split, shuffle_files):
        return tf.data.Dataset.from_generator(make, output_signature={"targets": tf.TensorSpec([], tf.string)})

    return seqio.FunctionDataSource(make_dataset, splits=("train",))


@seqio.map_over_dataset(num_seeds=1)
def add_number(example, seed):
    number = tf.random.stateless_uniform([], seed, maxval=10**6, dtype=tf.int32)
    return {"targets": tf.strings.join([example["targets"], tf.strings.as_string(number)])}


def needs_a_length(dataset, sequence_length):
    return dataset.take(sequence_length["targets"])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Registers the tasks of this file."""
    folder = tmp_path_factory.mktemp("lines")
    for file in range(4):
        (folder / f"{file}.txt").write_text("".join(f"file {file} line {line}\n" for line in range(50)))
    lines = seqio.TextLineDataSource({"train": f"{folder}/*.txt"})
    ids = seqio.Feature(SeqioVocabulary(SHIPPED_8K), add_eos=True)
    tokenise = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    rename = functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"})
    split_line = [lambda dataset: dataset.map(lambda line: {"text": line}), rename]
    add = functools.partial(seqio.TaskRegistry.add, metric_fns=[])
    add("live_long", from_columns({"targets": LONG}), preprocessors=[], output_features={"targets": TEXT})
    add("live_short", from_columns({"targets": SHORT}, ["train"]), preprocessors=[], output_features={"targets": TEXT})
    add("live_t5", from_columns({"targets": LONG}), preprocessors=tokenise, output_features={"targets": ids})
    add("live_lines", lines, preprocessors=split_line, output_features={"targets": TEXT})
    add("live_random", from_columns({"targets": LONG}), preprocessors=[add_number], output_features={"targets": TEXT})
    add(
        "live_length",
        from_columns({"targets": LONG}),
        preprocessors=[needs_a_length],
        output_features={"targets": TEXT},
    )
    pairs = {"inputs": [f"{n}+{n}=" for n in range(99)], "targets": [str(2 * n) for n in range(99)]}
    add("live_pairs", from_columns(pairs), preprocessors=[], output_features={"inputs": TEXT, "targets": TEXT})
    steady = from_generator(lambda: ({"targets": text} for text in LONG))
    add("live_generator", steady, preprocessors=[], output_features={"targets": TEXT})
    unsteady = from_generator(lambda: ({"targets": f"{next(CALLS)} {text}"} for text in LONG))
    add("live_unsteady", unsteady, preprocessors=[], output_features={"targets": TEXT})
    seqio.MixtureRegistry.add("live_inner", [("live_short", 1.0)])
    own = functools.partial(tf.data.Dataset.sample_from_datasets, stop_on_empty_dataset=False)
    seqio.MixtureRegistry.add("live_own", [("live_long", 1.0), ("live_short", 3.0)], sample_fn=own)
    seqio.MixtureRegistry.add("live_mixture", [("live_long", 1.0), ("live_inner", 3.0)])
    names = [name for name in seqio.TaskRegistry.names() if name.startswith("live_")]
    yield
    for name in ("live_mixture", "live_inner", "live_own"):
        seqio.MixtureRegistry.remove(name)
    for name in names:
        seqio.TaskRegistry.remove(name)


@pytest.fixture
def live(tasks):
    def make(name, *, process_index=0, process_count=1, **settings):
        given = {"vocabulary": "bytes", "task_feature_lengths": {"targets": 32}, "max_epochs": None, **settings}
        config = LiveConfig(name, batch_size=8, **given)
        return make_live_pipeline(
            config, default_store_dir="/stores", process_index=process_index, process_count=process_count
        )

    return make


ALL = {
    "live_long": {},
    "live_t5": {"vocabulary": "stdlib_8k"},
    "live_lines": {"live_shards": 4},
    "live_generator": {"live_shards": 2, "live_shuffle_buffer": 10},
    "live_random": {"packing": PackDocuments()},
    "live_mixture": {"live_shards": 2},
    "live_pairs": {"packing": PackDocuments(), "objective": Supervised()},
}


@pytest.mark.parametrize("name", ALL)
def test_hosts_and_resumes(live, name):
    one, steps = live(name, **ALL[name]), 6
    batches = [one.batch(step) for step in range(steps)]
    hosts = [live(name, process_index=index, process_count=2, **ALL[name]) for index in range(2)]
    for step, batch in enumerate(batches):
        parts = [host.batch(step) for host in hosts]
        assert_same({key: np.concatenate([part[key] for part in parts]) for key in batch}, batch)
    for step in (1, 4):
        resumed = live(name, **ALL[name]).resumed(one.state(step), step)
        assert_same(resumed.batch(step), batches[step])


@pytest.mark.parametrize(("name", "vocabulary"), [("live_long", BYTES), ("live_t5", SHIPPED_8K)])
def test_the_stream_is_that_of_the_token_store(live, name, vocabulary):
    source = live(name, vocabulary=vocabulary.spec)
    documents = iterate_documents(name, "train", vocabulary)
    expected = np.concatenate([np.append(ids, vocabulary.eod_id) for ids in documents])
    tokens = np.concatenate([source.batch(step)["decoder_input_tokens"].ravel() for step in range(4)])
    count = min(len(tokens), len(expected))
    assert count > 500
    np.testing.assert_array_equal(tokens[:count], expected[:count])


def test_shards_read_files_of_their_own(live):
    batch = live("live_lines", live_shards=4).batch(0)["decoder_input_tokens"]
    for shard in range(4):
        text = BYTES.decode(batch[2 * shard : 2 * shard + 2].ravel())
        assert text.startswith(f"file {shard} line 0")
        assert not any(f"file {other}" in text for other in range(4) if other != shard)


def test_random_preprocessors_draw_anew_every_epoch(live):
    source = live("live_random", max_epochs=2)
    size = len("".join(LONG)) + 7 * len(LONG)
    text = "".join(BYTES.decode(source.batch(step)["decoder_input_tokens"].ravel()) for step in range(size // 256 + 4))
    first, second = text.split("document 0 ")[1:3]
    assert first.split("document")[0] != second.split("document")[0]


def test_a_mixture_counts_examples(live):
    source = live("live_mixture")
    text = "".join(BYTES.decode(source.batch(step)["decoder_target_tokens"].ravel()) for step in range(60))
    long, short = text.count("|"), text.count(";")
    assert long / (long + short) == pytest.approx(0.25, abs=0.06)


def test_supervised_loss_is_on_targets(live):
    batch = live("live_pairs", packing=PackDocuments(), objective=Supervised()).batch(0)
    learnt = batch["decoder_target_tokens"][batch["decoder_loss_weights"] > 0]
    text = BYTES.decode(learnt[learnt != BYTES.eod_id])
    assert text.isdecimal()
    assert "=" in BYTES.decode(batch["decoder_input_tokens"].ravel())


def test_a_generator_that_is_not_repeatable_is_refused(live):
    source = live("live_unsteady")
    for step in range(3):
        source.batch(step)
    resumed = live("live_unsteady").resumed(source.state(3), 3)
    with pytest.raises(UserError, match=r"'live_unsteady' does not give the same examples again.*token store"):
        resumed.batch(3)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("live_lon", {}, "no task or mixture 'live_lon'.*live_long"),
        ("live_short", {"split": "validation"}, "no split 'validation'"),
        ("live_inner", {"split": "validation"}, "no task of the mixture 'live_inner' has a split 'validation'"),
        ("live_t5", {}, "which is not the run's vocabulary 'bytes'"),
        ("live_length", {}, "cannot read task 'live_length'.*sequence_length"),
        ("live_long", {"live_shards": 8, "max_epochs": 1}, "shard 0 of 8 of 'live_long' has 8 examples"),
    ],
)
def test_bad_input(live, name, settings, message):
    with pytest.raises(UserError, match=message):
        [live(name, **settings).batch(step) for step in (0, 300)]


def test_evaluation(tasks, caplog):
    config = LiveConfig("live_mixture", "bytes", {"targets": 32}, 8)
    stores = open_live_eval_stores(config, split="validation")
    assert list(stores) == ["live_long"]
    assert stores["live_long"].num_documents == len(LONG)
    assert "without a split 'validation' are left out: live_short" in caplog.text


def test_a_mixture_that_samples_by_itself_is_said(live, caplog):
    live("live_own").batch(0)
    assert "'live_own' has a sample_fn of its own" in caplog.text
    caplog.clear()
    live("live_mixture").batch(0)
    assert "sample_fn" not in caplog.text
