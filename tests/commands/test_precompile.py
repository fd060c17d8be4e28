"""Precompile refuses what train would, compiles what train runs, and says what it takes."""

import importlib.util

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.main import main
from t5x_scale.partitioning.topologies import topology_devices

COMMON = [
    "--gin_file=gin/optim/palm_adafactor.gin",
    "--gin.MODEL_DIR='none'",
    "--gin.MIXTURE_OR_TASK_NAME='any'",
    "--gin.VOCABULARY='any'",
    "--gin.TRAIN_STEPS=10",
]


def test_a_step_is_compiled_and_measured(capsys):
    run = [
        "--gin_file=gin/runs/pretrain.gin",
        "--gin_file=gin/objectives/ul2r.gin",
        "--gin_file=gin/hardware/cpu_8.gin",
    ]
    sizes = ["--gin.BATCH_SIZE=8", "--gin.TASK_FEATURE_LENGTHS={'targets': 64}"]
    assert main(["precompile", "--gin_file=gin/models/palm/tiny.gin", *COMMON, *run, *sizes]) == 0
    text = capsys.readouterr().out
    assert "8 x 64 tokens on data=2 x fsdp=2 x model=2 compiled in" in text
    assert "temporaries" in text


def test_ul2r_of_palm_540b_on_two_pods_in_a_dry_run(capsys):
    words = ["--gin_file=gin/models/palm/540b.gin", *COMMON[:-1], "--gin_file=gin/runs/ul2r.gin"]
    words += ["--gin_file=gin/hardware/v4_512.gin", "--gin.INITIAL_CHECKPOINT_PATH='palm'"]
    words += ["--gin.MeshConfig.fsdp=32", "--gin.MeshConfig.model=16"]
    assert main(["precompile", "--dry_run", *words]) == 0
    text = capsys.readouterr().out
    assert "540,356,474,880 parameters" in text
    assert "fsdp=32 x model=16" in text
    with pytest.raises(UserError, match="a \\(micro-\\)batch: dimension 0"):
        raise_errors(["precompile", "--dry_run", *words[:-2]])


def raise_errors(words):
    """`main` prints errors; here they are wanted."""
    from t5x_scale import main as module

    return module._main(words, module.COMMANDS, module.FLAGS, module.SUMMARIES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", r"unknown generation 'v9'"),
        ("v5p", r"expected a generation and a shape"),
        ("v5:4x4x4", r"unknown generation 'v5' \(did you mean"),
        (None, "TOPOLOGY is None"),
    ],
)
def test_a_topology_that_is_none(name, message):
    with pytest.raises(UserError, match=message):
        topology_devices(name)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package libtpu"):
        topology_devices("v5p:4x4x4")
