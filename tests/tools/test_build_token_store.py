"""The tool that builds token stores, called as a user calls it, but in this process."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import types

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data.building.build import build_store
from t5x_scale.data.catalog import Catalog
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import load_vocabulary

ROOT = pathlib.Path(__file__).parents[2]
BYTES = load_vocabulary("bytes")
MODULE = """
import functools
import seqio
import tensorflow as tf

TEXT = seqio.Feature(seqio.PassThroughVocabulary(256), add_eos=False, dtype=tf.string, rank=0)
COLUMNS = {
    "built_plain": {"targets": ["some text", "some text", "more text", "", b"bad \\xff byte"]},
    "built_pairs": {"inputs": ["2+2=", "1+1="], "targets": ["4", "2"]},
    "built_more_pairs": {"inputs": ["2*3="], "targets": ["6"]},
}

def make_dataset(split, shuffle_files=False, seed=None, *, name):
    return tf.data.Dataset.from_tensor_slices(COLUMNS[name])

for name, columns in COLUMNS.items():
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(functools.partial(make_dataset, name=name), splits=("train", "test")),
        preprocessors=[],
        output_features={feature: TEXT for feature in columns},
    )
seqio.MixtureRegistry.add("built_mixture", [("built_more_pairs", 1.0), ("built_pairs", 3.0)])
"""


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("build_token_store", ROOT / "tools" / "build_token_store.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "built_tasks.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def call(tool, code, tmp_path, monkeypatch, capsys):
    def run(*words):
        flags = ["--vocabulary=bytes", f"--store_dir={tmp_path}/stores"]
        monkeypatch.setattr(sys, "argv", ["build_token_store.py", *words, *flags])
        tool.main()
        return capsys.readouterr().out

    return run


def texts_of(store):
    spans = [store.document_span(index) for index in range(store.num_documents)]
    return [BYTES.decode(store.tokens(start, stop - 1)) for start, stop in spans]


def test_a_mixture_is_built_once_and_trained_on_without_tensorflow(call, code, tmp_path):
    out = call("--mixture=built_mixture", "--task=built_plain", "--module=built_tasks", "--licence=CC0")
    assert "built_pairs, split train: supervised, 2 documents, 12 tokens; licence: CC0" in out
    assert "1 of 5 documents left out (empty 1)" in out
    catalog = Catalog(str(tmp_path / "stores"), BYTES, ("built_tasks",))
    pairs = TokenStore.open(catalog.directory("built_pairs", "train"))
    assert pairs.target_starts(0, 2).tolist() == [4, 4]
    assert texts_of(pairs) == ["2+2=4", "1+1=2"]
    plain = TokenStore.open(catalog.directory("built_plain", "train"))
    assert plain.manifest.report["invalid_utf8_replaced"] == 1
    train = (
        "import sys\n"
        "for name in ('tensorflow', 'seqio'): sys.modules[name] = None\n"
        "from t5x_scale.data.pipeline import DataConfig, make_pipeline\n"
        "config = DataConfig('built_mixture', 'bytes', {'targets': 4}, 4, task_modules=('built_tasks',),\n"
        "                    store_dir=sys.argv[1])\n"
        "print(sorted(make_pipeline(config, default_store_dir='unused').stores))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(code)}
    command = [sys.executable, "-c", train, str(tmp_path / "stores")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "['built_more_pairs', 'built_pairs']", done.stderr


def test_curation_is_part_of_the_store_and_a_run_accepts_it(call, tmp_path, caplog):
    words = ("--task=built_plain", "--module=built_tasks", "--exact_duplicates", "--max_tokens=9")
    out = call(*words)
    assert "3 of 5 documents left out (empty 1, exact duplicate 1, filtered: many tokens 1)" in out
    catalog = Catalog(str(tmp_path / "stores"), BYTES, ("built_tasks",))
    caplog.set_level("INFO")
    store = catalog.open("built_plain", "train")
    assert texts_of(store) == ["some text", "more text"]
    assert "3 of 5 documents left out" in caplog.text
    assert store.manifest.source["curation"]["token_filters"] == [{"filter": "TokenLength", "least": None, "most": 9}]
    # The same command finds it; another one says that this is not what was asked for.
    assert call(*words) == out
    with pytest.raises(SystemExit, match=r"error: the token store .* was built with other filters or none"):
        call("--task=built_plain", "--module=built_tasks")


def test_texts_of_an_evaluation_task_are_kept_out(call, tmp_path):
    question = "a question of more than eight words that nobody else would ever ask in this way again"
    (tmp_path / "a.txt").write_text(f"Quoted: {question}, indeed.")
    (tmp_path / "b.txt").write_text("something else")
    (tmp_path / "c.exam").write_text(question)
    out = call(f"--task=text:{tmp_path}/*.txt", "--split=all", f"--decontaminate=text:{tmp_path}/*.exam:all")
    assert "1 of 2 documents left out (filtered: overlap with text:" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to build: name a --task or a --mixture"),
        (("--task=built_plian", "--module=built_tasks"), "did you mean 'built_plain'"),
        (("--task=built_plain", "--module=built_tasks", "--split=valid"), "has no split 'valid'"),
        (("--task=built_plain", "--module=built_tasks", "--decontaminate=exam"), "write TASK:SPLIT"),
        (("--task=built_plain", "--module=built_tasks", "--near_duplicates=7"), "share between 0 and 1"),
        (("--task=text:a", "--beam_option=project=p"), "needs a --runner of Beam"),
        (("--task=text:a", "--runner=direct", "--workers=2"), "--workers is for --runner=local"),
        (("--task=text:a", "--min_tokens=9", "--max_tokens=8"), "min_tokens = 9 is above max_tokens = 8"),
    ],
)
def test_what_cannot_be_built(call, words, message):
    with pytest.raises(SystemExit) as caught:
        call(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_beam_its_runners_say_what_to_install(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "t5x_scale.data.building.beam", raising=False)
    with pytest.raises(SystemExit, match=r"the runner 'direct' needs Apache Beam.* install t5x_scale\[beam\]"):
        call("--task=text:a", "--runner=direct")


def test_a_runner_builds_what_the_catalogue_finds(call, tmp_path, monkeypatch):
    calls = []

    def build_with_beam(shards, directory, options, *, source, licence, pipeline_options):
        calls.append(pipeline_options)
        records = [record for shard in shards.list_shards() for record in shards.read_shard(shard)]
        build_store(records, directory, options, source=source, licence=licence)

    beam = types.ModuleType("t5x_scale.data.building.beam")
    beam.build_with_beam = build_with_beam
    monkeypatch.setitem(sys.modules, beam.__name__, beam)
    (tmp_path / "a.txt").write_text("words")
    flags = (f"--task=text:{tmp_path}/*.txt", "--split=all")
    out = call(*flags, "--runner=dataflow", "--beam_option=project=p")
    assert calls == [["--runner=DataflowRunner", "--project=p"]]
    # Nothing is built again.
    assert call(*flags) == out


def test_an_interrupt_says_how_to_go_on(call, tool, monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "build", interrupt)
    with pytest.raises(SystemExit) as caught:
        call()
    assert caught.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_errors_of_the_catalogue_are_for_users(tmp_path):
    with pytest.raises(UserError, match="no file matches"):
        Catalog(str(tmp_path), BYTES).build("text:/nowhere/*.txt", "train")
    assert list(tmp_path.glob("*building*")) == []


def test_flags_are_checked_before_anything_is_read(tool, tmp_path, monkeypatch):
    base = ["build_token_store.py", "--task=text:none/*", "--vocabulary=bytes", f"--store_dir={tmp_path}"]
    for words, message in (
        (["--splitt=train"], "unrecognized arguments: --splitt=train"),
        (["--quali"], "unrecognized arguments: --quali"),
        (["--min_tokens=-1"], "min_tokens is -1"),
        (["--near_duplicates=1.7"], "near_duplicates is 1.7"),
    ):
        monkeypatch.setattr(sys, "argv", [*base, *words])
        with pytest.raises(SystemExit) as caught:
            tool.main()
        assert str(caught.value.code).startswith("error: ")
        assert message in str(caught.value.code)


def test_a_store_dir_that_is_a_file(tool, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    words = ["--task=any_task", "--vocabulary=bytes", f"--store_dir={tmp_path}/a.txt"]
    monkeypatch.setattr(sys, "argv", ["build_token_store.py", *words])
    with pytest.raises(SystemExit) as caught:
        tool.main()
    assert "a.txt, a file: name a directory" in str(caught.value.code)
