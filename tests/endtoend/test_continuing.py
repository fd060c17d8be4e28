"""A run is made deeper and goes on, by way of the disk or straight into shards; it goes out and comes back."""

import json
import pathlib
import shutil

import pytest
from command_runner import contents, fingerprints

from t5x_scale.monitor.metric_log import read_metrics

SURGERIES = f"--gin_file={pathlib.Path(__file__).parent / 'surgeries.gin'}"


def parameters(model_dir, step):
    return {path: mark for path, mark in fingerprints(model_dir, step).items() if path.startswith("params/")}


@pytest.fixture(scope="module")
def deeper(runner, finished, tmp_path_factory):
    """The finished run with each of its layers twice, as `reshape` writes it."""
    output = tmp_path_factory.mktemp("reshaped") / "deeper"
    process = runner.run("reshape", SURGERIES, str(finished.path), str(output))
    assert "copied from decoder/layers/mlp/wo/kernel (layers 0, 0-1, 1)" in process.out
    assert f"written to {output}" in process.out
    return output


@pytest.fixture(scope="module")
def exported(runner, deeper, tmp_path_factory):
    """`deeper` in the format of others. Not to be touched."""
    output = tmp_path_factory.mktemp("exported") / "hugging_face"
    runner.run("export", str(deeper), str(output))
    return output


@pytest.fixture(scope="module")
def afresh(runner, source, deeper, tmp_path_factory):
    """Three steps on from `deeper` without its moments."""
    path = tmp_path_factory.mktemp("afresh") / "run"
    run_from(runner, source, deeper, path, INITIAL_OPTIMIZER="reset")
    return path


def run_from(runner, source, checkpoint, model_dir, *flags, **more):
    run = {"MODEL_DIR": str(model_dir), "MIXTURE_OR_TASK_NAME": source, "INITIAL_CHECKPOINT_PATH": str(checkpoint)}
    run |= {"TRAIN_STEPS": 3, "ModelConfig__num_layers": 4, "INITIAL_OPTIMIZER": "restore"}
    return runner.run("train", *flags, **(run | more))


def test_by_way_of_the_disk_or_straight_into_shards_is_the_same(runner, source, finished, deeper, afresh, tmp_path):
    run_from(runner, source, deeper, tmp_path / "disk")
    run_from(runner, source, finished.path, tmp_path / "straight", SURGERIES)
    assert fingerprints(tmp_path / "disk", 3) == fingerprints(tmp_path / "straight", 3)
    assert "layers 0, 0-1, 1" in (tmp_path / "straight" / "origin.txt").read_text()
    recorded = json.loads((tmp_path / "straight" / "run.json").read_text())["recorded"]
    assert recorded["initial_transforms"] == [{"class": "Interleave", "optimizer": "map", "times": 2}]
    assert recorded["initial_optimizer"] == "restore"
    # With its moments it goes another way than afresh.
    assert parameters(afresh, 3) != parameters(tmp_path / "disk", 3)
    first = [read_metrics(path).series["train/loss"].values[0] for path in (tmp_path / "disk", afresh)]
    assert first[0] == first[1]


def test_its_own_gin_file_is_a_model(runner, source, deeper, tmp_path):
    """model.gin over the run's file: the number of layers comes from there."""
    run = {"MODEL_DIR": str(tmp_path / "new"), "MIXTURE_OR_TASK_NAME": source, "TRAIN_STEPS": 1}
    process = runner.run(
        "train", f"--gin_file={deeper / 'model.gin'}", **run, INITIAL_CHECKPOINT_PATH=str(deeper), REMAT="none"
    )
    assert "layers" not in process.err
    assert "computes otherwise" not in process.err


