"""The demonstrations of continued training from their files to the verdict, on runs that nobody trained."""

import dataclasses
import importlib
import json
import pathlib
import sys

import pytest

from t5x_scale.commands import COMMANDS
from t5x_scale.config.load import load, make_arguments

ROOT = pathlib.Path(__file__).parents[2]
# Correct answers of ten, in each of 40 rows: from the left, from both sides, and from both sides in place.
LEFT, BOTH, IN_PLACE = 6, 3, 8


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.chdir(ROOT)
    for name in ("continue_demo", "infill_demo"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in ("continue_demo", "infill_demo")}


def comparisons(tools):
    return {"continue": tools["continue_demo"].CONTINUE_DEMO, "infill": tools["infill_demo"].INFILL_DEMO}


def settings(path):
    return make_arguments(load("train", COMMANDS, [path], []))


@pytest.mark.parametrize("name", ["continue", "infill"])
def test_arms_go_on_alike(tools, name):
    """Same steps, batch, seed and text, from the base that is measured: but for what an arm is about."""
    comparison = comparisons(tools)[name]
    base = settings(comparison.base_file)
    assert base["model_dir"] == str(comparison.base)
    arms = {arm: settings(f"{comparison.files}/{arm}.gin") for arm in comparison.arms}
    for arm, made in arms.items():
        assert made["model_dir"] == str(comparison.root / arm)
        assert made["train_steps"] == arms["plain"]["train_steps"]
        assert made["data"].batch_size == base["data"].batch_size
        assert made["data"].seed == tools["continue_demo"].SEED != base["data"].seed
        assert made["data"].mixture_rates == tools["continue_demo"].SHARES
        if arm not in (*comparison.reshaped, "scratch"):
            assert made["initial_checkpoint_path"] == str(comparison.base)
            assert made["program"].model == base["program"].model
    assert {arm for arm in arms if getattr(arms[arm]["data"].objective, "in_place", False)} == set(comparison.in_place)


def pretend(root, asked):
    """What stands for the commands: runs with a speed, and answers counted by hand."""

    def run(program, arguments):
        asked.append(" ".join([*program, *arguments]))
        words = dict(word.removeprefix("--").split("=", 1) for word in arguments if "=" in word)
        if arguments[0] == "train":
            name = pathlib.Path(settings(words["gin_file"])["model_dir"]).name
            directory = root / name / "metrics"
            directory.mkdir(parents=True)
            line = {"step": 1, "time": 1.0, "throughput/tokens_per_second": 700.0}
            (directory / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        elif arguments[0] == "measure":
            rows = answers(IN_PLACE if "in_place.gin" in words["gin_file"] else BOTH)
            pathlib.Path(words["output"]).write_text(json.dumps({"rows": rows}))

    return run


def answers(both):
    correct = {"causal_lm": 5, "span_from_left": LEFT, "span_from_both_sides": both}
    return {
        f"{task}.{objective}": {
            "cross_entropy": [20.0] * 40,
            "correct": [float(count)] * 40,
            "weight": [10.0] * 40,
            "tokens": task,
        }
        for task in ("stdlib_code", "stdlib_docs")
        for objective, count in correct.items()
    }


@pytest.fixture
def go_through(tools, monkeypatch, tmp_path):
    """Runs a comparison on what `pretend` makes: its text, its figures and what it asked for."""

    def go(name):
        root, asked = tmp_path / "runs", []
        comparison = comparisons(tools)[name]
        comparison = dataclasses.replace(comparison, root=root, base=root / comparison.base.name)
        monkeypatch.setattr(tools["continue_demo"], "run", pretend(root, asked))
        text = comparison.run()
        return text, json.loads((root / "results.json").read_text()), asked

    return go


def forms(asked):
    """Whether a model was asked for spans in place."""
    return {word.split("--output=")[1].split("/")[-1]: "in_place.gin" in word for word in asked if "--output" in word}


def test_infill_demo(go_through):
    text, kept, asked = go_through("infill")
    assert "(b) UL2R, spans in place given both sides is above (a) plain continuation given the left: +0.2000" in text
    assert kept["infilling"]["ul2r against plain"]["low"] > 0
    assert kept["models"]["(a) plain continuation"]["tokens_per_second"] == 700
    assert forms(asked) == {"before.json": False, "plain.json": False, "ul2r.json": True}


def test_continue_demo(go_through):
    text, kept, asked = go_through("continue")
    assert "(b) UL2R given both sides is below the demonstration's model, before given the left: -0.3000" in text
    assert (len(kept["models"]), len(kept["infilling"])) == (7, 4)
    assert [name for name, in_place in forms(asked).items() if in_place] == ["in_place.json"]
    reshaped = [word.split()[-1].split("/")[-1] for word in asked if " reshape " in word]
    assert reshaped == ["deeper_start", "expanded_start"]
