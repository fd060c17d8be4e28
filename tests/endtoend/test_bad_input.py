"""What a user got wrong: one clear line, an exit code that is not 0, and nothing overwritten."""

import errno
import shutil

import pytest
from command_runner import arguments, contents, steps, write_text

from t5x_scale.commands import train
from t5x_scale.core import patience
from t5x_scale.core.errors import UserError
from t5x_scale.main import main


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command in this process; returns the one line it leaves. Everything below `tmp_path` stays as it was, but
    for the signs of life of who tried."""

    def look():
        return {path: digest for path, digest in contents(tmp_path).items() if "/health" not in path}

    def run(command, *flags, may_add=(), **settings):
        before = look()
        code = main([command, *arguments(**settings), *flags])
        captured = capsys.readouterr()
        after = look()
        added = {path for path in after.keys() - before.keys() if not path.startswith(tuple(may_add))}
        assert code not in (0, None)
        assert captured.err.startswith("t5x_scale: error: ")
        assert captured.err.count("\n") == 1, captured.err
        assert {path: after.get(path) for path in before} == before, "something was changed"
        assert not added, f"left behind: {sorted(added)}"
        return captured.err

    return run


@pytest.fixture
def old(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished.path, tmp_path / "old")
    return str(tmp_path / "old")


NEW = {
    "no number of steps": ({"TRAIN_STEPS": 0}, ["train_steps is 0", "1 or more"]),
    "a negative number of steps": ({"TRAIN_STEPS": -5}, ["train_steps is -5"]),
    "half a step": ({"TRAIN_STEPS": 2.5}, ["TRAIN_STEPS", "2.5"]),
    "never a status line": ({"train__train__log_every_steps": 0}, ["log_every_steps is 0"]),
    "a negative interval": ({"CheckpointConfig__save_every_steps": -1}, ["save_every_steps is -1"]),
    "no evaluation batches": ({"EvaluationConfig__max_batches": 0}, ["max_batches is 0"]),
    "a vocabulary too large": ({"ModelConfig__vocab_size": 100}, ["embedding 100 rows", "vocab_size"]),
    "a batch that does not divide": ({"BATCH_SIZE": 12}, ["a (micro-)batch", "12", "8 devices"]),
    "micro-batches that do not divide": ({"StepConfig__micro_batches": 3}, ["BATCH_SIZE = 8", "micro_batches = 3"]),
    "an evaluation batch that does not": ({"EvaluationConfig__batch_size": 9}, ["an evaluation batch", "9"]),
    "no rows": ({"BATCH_SIZE": 0}, ["at least one row"]),
    "a mesh too large": ({"MeshConfig__fsdp": 64}, ["needs 64 devices and there are 8"]),
    "a mesh that does not fit": ({"MeshConfig__data": 3}, ["3 does not divide 8"]),
    "no length": ({"TASK_FEATURE_LENGTHS": {"targets": 0}}, ["TASK_FEATURE_LENGTHS"]),
    "another feature": ({"TASK_FEATURE_LENGTHS": {"target": 32}}, ["'target'", "targets"]),
    "no such vocabulary": ({"VOCABULARY": "byte"}, ["byte", "bytes"]),
    "no such split": ({"EvaluationConfig__split": "test"}, ["no split 'test'", "validation"]),
    "no epochs": ({"MAX_EPOCHS": 0.0}, ["max_epochs"]),
    "data shorter than asked": ({"MAX_EPOCHS": 0.01}, ["max_epochs = 0.01", "raise MAX_EPOCHS"]),
    "rows longer than the data": ({"TASK_FEATURE_LENGTHS": {"targets": 99999}}, ["fewer than"]),
    "no model to begin with": ({"INITIAL_CHECKPOINT_PATH": "/dev/null/run"}, ["/dev/null/run"]),
}


@pytest.mark.parametrize("mistake", NEW)
def test_a_new_run(refused, source, tmp_path, mistake):
    settings, said = NEW[mistake]
    run = {"MODEL_DIR": str(tmp_path / "run"), "STORE_DIR": str(tmp_path / "stores"), "MIXTURE_OR_TASK_NAME": source}
    # What is found out from the data alone needs the data frozen first.
    line = refused("train", may_add=("stores", "run"), **run | settings)
    assert all(text in line for text in said), line
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "config.gin").exists()


@pytest.mark.parametrize("directory", ["", "/dev/null/run", "/proc/run"])
def test_no_place_for_the_run(refused, source, directory):
    assert "directory" in refused("train", MODEL_DIR=directory, MIXTURE_OR_TASK_NAME=source)


def test_data_that_is_not_there(refused, tmp_path):
    run = {"MODEL_DIR": str(tmp_path / "run")}
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 1000)
    write_text(tmp_path / "short.txt", lines=3)
    for name, said in {
        "text:/no/such/file": "no file matches '/no/such/file'",
        f"text:{tmp_path}/empty.txt": "empty.txt is empty",
        f"text:{tmp_path}/latin.txt": "not UTF-8",
        f"text:{tmp_path}/short.txt": "max_epochs",
    }.items():
        assert said in refused("train", may_add=("run",), MIXTURE_OR_TASK_NAME=name, **run)
    assert not (tmp_path / "run" / "checkpoints").exists()


OLD = {
    "another shape": ({"ModelConfig__embed_dim": 32}, ["embed_dim", "16", "32", "MODEL_DIR"]),
    "another number of layers": ({"ModelConfig__num_layers": 3}, ["num_layers"]),
    "another base of RoPE": ({"Rope__base": 500000.0}, ["10000.0", "500000.0"]),
    "another seed": ({"SEED": 7}, ["seed"]),
    "fewer steps than done": ({"TRAIN_STEPS": 6}, ["step 12", "TRAIN_STEPS = 6"]),
    "another length of rows": ({"TASK_FEATURE_LENGTHS": {"targets": 16}}, ["length"]),
}


@pytest.mark.parametrize("change", OLD)
def test_another_run_is_there(refused, old, source, change):
    settings, said = OLD[change]
    line = refused("train", MODEL_DIR=old, MIXTURE_OR_TASK_NAME=source, **{"TRAIN_STEPS": 20} | settings)
    assert all(text in line for text in said), line


def test_another_optimizer(refused, old, source):
    flags = ("--gin_file=gin/optim/lion.gin",)
    run = {"MODEL_DIR": old, "MIXTURE_OR_TASK_NAME": source, "Cosine__warmup_steps": 0}
    assert "optimizer_class" in refused("train", *flags, **run)


def test_other_data(refused, old, tmp_path):
    other = write_text(tmp_path / "other.txt", seed=1)
    line = refused("train", may_add=("old/token_stores/",), MODEL_DIR=old, MIXTURE_OR_TASK_NAME=other, TRAIN_STEPS=20)
    assert "stores" in line
    assert steps(tmp_path / "old")[-1] == 12


def test_parameters_of_another_model(refused, old, source, tmp_path):
    new = {"MODEL_DIR": str(tmp_path / "new"), "MIXTURE_OR_TASK_NAME": source, "STORE_DIR": f"{old}/token_stores"}
    line = refused("train", may_add=("new",), INITIAL_CHECKPOINT_PATH=old, ModelConfig__mlp_dim=64, **new)
    assert "wi_0" in line or "mlp" in line
    assert "shape" in line
    line = refused("train", may_add=("new",), INITIAL_CHECKPOINT_PATH=f"{old}/checkpoints/7", **new)
    assert "checkpoints/7" in line
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_a_beginning_that_is_away_is_asked_for_again(refused, old, source, tmp_path, monkeypatch):
    asked = []

    def check(*unused):
        asked.append(unused)
        raise (TimeoutError(errno.ETIMEDOUT, "Connection timed out", old) if len(asked) < 3 else UserError("it is bad"))

    monkeypatch.setattr(train, "check_beginning", check)
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    new = {"MODEL_DIR": str(tmp_path / "new"), "MIXTURE_OR_TASK_NAME": source}
    assert "it is bad" in refused("train", may_add=("new",), INITIAL_CHECKPOINT_PATH=old, **new)
    assert len(asked) == 3


def test_evaluating_what_is_not_there(refused, old, source, tmp_path):
    data = {"MIXTURE_OR_TASK_NAME": source}
    assert "does not exist" in refused("eval", MODEL_DIR=str(tmp_path / "none"), **data)
    assert "MODEL_DIR" in refused("eval", MODEL_DIR="", **data)
    assert "shape" in refused("eval", MODEL_DIR=old, ModelConfig__embed_dim=32, **data)
    # The lock of a store that cannot be built.
    may_add = ("old/token_stores/.",)
    split = {"full/EvaluationConfig__split": "test"}
    assert "no split" in refused("eval", may_add=may_add, MODEL_DIR=old, **split, **data)
    assert "/dev/null" in refused("eval", MODEL_DIR=old, evaluate__evaluate__output="/dev/null/x.json", **data)


def test_places_of_processes(refused, source, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert "JAX_COORDINATOR_ADDRESS" in refused("train", MODEL_DIR=str(tmp_path), MIXTURE_OR_TASK_NAME=source)
