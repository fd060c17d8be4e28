"""The inspection tool, called as a user calls it, but in this process."""

import importlib.util
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest

from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.data.catalog import Catalog
from t5x_scale.data.pipeline import make_pipeline
from t5x_scale.data.vocabulary import load_vocabulary

ROOT = pathlib.Path(__file__).parents[2]
PATH = ROOT / "tools" / "inspect_token_store.py"
TINY = ROOT / "tests" / "endtoend" / "tiny.gin"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("inspect_token_store", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for name in ("book", "letters"):
        (root / f"{name}.txt").write_text("".join(f"Line {i} of the {name}.\n" for i in range(400)))
    return root


@pytest.fixture(scope="module")
def store(corpus):
    return Catalog(str(corpus / "stores"), load_vocabulary("bytes")).open(f"text:{corpus}/book.txt", "train").directory


@pytest.fixture
def inspect(tool, monkeypatch, capsys):
    """Runs the tool -> (exit code, output, errors)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["inspect_token_store.py", *map(str, words)])
        code = tool.main()
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run_words(corpus):
    rates = f'{{"text:{corpus}/book.txt": 0.5, "text:{corpus}/letters.txt": 0.5}}'
    return (
        f"--gin_file={TINY}",
        f'--gin.MODEL_DIR="{corpus}/run"',
        '--gin.MIXTURE_OR_TASK_NAME="unused"',
        f"--gin.MIXTURE_RATES={rates}",
        "--gin.MAX_EPOCHS=None",
    )


def test_a_store(inspect, store):
    code, out, _ = inspect(store)
    assert code == 0
    assert re.search(r"vocabulary +bytes, ", out)
    assert "unigram entropy" in out
    code, out, _ = inspect(store, "--show=1", "--characters=40")
    assert code == 0
    assert "document 0: tokens 0 to" in out
    assert "Line 0 of the book." in out
    code, out, _ = inspect(store, "--verify")
    assert (code, "is intact" in out) == (0, True)


def test_examples_of_an_objective(inspect, store):
    code, out, _ = inspect(store, "--objective=ul2r", "--length=128", "--show=5", "--vocabulary=bytes")
    assert code == 0
    assert out.count("denoiser") == 5
    assert "[S2S]" in out


def test_damage_is_found(inspect, corpus, tmp_path):
    (tmp_path / "a.txt").write_text("some text\n" * 100)
    directory = (
        Catalog(str(tmp_path / "stores"), load_vocabulary("bytes")).open(f"text:{tmp_path}/a.txt", "all").directory
    )
    chunk = next(
        path for path in pathlib.Path(directory, "tokens").rglob("*") if path.is_file() and "json" not in path.name
    )
    content = bytearray(chunk.read_bytes())
    content[10] ^= 1
    chunk.write_bytes(content)
    code, _, err = inspect(directory, "--verify")
    assert code == 1
    assert err.startswith("error: ")
    assert "do not match their checksum" in err


def test_the_documents_of_a_step(inspect, run_words, corpus):
    code, out, err = inspect(*run_words, "--step=3", "--show=2")
    assert code == 0, err
    assert out.startswith("step 3: 8 rows of 32 positions")
    assert "6 more rows" in out
    assert "document 0, tokens " in out
    assert f"{corpus}/run/token_stores" in out


def test_the_characters_of_a_step(inspect, run_words):
    lines = [inspect(*run_words, "--step=3", *words)[1].splitlines() for words in ([], ["--characters=5"])]
    shown = [next(line for line in run if line.startswith("  document")).split(": ", 1)[1] for run in lines]
    assert shown[1] == shown[0][:5] + "…"


def test_a_live_run_cannot_be_looked_up(inspect, run_words):
    code, out, err = inspect(*run_words, "--step=3", '--gin.DELIVERY="live"')
    assert (code, out) == (1, "")
    assert "a live run has no documents of a step" in err
    assert err.count("\n") == 1


def test_the_mixture_of_steps(inspect, run_words):
    code, out, err = inspect(*run_words, "--step=0", "--to_step=10")
    assert code == 0, err
    shares = [line.split()[3] for line in out.splitlines()[2:]]
    assert shares == ["0.5000", "0.5000", "1.0000"]


def test_a_run_is_seen_as_it_went(inspect, tool, run_words, corpus, tmp_path):
    words = [word for word in run_words if "MODEL_DIR" not in word] + [f'--gin.MODEL_DIR="{tmp_path}"']
    data, model_dir = tool.load_run([str(TINY)], words[1:])
    assert model_dir == str(tmp_path)
    source = make_pipeline(data, default_store_dir=tmp_path / "token_stores")
    with CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1)) as manager:
        manager.save(5, {"params": {"kernel": np.ones(3, np.float32)}}, {"data": source.state(5)})
    code, out, err = inspect(*words, "--gin.BATCH_SIZE=16", "--step=4", "--to_step=6")
    assert code == 0, err
    # Eight rows a step up to the checkpoint, sixteen from there on.
    assert "global rows 32 to 56" in out
    code, _, err = inspect(*words, "--gin.SEED=9", "--step=4")
    assert code == 1
    assert "differs from the checkpoint's in: " in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give the directory of a token store, or --gin_file"),
        (["/nowhere"], "/nowhere does not exist"),
        (["{store}", "--objective=ul2x"], "no objective 'ul2x' (did you mean 'ul2'"),
        (["{store}", "--show=1", "--vocabulary=stdlib_8k"], "not 'stdlib_8k'"),
        (["{store}", "--document=7"], "there is no document 7"),
        (["{store}", "--objective=causal_lm", "--length=1000000"], "fewer than the 1000001 of one row"),
        (["{store}", "--objective=supervised"], "holds plain documents"),
        (["{store}", "--step=3"], "belong to a run"),
        (["{store}", "--shwo=3"], "unrecognized arguments: --shwo=3"),
        (["{store}", "--show=x"], "--show: 'x' is no whole number from 0 on"),
        (["{store}", "--length=0", "--objective=ul2"], "must be 1 or more"),
        (["{store}", "--objective=ul2", "--document=3"], "--document says nothing about examples of an objective"),
        (["{store}", "--packing=documents"], "--packing says nothing about the statistics of a store"),
        (["{store}", "--verify", "--show=3"], "--show says nothing about a verification"),
        (["{store}", "--show=3", "--length=9"], "--length says nothing about documents"),
        (["--gin_file=a.gin", "--step=5", "--objective=ul2"], "--objective says nothing about the documents of a step"),
        (["--gin_file=a.gin", "--step=5", "--to_step=6", "--show=1"], "--show says nothing about the mixture of steps"),
        (["--gin_file=a.gin"], "needs --step"),
        (["--gin_file=a.gin", "--step=5", "--to_step=5"], "--to_step=5 must lie behind"),
        (["--gin_file=nowhere.gin", "--step=5"], "nowhere.gin"),
    ],
)
def test_bad_input_is_one_line(inspect, store, words, message):
    code, out, err = inspect(*[word.format(store=store) for word in words])
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_an_objective_needs_no_data_to_be_looked_at(inspect):
    code, out, err = inspect("--objective=ul2r", "--show=2", "--length=128")
    assert code == 0, err
    assert out.count("denoiser") == 2
    assert "positions  128" in out


def test_statistics_of_a_damaged_store_are_an_error(inspect, store, tmp_path):
    copy = tmp_path / "damaged"
    shutil.copytree(store, copy)
    file = next((copy / "tokens" / "c").iterdir())
    content = bytearray(file.read_bytes())
    content[1] = 0xFF
    file.write_bytes(content)
    code, _, err = inspect(copy)
    assert code == 1
    assert "is damaged: it holds the id" in err
