"""A run whose tokens choose among experts: it learns, says how evenly they are used, goes on, and writes."""

import pathlib

import numpy as np
import pytest
from command_runner import devices, fingerprints, numbers

from t5x_scale.monitor.metric_log import read_metrics

EXPERTS = f"--gin_file={pathlib.Path(__file__).parent / 'experts.gin'}"
STEPS = 12


@pytest.fixture(scope="module")
def trained(runner, source, tmp_path_factory):
    path = tmp_path_factory.mktemp("experts") / "run"
    runner.run("train", EXPERTS, anew=True, MODEL_DIR=str(path), MIXTURE_OR_TASK_NAME=source)
    return path


def test_it_learns_and_records_what_its_layers_add(trained):
    metrics = numbers(read_metrics(trained))
    loss, balance, router_z = (metrics[f"train/{name}"][1] for name in ("loss", "balance_loss", "router_z_loss"))
    assert len(loss) == len(balance) == len(router_z) == STEPS
    assert loss[0] - loss[-1] > 0.3
    # 1e-2 is all experts used alike, 4e-2 one expert for all tokens.
    assert (balance > 0.00999).all()
    assert (balance < 0.02).all()
    assert (router_z > 0).all()


def test_a_dense_run_records_none_of_it(finished):
    assert not {"train/balance_loss", "train/router_z_loss"} & set(numbers(read_metrics(finished.path)))


def test_stopped_and_gone_on_to_the_same_bits(runner, source, trained, tmp_path):
    for steps in (5, STEPS):
        run = {"MODEL_DIR": str(tmp_path / "run"), "MIXTURE_OR_TASK_NAME": source, "TRAIN_STEPS": steps}
        runner.run("train", EXPERTS, **run)
    assert fingerprints(tmp_path / "run", STEPS) == fingerprints(trained, STEPS)
    series = [read_metrics(path).series["train/balance_loss"].values for path in (tmp_path / "run", trained)]
    np.testing.assert_array_equal(*series)


def test_on_eight_devices_with_experts_split_over_two(runner, source, trained, tmp_path):
    run = {"MODEL_DIR": str(tmp_path / "run"), "MIXTURE_OR_TASK_NAME": source, "MeshConfig__expert": 2}
    runner.run("train", EXPERTS, env=devices(8), **run)
    one, eight = numbers(read_metrics(trained)), numbers(read_metrics(tmp_path / "run"))
    assert one.keys() == eight.keys()
    for name in ("train/loss", "train/balance_loss", "train/router_z_loss", "optim/grad_norm"):
        np.testing.assert_allclose(eight[name][1], one[name][1], rtol=2e-3, err_msg=name)


def test_it_writes(runner, trained):
    words = (f"--gin_file={trained / 'config.gin'}", "--prompt=abc", "--max_new_tokens=4", "--temperature=0")
    process = runner.run("infer", *words, MODEL_DIR=str(trained))
    assert "abc" in process.out
