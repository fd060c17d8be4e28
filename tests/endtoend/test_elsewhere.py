"""Processes that share nothing with this one: without TensorFlow, and outside the checkout."""

import json
import os
import subprocess
import sys

import pytest
from command_runner import FAST, arguments, steps, write_text

from t5x_scale.monitor.metric_log import read_metrics

# Found by every Python that starts with this folder in PYTHONPATH, before anything else is imported.
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tensorflow", "seqio", "tensorflow_datasets", "t5", "tensorboard"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
"""

MY_TASKS = """
from tasks.text_files import register_text_files

register_text_files("my_words", {"train": "my_data/train.txt", "validation": "my_data/held_out.txt"})
"""

MY_RUN = """
from __gin__ import dynamic_registration
from t5x_scale.models import config

include "gin/models/palm/tiny.gin"
include "gin/optim/palm_adafactor.gin"
include "gin/runs/pretrain.gin"
include "gin/hardware/cpu_1.gin"

config.ModelConfig:
    num_layers = 1
    embed_dim = 16
    mlp_dim = 32
    num_heads = 2
    head_dim = 8
    vocab_size = 640
    dtype = "float32"
VOCABULARY = "bytes"
MIXTURE_OR_TASK_NAME = "my_words"
TASK_FEATURE_LENGTHS = {"targets": 32}
BATCH_SIZE = 4
TRAIN_STEPS = 3
MODEL_DIR = "my_run"
"""


@pytest.fixture
def run(tmp_path):
    """Runs `python -m t5x_scale` in `tmp_path`, where nothing of the checkout can be imported by chance."""

    def start(*words, env=None, code=0):
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        process = subprocess.run(
            [sys.executable, "-m", "t5x_scale", *words],
            cwd=tmp_path,
            env={**clean, "XLA_FLAGS": FAST, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == code, process.stdout + process.stderr
        return process

    return start


def test_without_tensorflow(run, tmp_path):
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCKER)
    env = {"PYTHONPATH": str(tmp_path / "blocked")}
    write_text(tmp_path / "words.txt")
    settings = {"MODEL_DIR": "run", "MIXTURE_OR_TASK_NAME": "text:words.txt"}
    trained = run("train", *arguments(**settings), env=env)
    assert "done: 12 steps" in trained.stdout
    evaluate = {"evaluate__evaluate__output": "results.json", "full/EvaluationConfig__max_batches": 2}
    run("eval", *arguments(**settings, **evaluate), env=env)
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    recorded = read_metrics(tmp_path / "run").series
    assert metrics == {name: recorded[name].values[-1] for name in recorded if name.startswith("eval/")}
    infer = ("--gin_file=gin/runs/infer.gin", "--prompt=abc", "--max_new_tokens=4", "--temperature=0")
    run("infer", *arguments(**settings), *infer, "--output=completions.jsonl", env=env)
    assert len((tmp_path / "completions.jsonl").read_text().splitlines()) == 1
    # The block is real: what needs SeqIO says so.
    settings["MIXTURE_OR_TASK_NAME"] = "stdlib_docs"
    refused = run("train", *arguments(**settings | {"MODEL_DIR": "other"}), env=env, code=1)
    assert "needs seqio and TensorFlow" in refused.stderr


def test_tasks_of_ones_own_outside_the_checkout(run, tmp_path):
    (tmp_path / "my_tasks.py").write_text(MY_TASKS)
    (tmp_path / "my_run.gin").write_text(MY_RUN)
    (tmp_path / "my_data").mkdir()
    write_text(tmp_path / "my_data" / "train.txt")
    write_text(tmp_path / "my_data" / "held_out.txt", lines=50, seed=1)
    trained = run("train", "--gin_file=my_run.gin", "--module_import=my_tasks")
    assert "eval/my_words/loss" in trained.stdout
    assert "done: 3 steps" in trained.stdout
    assert steps(tmp_path / "my_run") == [3]
    config = (tmp_path / "my_run" / "config.gin").read_text()
    assert "my_tasks" in config
    # What stands beside the run is enough to continue it.
    more = run("train", "--gin_file=my_run/config.gin", "--gin.TRAIN_STEPS=4", "--module_import=my_tasks")
    assert "done: 4 steps" in more.stdout
