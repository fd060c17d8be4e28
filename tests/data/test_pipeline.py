import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.objectives import CausalLm, PrefixLm
from t5x_scale.data.pipeline import DataConfig, make_eval_sources, make_pipeline
from t5x_scale.data.vocabulary import load_vocabulary


@pytest.fixture
def text(tmp_path):
    (tmp_path / "book.txt").write_text("".join(f"This is line number {i}.\n" for i in range(2000)))
    return f"text:{tmp_path}/book.txt"


def make_config(source, **options):
    return DataConfig(
        **{
            "mixture_or_task_name": source,
            "vocabulary": "bytes",
            "task_feature_lengths": {"targets": 32},
            "batch_size": 4,
            **options,
        }
    )


def test_trains_on_text_files(tmp_path, text):
    source = make_pipeline(make_config(text), default_store_dir=tmp_path / "stores")
    batch = source.batch(0)
    assert batch_lib.check_batch(batch) == (4, 32)
    vocabulary = load_vocabulary("bytes")
    book = pathlib.Path(text.removeprefix("text:")).read_text()
    for row in batch[batch_lib.TARGET_TOKENS]:
        assert vocabulary.decode(row.tolist()) in book
    again = make_pipeline(make_config(text), default_store_dir=tmp_path / "stores")
    np.testing.assert_array_equal(again.batch(0)[batch_lib.TARGET_TOKENS], batch[batch_lib.TARGET_TOKENS])


def test_evaluates_what_was_held_out(tmp_path, text):
    config = make_config(text, batch_size=BatchSchedule(((0, 2), (9, 6))))
    sources = make_eval_sources(config, default_store_dir=tmp_path / "stores")
    (source,) = sources.values()
    assert list(sources) == [text]
    assert source.batch(0)[batch_lib.INPUT_TOKENS].shape == (6, 32)
    train = make_pipeline(config, default_store_dir=tmp_path / "stores")
    total = train.stores[text].num_tokens + source.store.num_tokens
    assert total == os.path.getsize(text.removeprefix("text:")) + 2
    small = make_eval_sources(config, default_store_dir=tmp_path / "stores", batch_size=2, max_batches=1)[text]
    assert small.num_batches == 1
    assert small.batch(0)[batch_lib.LOSS_WEIGHTS].sum() == 64


def test_rates_name_the_sources(tmp_path, text):
    (tmp_path / "other.txt").write_text("other " * 9000)
    other = f"text:{tmp_path}/other.txt"
    by_rates = make_config("unused", mixture_rates={text: 3, other: 1}, max_epochs=None)
    source = make_pipeline(by_rates, default_store_dir=tmp_path / "stores")
    counts = source.token_counts(100)
    assert counts[text] == 3 * counts[other] > 0
    by_name = make_config({text: 3, other: 1}, max_epochs=None)
    assert make_pipeline(by_name, default_store_dir=tmp_path / "stores").fingerprint == source.fingerprint


def test_a_store_of_ones_own_place(tmp_path, text):
    config = make_config(text, store_dir=str(tmp_path / "mine"))
    source = make_pipeline(config, default_store_dir=tmp_path / "run")
    assert source.stores[text].directory.parent.name == "mine"
    assert not (tmp_path / "run").exists()


def test_each_vocabulary_has_its_own_store(tmp_path, text):
    make_pipeline(make_config(text), default_store_dir=tmp_path / "stores")
    make_pipeline(make_config(text, vocabulary="stdlib_8k"), default_store_dir=tmp_path / "stores")
    assert len([name for name in os.listdir(tmp_path / "stores") if not name.startswith(".")]) == 2


