"""A grid is its runs, each with what the planner or gin says of it."""

import json
import pathlib

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.sweeps.grid import list_points, load_grid, make_grid
from t5x_scale.sweeps.jobs import is_finished, make_jobs, mark_finished, to_gin

PLAN = {"family": "palm", "vocab_size": 640, "length": 128, "chips": "cpu"}


def grid(**record):
    return make_grid({"output": "runs/x", **record}, "grid.json")


def test_axes_are_combined_and_points_added():
    made = grid(axes={"params": [1e5, 2e5], "tokens": [1e6]}, points=[{"params": 4e5, "tokens": 1e6}], plan=PLAN)
    assert [point.name for point in list_points(made)] == [
        "params_100000-tokens_1e06", "params_200000-tokens_1e06", "params_400000-tokens_1e06"
    ]  # fmt: skip


def test_a_point_that_the_axes_have_already_is_one_run():
    made = grid(axes={"params": [1e5], "tokens": [1e6]}, points=[{"params": 100000, "tokens": 1000000}], plan=PLAN)
    assert len(list_points(made)) == 1


def test_the_planner_writes_the_run_of_a_size():
    (job,) = make_jobs(grid(axes={"params": [1e5], "tokens": [1e6]}, plan=PLAN, gin_files=["mine.gin"]))
    assert job.gin_files == (f"{job.model_dir}/model.gin", f"{job.model_dir}/run.gin", "mine.gin")
    assert "vocab_size = 640" in job.texts["model.gin"]
    assert "TRAIN_STEPS" in job.texts["run.gin"]
    assert job.flops == pytest.approx(8e11, rel=0.2)
    assert job.words[0] == "train"
    assert f"--gin.MODEL_DIR='{job.model_dir}'" in job.words


def test_a_budget_and_a_size_give_the_tokens():
    (job,) = make_jobs(grid(points=[{"flops": 1e12, "params": 2e5}], plan=PLAN))
    assert job.flops == pytest.approx(1e12, rel=0.03)


def test_shares_and_settings():
    record = {"axes": {"ratio": [0.25, 1], "data": [{"A": "%B", "mesh.MeshConfig.fsdp": 2}]}, "settings": {"C": None}}
    first, last = make_jobs(grid(**record, domain="code", general="docs"))
    assert first.settings["MIXTURE_RATES"] == "{'code': 0.25, 'docs': 0.75}"
    assert last.settings["MIXTURE_RATES"] == "{'code': 1}"
    assert (first.settings["A"], first.settings["C"], first.settings["mesh.MeshConfig.fsdp"]) == ("%B", "None", "2")
    assert not first.texts


def test_gin_text():
    assert to_gin({"a": [1, "b", "@c"], "d": True}) == "{'a': [1, 'b', @c], 'd': True}"


def test_a_finished_run_is_known_by_its_settings(tmp_path):
    record = {"output": str(tmp_path / "x"), "axes": {"params": [1e5], "tokens": [1e6]}, "plan": PLAN}
    (job,) = make_jobs(make_grid(record, "grid"))
    assert not is_finished(job)
    (tmp_path / "x" / job.name).mkdir(parents=True)
    mark_finished(job)
    assert is_finished(job)
    # Its reasons may be put otherwise.
    job.texts["run.gin"] = "# other words\n" + job.texts["run.gin"]
    assert is_finished(job)
    (other,) = make_jobs(make_grid({**record, "settings": {"SEED": 1}}, "grid"))
    with pytest.raises(UserError, match="other settings"):
        is_finished(other)


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ({"axes": {"params": [1e5]}}, "two of params, tokens, flops"),
        ({"axes": {"params": [-1], "tokens": [1e6]}}, "positive number"),
        ({"axes": {"parms": [1e5], "tokens": [1e6]}}, "params"),
        ({"axes": {"ratio": [0.5]}}, "name both"),
        ({"axes": {"ratio": [1.5]}, "domain": "a", "general": "b"}, "share from 0 to 1"),
        ({"axes": {"SEED": 3}}, "list of values"),
        ({"axes": {"SEED": []}}, "list of values"),
        ({}, "nothing varies"),
        ({"axis": {"SEED": [1]}}, "axes"),
        ({"axes": {"SEED": [1]}, "plan": {"familiy": "palm"}}, "family"),
        ({"axes": {"SEED": [1]}, "output": ""}, "needs 'output'"),
        ({"axes": {"SEED": [1]}, "gin_files": "a.gin"}, "expected a list"),
        ({"points": [3]}, "point 0"),
    ],
)
def test_what_is_no_grid(record, part):
    with pytest.raises(UserError, match=part):
        grid(**record)


def test_a_grid_like_another(tmp_path):
    (tmp_path / "usual.json").write_text(json.dumps({"settings": {"A": 1, "B": 1}, "plan": PLAN}))
    own = {"like": "usual.json", "about": "…", "output": "x", "settings": {"B": 2}, "axes": {"SEED": [1]}}
    (tmp_path / "own.json").write_text(json.dumps(own))
    made = load_grid(str(tmp_path / "own.json"))
    assert made.settings == {"A": 1, "B": 2}
    assert made.plan == PLAN


@pytest.mark.parametrize("path", sorted(pathlib.Path("gin/runs/sweep_demo").glob("[!_]*.json")), ids=str)
def test_the_grids_of_the_demonstration(path):
    jobs = make_jobs(load_grid(str(path)))
    assert jobs
    assert all(job.settings["VOCABULARY"] == "'bytes'" for job in jobs)


def test_files_that_are_no_grid(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_grid(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_grid(str(tmp_path / "bad.json"))
    (tmp_path / "list.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="is an object"):
        load_grid(str(tmp_path / "list.json"))