def test_out_to_others_and_back(runner, deeper, exported, tmp_path):
    # 12 steps of 8 rows of 32 tokens.
    assert "tokens trained on with t5x_scale: 3,072" in (exported / "README.md").read_text()
    config = json.loads((exported / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("cohere", 4)
    runner.run("import", str(exported), str(tmp_path / "back"))
    assert parameters(tmp_path / "back", 0) == parameters(deeper, 0)


def test_a_foreign_checkpoint_is_evaluated_and_continued_as_it_is(runner, source, exported, afresh, tmp_path):
    run_from(runner, source, exported, tmp_path / "new", INITIAL_OPTIMIZER="reset")
    assert fingerprints(tmp_path / "new", 3) == fingerprints(afresh, 3)


def test_a_merge_of_two_steps(runner, finished, tmp_path):
    first, last = (finished.path / "checkpoints" / step for step in ("9", "12"))
    average = "--gin_file=" + str(tmp_path / "average.gin")
    (tmp_path / "average.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom t5x_scale.commands import reshape\n"
        "from t5x_scale.surgery import merging\nreshape.reshape.merge = @merging.Average()\n"
    )
    process = runner.run("reshape", average, f"--merge_with={first}", str(last), str(tmp_path / "mean"))
    assert "merged from" in process.out
    merged = parameters(tmp_path / "mean", 0)
    assert merged.keys() == parameters(finished.path, 12).keys()
    assert merged not in (parameters(finished.path, 12), parameters(finished.path, 9))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reshape", "SOURCE", "new"], "reshape has nothing to do"),
        (["reshape", SURGERIES, "SOURCE", "SOURCE"], "nothing is overwritten"),
        (["reshape", SURGERIES, "SOURCE"], "t5x_scale reshape SOURCE OUTPUT"),
        (["import", "nowhere", "new"], "nowhere does not exist"),
        (["export", "SOURCE", "new", "--family=llamma"], "did you mean 'llama'"),
        (["export", "SOURCE", "new", "--family=llama"], "llama"),
        (["import", "SOURCE", "new", "--dtype=float23"], "did you mean 'float32'"),
        (["reshape", SURGERIES, "--gin.Interleave.times=1", "SOURCE", "new"], "Interleave.times is 1"),
    ],
)
def test_mistakes_are_said_in_one_line_and_leave_nothing(runner, finished, tmp_path, words, message):
    before = contents(finished.path)
    words = [{"SOURCE": str(finished.path), "new": str(tmp_path / "new")}.get(word, word) for word in words]
    process = runner.run(words[0], *words[1:], code=1)
    assert message in process.err
    assert len(process.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert contents(finished.path) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"INITIAL_CHECKPOINT_PATH": "PLACE/deepr"}, "did you mean 'deeper'"),
        ({"ModelConfig__num_layers": 3}, "the model needs [3, "),
        ({"INITIAL_OPTIMIZER": "restored"}, "did you mean 'restore'"),
    ],
)
def test_a_beginning_that_does_not_fit_is_refused_before_data_is_made(
    runner, source, deeper, tmp_path, settings, message
):
    path = settings.get("INITIAL_CHECKPOINT_PATH", str(deeper)).replace("PLACE", str(deeper.parent))
    run = {"MODEL_DIR": str(tmp_path / "new"), "MIXTURE_OR_TASK_NAME": source, "ModelConfig__num_layers": 4}
    assert message in runner.run("train", code=1, **(run | settings | {"INITIAL_CHECKPOINT_PATH": path})).err
    assert not (tmp_path / "new").exists()


def test_rows_shorter_than_the_context_do_not_shorten_it(runner, source, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "there")
    config = json.loads((tmp_path / "there" / "config.json").read_text())
    (tmp_path / "there" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    runner.run("import", str(tmp_path / "there"), str(tmp_path / "base"))
    run_from(runner, source, tmp_path / "base", tmp_path / "run", INITIAL_OPTIMIZER="reset")
    runner.run("export", str(tmp_path / "run"), str(tmp_path / "again"))
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["max_position_embeddings"], again["max_position_embeddings"]) == (32, 4096)


def test_a_converted_directory_is_no_run(runner, source, deeper):
    before = contents(deeper)
    run = {"MODEL_DIR": str(deeper), "MIXTURE_OR_TASK_NAME": source, "ModelConfig__num_layers": 4}
    assert "holds a converted checkpoint, not a run" in runner.run("train", code=1, **run).err
    assert contents(deeper) == before
