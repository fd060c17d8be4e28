"""`t5x_scale plan` answers at once, writes what train accepts, and refuses the impossible in one line."""

import json
import subprocess
import sys

import pytest

from t5x_scale.main import main

# What a plan leaves to the user.
USERS = ["--gin.MODEL_DIR='none'", "--gin.MIXTURE_OR_TASK_NAME='any'", "--gin.VOCABULARY='bytes'"]


@pytest.mark.parametrize(
    "words",
    [
        ["--params=200e3", "--tokens=4e6"],
        ["--flops=1e15"],
        ["--flops=3e21", "--chips=v5p-64", "--family=palm"],
        ["--flops=1e24", "--chips=v4_2x3072"],
        ["--unique_tokens=30e9", "--chips=v5e"],
        ["--params=70b", "--chips=tpu7x-64", "--unique_tokens=500b"],
        ["--params=1b", "--tokens=20b", "--chips=h200-8", "--vocab_size=32000"],
    ],
    ids=lambda words: " ".join(words),
)
def test_train_accepts_what_is_written(words, tmp_path, capsys):
    assert main(["plan", *words, f"--output={tmp_path}"]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    capsys.readouterr()
    files = [f"--gin_file={tmp_path / name}" for name in ("model.gin", "run.gin")]
    assert main(["train", *files, *USERS, "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert f"{plan['choices']['parameters']['value']:,}" in text
    assert f"TRAIN_STEPS = {plan['choices']['batch']['value']['steps']}\n" in (tmp_path / "run.gin").read_text()
    assert "what used it was overridden" not in text
    assert f"plan = '{tmp_path}/plan.json'" in text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["nothing to plan from", "--flops=1e22"]),
        (["--flops=0"], ["--flops is '0'", "positive"]),
        (["--flops=-1e22"], ["--flops", "positive"]),
        (["--flops=much"], ["--flops is 'much'", "such as 1e22"]),
        (["--flops=nan"], ["--flops"]),
        (["--flops=1e40"], ["1e+40", "expected one from"]),
        (["--flops=1e15", "--params=8e9"], ["more parameters than the FLOPs allow", "the best size"]),
        (["--flops=1e22", "--params=8e9", "--tokens=1e15"], ["leave one of them out"]),
        (["--chips=v5q-512", "--days=14"], ["unknown chip 'v5q'", "'v5p'"]),
        (["--chips=v5p-512"], ["add --days"]),
        (["--days=14"], ["add --chips"]),
        (["--chips=v5p-100", "--days=1"], ["no slice of v5p has 100 chips", "64 or 128 would do"]),
        (["--chips=v4-9000", "--days=1"], ["the largest 4,096", "v4-2x4096"]),
        (["--chips=v5p-512", "--days=14", "--mfu=2"], ["--mfu is 2", "between 0 and 1"]),
        (["--chips=v5p-64", "--days=1", "--flops=1e24"], ["of the peak", "more --days or --chips"]),
        (["--flops=1e15", "--chips=v5p-4096"], ["too large for the run", "chips or fewer"]),
        (["--params=8b", "--family=lama"], ["--family is 'lama'", "'llama'"]),
        (["--params=8b", "--law=chinchila"], ["--law is 'chinchila'", "'chinchilla'"]),
        (["--params=100", "--vocab_size=32000"], ["no model of 100 parameters", "the nearest has"]),
        (["--params=8b", "--tokens=100"], ["less than one batch"]),
        (["--params=8b", "--laws=/nowhere.json"], ["--laws", "/nowhere.json"]),
        (["--params=8b", "--precompiled=/nowhere.json"], ["--precompiled", "/nowhere.json"]),
        (["--flop=1e22"], ["no flag '--flop'", "--flops"]),
        (["--params=8b", "--vocab_size=1"], ["--vocab_size is 1"]),
        (["--params=8b", "--vocab_size=many"], ["--vocab_size is many; expected a whole number"]),
        (["--flops=1e22", "--shift=strong"], ["--shift has no meaning", "it belongs to --domain_tokens"]),
        (["--chips=v5p-512", "--days=2 weeks"], ["--days is '2 weeks'", "such as 14"]),
        (["--params=8b", "--tokens=1t", "--chips=v5p-16", "--days=1"], ["in 24.0 hours are 3.17e+20", "leave one"]),
        (["--params=8b", "--output="], ["--output is empty"]),
        (["--params=8b", "--report="], ["--report is empty"]),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else None,
)
def test_the_impossible_is_refused_in_one_line(words, parts, capsys):
    assert main(["plan", *words]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("t5x_scale: error: ")
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err
    assert not captured.out


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from t5x_scale.main import main; main(['plan', '--flops=1e22', '--unique_tokens=30e9'])\n"
        "heavy = ('jax', 'flax', 'tensorflow', 'seqio', 'optax', 'matplotlib', 'orbax')\n"
        "print('heavy:', [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_every_law_can_be_asked_for(capsys):
    assert main(["plan", "--flops=1e22", "--explain"]) == 0
    text = capsys.readouterr().out
    for law in ("besiroglu", "chinchilla_envelope", "deepseek_batch", "porian_beta2", "vocabulary_derivative"):
        assert law in text
    assert text.count("because: ") >= 10


def test_another_plan_is_not_overwritten_silently(tmp_path, capsys):
    words = ["plan", "--params=8b", f"--output={tmp_path}"]
    assert main([*words, "--vocab_size=32k"]) == 0
    assert main([*words, "--vocab_size=32k"]) == 0
    text = capsys.readouterr().out
    assert "vocabulary     32,000" in text
    assert "overwrites" not in text
    assert main([*words, "--vocab_size=64k"]) == 0
    assert "plan.json: A run for params=8b, vocab_size=32k" in capsys.readouterr().out


def test_a_picture_that_cannot_be_written(tmp_path, capsys):
    assert main(["plan", "--flops=1e20", f"--report={tmp_path}/none/plan.png"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("t5x_scale: error: --report: cannot write")
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["--flops=1e20"], ["--params=1b", "--domain_tokens=1b", "--shift=weak"]])
def test_a_picture(words, tmp_path, capsys):
    path = tmp_path / "plan.png"
    assert main(["plan", *words, f"--report={path}"]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert f"picture: {path}" in capsys.readouterr().out