def test_edited_text_is_noticed(tmp_path, text):
    make_pipeline(make_config(text), default_store_dir=tmp_path / "stores")
    (tmp_path / "book.txt").write_text("something else entirely " * 1000)
    with pytest.raises(UserError, match=r"changed since their token store .* was frozen"):
        make_pipeline(make_config(text), default_store_dir=tmp_path / "stores")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_feature_lengths": {}}, "TASK_FEATURE_LENGTHS must be"),
        ({"task_feature_lengths": {"targets": 0}}, "TASK_FEATURE_LENGTHS must be"),
        ({"task_feature_lengths": {"target": 8}}, r"'target' \(did you mean 'targets'\?\)"),
        ({"batch_size": 0}, "at least one row"),
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"max_epochs": "2"}, "max_epochs is '2'"),
        ({"vocabulary": "bites"}, "unknown vocabulary 'bites'"),
        ({"split": "trian"}, "did you mean 'train'"),
        ({"mixture_rates": {"text:nowhere/*.txt": 1}}, r"no file matches 'nowhere"),
        ({"mixture_rates": {"text:nowhere/*.txt": 0}}, "a rate is a positive number"),
        ({"mixture_rates": {}}, "the mixture names no source"),
        ({"task_feature_lengths": {"targets": 10**6}}, "fewer than the 1000001 of one row"),
        ({"skip_rows": [(5, 5)]}, "holds no rows"),
    ],
)
def test_bad_configurations(tmp_path, text, options, message):
    with pytest.raises(UserError, match=message):
        make_pipeline(make_config(text, **options), default_store_dir=tmp_path / "stores")


def test_a_store_directory_that_cannot_be_written(tmp_path, text):
    with pytest.raises(UserError, match="cannot write to the directory"):
        make_pipeline(make_config(text), default_store_dir=tmp_path / "book.txt" / "stores")


def test_text_needs_no_tensorflow(tmp_path, text):
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'seqio', 'gin', 'flax'): sys.modules[name] = None\n"
        "from t5x_scale.data.pipeline import DataConfig, make_pipeline\n"
        "config = DataConfig(sys.argv[1], 'bytes', {'targets': 32}, 4)\n"
        "source = make_pipeline(config, default_store_dir=sys.argv[2])\n"
        "assert source.batch(3)['decoder_input_tokens'].shape == (4, 32)\n"
    )
    subprocess.run([sys.executable, "-c", code, text, os.fspath(tmp_path / "stores")], check=True)


def test_batches_are_skipped_by_number_whatever_their_sizes(tmp_path, text):
    ramp = BatchSchedule(((0, 2), (3, 4)))
    config = make_config(text, batch_size=ramp, max_epochs=None, skip_batches=[(2, 5)], skip_rows=[(20, 22)])
    assert config.skipped == ((4, 14), (20, 22))
    plain = make_pipeline(make_config(text, batch_size=ramp, max_epochs=None), default_store_dir=tmp_path)
    skipping = make_pipeline(config, default_store_dir=tmp_path)
    for name, field in skipping.batch(2).items():
        np.testing.assert_array_equal(field, plain.batch(5)[name][:2])


def test_evaluates_with_several_objectives_of_a_kind(tmp_path, text):
    objectives = (PrefixLm(split=0.25), CausalLm(), PrefixLm(split=0.75), PrefixLm())
    sources = make_eval_sources(make_config(text, eval_objectives=objectives), default_store_dir=tmp_path / "s")
    kinds = ["", ".prefix_lm", ".causal_lm", ".prefix_lm_2", ".prefix_lm_3"]
    assert [name.removeprefix(text) for name in sources] == kinds


def test_evaluates_with_further_objectives(tmp_path, text):
    config = make_config(text, objective=PrefixLm(), eval_objectives=(CausalLm(),))
    sources = make_eval_sources(config, default_store_dir=tmp_path / "stores")
    assert list(sources) == [text, f"{text}.causal_lm"]
    prefix, causal = (source.batch(0) for source in sources.values())
    assert batch_lib.PREFIX in prefix
    assert batch_lib.PREFIX not in causal
    assert prefix[batch_lib.LOSS_WEIGHTS].sum() < causal[batch_lib.LOSS_WEIGHTS].sum()
