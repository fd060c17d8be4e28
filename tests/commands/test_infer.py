"""`t5x_scale infer`: from a checkpoint and gin files to text, records and one-line errors."""

import functools
import json

import jax
import pytest

from t5x_scale.checkpoint.manager import CheckpointManager
from t5x_scale.commands.infer import infer
from t5x_scale.core.errors import UserError
from t5x_scale.data.vocabulary import load_vocabulary
from t5x_scale.main import main
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder, Head
from t5x_scale.models.interface import DecoderModel
from t5x_scale.program import Program
from t5x_scale.train_state import TrainState

SHAPES = {
    "num_layers": 1,
    "embed_dim": 16,
    "mlp_dim": 16,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "vocab_size": 512,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def program():
    return Program(DecoderModel(ModelConfig(**SHAPES), functools.partial(Decoder, head=Head)))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, program):
    """A checkpoint of parameters as they are drawn, and a configuration beside it."""
    directory = tmp_path_factory.mktemp("run")
    params = jax.jit(program.model.init)(jax.random.key(0))
    with CheckpointManager(directory) as manager:
        manager.save(7, TrainState(jax.numpy.int32(7), params, ()), {}, force=True)
    (directory / "config.gin").write_text(_config(directory))
    return directory


def _config(directory):
    shapes = "\n".join(f"config.ModelConfig.{name} = {value!r}" for name, value in SHAPES.items())
    return f"""
from __gin__ import dynamic_registration
import t5x_scale.program as program
from t5x_scale.commands import infer
from t5x_scale.models import config
from t5x_scale.models import decoder
from t5x_scale.models import interface
include "gin/runs/infer.gin"

MODEL_DIR = "{directory}"
VOCABULARY = "bytes"
TASK_FEATURE_LENGTHS = {{"targets": 24}}
PROGRAM = @program.Program()
program.Program.model = @interface.DecoderModel()
interface.DecoderModel.config = @config.ModelConfig()
interface.DecoderModel.decoder = @decoder.Decoder
decoder.Decoder.head = @decoder.Head
{shapes}
"""


@pytest.fixture
def run(model_dir, program):
    options = {"model_dir": str(model_dir), "task_feature_lengths": {"targets": 24}, "temperature": 0.0}
    return functools.partial(infer, program, "bytes", **options)


def test_command_line(model_dir, tmp_path, capsys):
    output = tmp_path / "new" / "out.jsonl"
    words = [f"--gin_file={model_dir}/config.gin", "--prompt=def ", "--temperature=0", "--max_new_tokens=5"]
    assert main(["infer", *words, f"--output={output}"]) == 0
    printed = capsys.readouterr()
    (record,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert printed.out == "def " + record["completion"] + "\n"
    assert "checkpoints/7" in printed.err
    assert str(output) in printed.err
    assert record["prompt"] == "def "
    assert record["completion"] == load_vocabulary("bytes").decode(record["tokens"])
    assert len(record["tokens"]) == 5
    assert record["finish_reason"] == "max_new_tokens"
    assert record["log_probability"] < 0


def test_dry_run_computes_nothing(model_dir, capsys):
    assert main(["infer", f"--gin_file={model_dir}/config.gin", "--prompt=a", "--dry_run"]) == 0
    assert "token_embedder/embedding" in capsys.readouterr().out


def test_several_prompts_come_in_order_with_headers(run, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("naïve\n\nb\r\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": ""}\n{"prompt": "two\\nlines", "id": 3}\n')
    output = tmp_path / "out.jsonl"
    run(prompts=["a"], prompts_file=str(tmp_path / "prompts.txt"), output=str(output), batch_size=2, max_new_tokens=3)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["prompt"] for record in records] == ["a", "naïve", "b"]
    parts = [f"--- {i} of 3 ---\n{r['prompt']}{r['completion']}\n" for i, r in enumerate(records, 1)]
    assert capsys.readouterr().out == "\n".join(parts)
    with pytest.raises(UserError, match=r"out\.jsonl exists: give another name"):
        run(prompts=["a"], output=str(output))
    assert len(output.read_text().splitlines()) == 3
    again = {"prompts_file": str(tmp_path / "prompts.jsonl"), "output": str(output), "overwrite": True}
    run(**again, batch_size=2, max_new_tokens=3)
    assert [json.loads(line)["prompt"] for line in output.read_text().splitlines()] == ["", "two\nlines"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, 'infer needs a prompt: --prompt="text"'),
        ({"prompts": ["a", "b" * 24]}, "prompt 2 has 24 tokens and the context 24"),
        ({"prompts": ["a"], "context_length": 1}, "prompt 1 has 1 tokens and the context 1"),
        ({"prompts": ["a"], "task_feature_lengths": None}, "TASK_FEATURE_LENGTHS"),
        ({"prompts": ["a"], "model_dir": None}, "needs a checkpoint: set MODEL_DIR"),
        ({"prompts": ["a"], "model_dir": "/nowhere/at/all"}, "/nowhere/at/all does not exist"),
        ({"prompts": ["a"], "temperature": -1.0}, "temperature is -1.0"),
        ({"prompts": ["a"], "batch_size": 0}, "batch_size is 0"),
        ({"prompts": ["a"], "mode": "[S2T]"}, r"unknown mode '\[S2T\]' \(did you mean"),
        ({"prompts": ["a"], "begin": "eos"}, "begin is 'eos'"),
        ({"prompts": ["a"], "output": "TMP"}, "is a directory; name a file in it"),
        ({"prompts": ["a"], "output": "TMP/file/out.jsonl"}, "cannot write to the directory .*file"),
        ({"prompts_file": "TMP/fil"}, r"no such file of prompts: .*fil \(did you mean 'file'"),
        ({"prompts_file": "TMP/empty.txt"}, "empty.txt holds no prompts"),
        ({"prompts_file": "TMP/binary"}, "binary is not UTF-8 text"),
        ({"prompts_file": "TMP/bad.jsonl"}, "bad.jsonl, line 2 is not valid JSON"),
        ({"prompts_file": "TMP/field.jsonl"}, "field.jsonl, line 1 is not an object with a string .*'promt'"),
        ({"prompts_file": "TMP"}, "cannot read prompts from"),
    ],
)
def test_one_line_for_what_is_wrong(run, tmp_path, options, part):
    (tmp_path / "file").write_text("a\n")
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (tmp_path / "field.jsonl").write_text('{"promt": "a"}\n')
    before = sorted(tmp_path.rglob("*"))
    options = {k: v.replace("TMP", str(tmp_path)) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(UserError, match=part) as raised:
        run(**options)
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before
