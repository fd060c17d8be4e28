"""From a configuration to a live stream, without SeqIO: text files."""

import numpy as np
import pytest
from live_streams import LiveConfig, assert_same

from t5x_scale.core.errors import UserError
from t5x_scale.data import text_source
from t5x_scale.data.eval_source import EvalSource
from t5x_scale.data.live import make_live_pipeline, open_live_eval_stores
from t5x_scale.data.live.inputs import LiveNames, TextExamples, resolve_live
from t5x_scale.data.live.pipeline import share_json
from t5x_scale.data.mixtures.rates import Proportional, RateSchedule
from t5x_scale.data.objectives import CausalLm, Supervised
from t5x_scale.data.rows.delivery import Windows
from t5x_scale.data.rows.packed_delivery import PackDocuments
from t5x_scale.data.vocabulary import load_vocabulary

BYTES = load_vocabulary("bytes")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        (folder / f"{number:02}.txt").write_text(f"file {number} " * (number + 3))
    return f"text:{folder}/*.txt"


@pytest.fixture
def config(corpus):
    def make(**settings):
        given = {"mixture_or_task_name": corpus, "max_epochs": None, **settings}
        return LiveConfig(vocabulary="bytes", task_feature_lengths={"targets": 64}, batch_size=8, **given)

    return make


def open_live(config, **options):
    return make_live_pipeline(config, default_store_dir="/stores", **options)


def test_text_files_live(config, tmp_path):
    source = open_live(config())
    tokens = source.batch(0)["decoder_input_tokens"].ravel()
    assert BYTES.decode(tokens[: len("file 0 " * 3)]) == "file 0 " * 3
    again = open_live(config()).resumed(source.state(1), 1)
    assert_same(again.batch(1), source.batch(1))
    sharded = open_live(config(live_shards=4, live_shuffle_buffer=5))
    hosts = [
        open_live(config(live_shards=4, live_shuffle_buffer=5), process_index=i, process_count=2) for i in range(2)
    ]
    parts = [host.batch(3) for host in hosts]
    for name, values in sharded.batch(3).items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


def test_every_shard_reads_files_of_its_own(corpus):
    source = TextExamples(corpus, "all", BYTES)
    whole = [document.tokens.tolist() for document in source.encode(list(source.open(0, 0, 1)))]
    assert whole == [ids.tolist() for ids in text_source.iterate_documents(corpus, "all", BYTES)]
    for shard in range(3):
        part = source.encode(list(source.open(1, shard, 3)))
        assert [document.tokens.tolist() for document in part] == whole[shard::3]


def test_the_command_that_builds_stores_instead(config, corpus, caplog):
    source = open_live(config(task_modules=["json"], split="all"))
    source.batch(1)
    assert (
        f"python tools/build_token_store.py '--task={corpus}' --module=json --split=all --vocabulary=bytes "
        "--store_dir=/stores" in caplog.text
    )


def test_files_that_change_are_refused(config, tmp_path):
    (tmp_path / "a.txt").write_text("one\n" * 100)
    name = f"text:{tmp_path}/*.txt"
    state = open_live(config(mixture_or_task_name=name)).state(1)
    open_live(config(mixture_or_task_name=name)).resumed(state, 1)
    source = open_live(config(mixture_or_task_name=name))
    source.batch(0)
    state = source.state(1)
    (tmp_path / "b.txt").write_text("two\n" * 100)
    with pytest.raises(UserError, match=r"in: sources .* put the old ones back"):
        open_live(config(mixture_or_task_name=name)).resumed(state, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epochs": 0.5}, r"max_epochs is 0\.5: how long a live stream is"),
        ({"live_shuffle_buffer": -1}, "live_shuffle_buffer is -1"),
        ({"live_shards": 3}, "batch size 8 does not divide among live_shards = 3"),
        ({"objective": Supervised()}, "needs whole documents"),
        ({"mixture_rates": {"text:x": Proportional()}}, "computed from its size"),
        ({"mixture_rates": {"text:x": -1.0}}, r"rate of 'text:x' is -1\.0"),
        ({"mixture_rates": {"text:x": 0.0}}, "all rates are zero"),
        ({"mixture_or_task_name": "text:/nowhere/*.txt"}, "no file matches"),
        ({"rate_unit": "examples", "mixture_rates": RateSchedule(((0, "text:a"), (5, "text:b")))}, "schedule of rates"),
    ],
)
def test_bad_settings(config, settings, message):
    with pytest.raises(UserError, match=message):
        open_live(config(**settings))


def test_rates(corpus):
    class Names(LiveNames):
        def shares(self, name):
            return {"a": 0.25, "b": 0.75} if name == "both" else {name: 1.0}

        def source(self, name):
            return name

    names = Names("train", BYTES)
    given = {"both": 2.0, "c": 2.0}
    plan, inputs = resolve_live(given, rate_unit=None, names=names)
    assert plan.pieces == ((0, {"both": 2.0, "c": 2.0}),)
    assert (inputs["both"].sources, inputs["both"].rates) == (("a", "b"), (0.25, 0.75))
    plan, inputs = resolve_live(given, rate_unit="tokens", names=names)
    assert plan.pieces == ((0, {"a": 0.5, "b": 1.5, "c": 2.0}),)
    assert sorted(inputs) == ["a", "b", "c"]
    plan, inputs = resolve_live(given, rate_unit="examples", names=names)
    assert plan.names == ("mixture",)
    assert (inputs["mixture"].sources, inputs["mixture"].rates) == (("a", "b", "c"), (0.125, 0.375, 0.5))
    plan, inputs = resolve_live("both", rate_unit="examples", names=names)
    assert list(inputs) == ["both"]


@pytest.mark.parametrize("packing", [Windows(), PackDocuments()])
def test_evaluation_reads_a_part_once(config, corpus, packing, caplog):
    stores = open_live_eval_stores(config(), split="validation", max_tokens=300)
    assert "on its first" in caplog.text
    (store,) = stores.values()
    assert 300 <= store.num_tokens < 1000
    source = EvalSource(corpus, store, CausalLm().with_vocabulary(BYTES), length=64, batch_size=2, packing=packing)
    assert source.batch(0)["decoder_loss_weights"].sum() > 0


def test_share_json_of_one_process():
    assert share_json({"a": [1, "b"]}) == [{"a": [1, "b"]}]
