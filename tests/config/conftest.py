"""Makes the sample commands importable, and runs the command line on them in an empty directory."""

import pathlib
import sys
import types

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import sample_commands

from t5x_scale.commands import Flag
from t5x_scale.main import main

COMMANDS = {
    "train": "sample_commands:train",
    "eval": "sample_commands:evaluate",
    "fail": "sample_commands:fail",
    "build": "sample_commands:build",
}
FLAGS = {
    "train": {
        "--prompt": Flag("sample_commands.train.prompts", "a prompt", repeated=True),
        "--steps": Flag("TRAIN_STEPS", "how many", literal=True),
        "--directory": Flag("sample_commands.train.model_dir", "where"),
    }
}

BASE = """
from __gin__ import dynamic_registration
import sample_commands
import sample_parts

TRAIN_STEPS = 10
MODEL = @sample_parts.Model()
OPTIMIZER = @sample_parts.Adam()
LEARNING_RATE = 0.5

sample_commands.train:
    model = %MODEL
    train_steps = %TRAIN_STEPS
    optimizer = %OPTIMIZER
    data = @train/sample_parts.Data()
    eval_data = @train_eval/sample_parts.Data()

sample_parts.Model.layer = @sample_parts.Layer
sample_parts.Model.scale = 2
sample_parts.Layer.width = 16
sample_parts.Adam.learning_rate = @sample_parts.Constant()
sample_parts.Constant.value = %LEARNING_RATE
sample_parts.Data.task = "books"
sample_parts.Data.modules = %TASK_MODULES
TASK_MODULES = ("builtin_tasks",)
train/sample_parts.Data.batch_size = 32
train_eval/sample_parts.Data.batch_size = 4
train_eval/sample_parts.Data.lengths = {"b": 2, "a": 1}

sample_commands.evaluate.model = %MODEL
sample_commands.evaluate.split = "validation"
sample_commands.evaluate.sampler = @sample_parts.greedy
sample_parts.greedy.temperature = 0.5
"""


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """`cli("train", "--gin.X=1", files={"a.gin": text})` -> code, out, err, calls.

    base.gin is given first unless base=False; files whose name begins with "inc" are written, but not given.
    """
    monkeypatch.chdir(tmp_path)

    def run(command, *words, files=None, base=True):
        given = {"base.gin": BASE} if base else {}
        for name, text in {**given, **(files or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        sample_commands.CALLS.clear()
        flags = ["--gin_file=base.gin"] if base else []
        flags += [f"--gin_file={name}" for name in files or {} if not name.startswith("inc")]
        code = main([command, *flags, *words], COMMANDS, FLAGS, {"train": "train it"})
        out, err = capsys.readouterr()
        return types.SimpleNamespace(code=code, out=out, err=err, calls=list(sample_commands.CALLS))

    return run
