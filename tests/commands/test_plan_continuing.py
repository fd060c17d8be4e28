"""Planning continued training: from a directory or from sizes, with shares, forgetting and experts."""

import json

import pytest

from t5x_scale.main import main

USERS = ["--gin.MODEL_DIR='none'", "--gin.VOCABULARY='bytes'"]
MODEL = """
from __gin__ import dynamic_registration
from t5x_scale.models import config
include "gin/models/llama/llama.gin"
config.ModelConfig:
    num_layers = 4
    embed_dim = 256
    mlp_dim = 704
    num_heads = 8
    num_kv_heads = 2
    head_dim = 32
    vocab_size = 8192
"""
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run" / "report").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "run" / "model.gin").write_text(MODEL)
    (tmp_path / "run" / "report" / "summary.json").write_text('{"tokens": 140000000}')
    return tmp_path / "run"


@pytest.mark.parametrize("place", ["", "checkpoints/10"])
def test_a_run_is_continued_and_train_accepts_it(run, tmp_path, capsys, place):
    out = tmp_path / "plan"
    words = [f"--continue_from={run / place}", "--domain_tokens=30e6", "--general_tokens=5e6", f"--output={out}"]
    assert main(["plan", *words]) == 0
    text = capsys.readouterr().out
    assert "7.01 M parameters, trained on 140 M tokens" in text
    assert "75% new, 25% old" in text
    assert "the old data is seen 2" in text
    files = [f"--gin_file={path}" for path in (run / "model.gin", out / "run.gin")]
    assert main(["train", *files, *USERS, "--dry_run"]) == 0
    assert "'new': 0.75" in capsys.readouterr().out
    assert "curve" not in json.loads((out / "plan.json").read_text())


def test_a_hugging_face_directory(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert main(["plan", f"--continue_from={tmp_path}", "--domain_tokens=10b", "--shift=weak"]) == 0
    text = capsys.readouterr().out
    assert "6.74 B parameters" in text
    assert "say --tokens_seen" in text
    assert "95% new, 5% old" in text


def test_a_table_of_positions_bounds_the_rows(tmp_path, capsys):
    gpt2 = {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
    (tmp_path / "config.json").write_text(json.dumps(gpt2))
    words = ["plan", f"--continue_from={tmp_path}", "--domain_tokens=10b"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "124 M parameters" in text
    assert "rows of 1,024 tokens" in text
    assert main([*words, "--length=2048"]) == 1
    assert "--length is 2,048, and the model has a table of 1,024 positions" in capsys.readouterr().err


def test_what_a_machine_cannot_do_is_said(capsys):
    words = ["--params=70b", "--tokens_seen=2t", "--domain_tokens=10b"]
    assert main(["plan", *words, "--chips=v5e-16", "--days=1"]) == 0
    text = capsys.readouterr().out
    assert "does not fit a device: take more --chips" in text
    assert "and not the 24.0 hours of --days" in text
    # A CPU is fast enough for a few tokens, and holds none of it.
    assert main(["plan", *words[:2], "--domain_tokens=2000"]) == 0
    assert "x v5p" in capsys.readouterr().out


def test_four_epochs_of_the_old_are_the_most(capsys):
    assert main(["plan", "--params=1b", "--tokens_seen=20b", "--domain_tokens=9.6b", "--general_tokens=100m"]) == 0
    assert "96% new, 4% old" in capsys.readouterr().out


def test_how_long_upcycling_pays(tmp_path, capsys):
    """Beyond so many tokens experts from scratch are better (Liew et al. 2025)."""
    words = ["--params=1b", "--tokens_seen=20b", "--domain_tokens=1b", f"--output={tmp_path}"]
    assert main(["plan", *words]) == 0
    value = json.loads((tmp_path / "plan.json").read_text())["choices"]["dense or upcycled"]["value"]
    said = capsys.readouterr().out
    assert 1e10 < value["pays_until_tokens"] < 1.6e10
    assert "upcycling pays up to" in said


LLAMA = "--continue_from=gin/models/llama2/7b.gin"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--continue_from=/nowhere", "--domain_tokens=1b"], ["there is no /nowhere"]),
        (["--params=1b", "--domain_tokens=1b", "--flops=1e20"], ["--flops has no meaning"]),
        (["--params=1b", "--domain_tokens=1b", "--law=porian"], ["--law has no meaning"]),
        (["--params=1b", "--domain_tokens=0"], ["--domain_tokens is '0'"]),
        (["--domain_tokens=1b"], ["--continue_from"]),
        (["--params=1b", "--tokens_seen=1b"], ["--tokens_seen has no meaning"]),
        (["--params=1b", "--domain_tokens=1b", "--shift=week"], ["--shift is 'week'", "'weak'"]),
        (["--params=1b", "--domain_tokens=10"], ["less than one batch"]),
        ([LLAMA, "--domain_tokens=1b", "--vocab_size=64k"], ["--vocab_size has no meaning", "says the model"]),
        ([LLAMA, "--domain_tokens=1b", "--family=llama"], ["--family has no meaning", "says the model"]),
    ],
)
def test_refusals(words, parts, capsys):
    assert main(["plan", *words]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in parts:
        assert part in error


def test_a_directory_without_a_model_says_what_was_looked_for(tmp_path, capsys):
    assert main(["plan", f"--continue_from={tmp_path}", "--domain_tokens=1b"]) == 1
    assert "neither config.gin, model.gin nor config.json" in capsys.readouterr().err
