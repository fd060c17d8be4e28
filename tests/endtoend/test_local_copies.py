"""A run that saves often in the memory of its machine: killed, it goes on from there, and from MODEL_DIR where that is
damaged or gone."""

import shutil

import pytest
from command_runner import check_same_metrics, fingerprints, steps

from t5x_scale.checkpoint import layout
from t5x_scale.monitor.metric_log import read_metrics


def local_steps(memory):
    return [step for place in memory.glob("*/0") for step in layout.list_steps(place)]


@pytest.fixture(scope="module")
def killed(runner, source, tmp_path_factory):
    """A run that was killed after step 10, with 6 in MODEL_DIR: the directory that holds `run` and `memory`."""
    place = tmp_path_factory.mktemp("killed")
    settings = set_up(place, source)
    process = runner.start("train", **settings).until(lambda _: max(local_steps(place / "memory"), default=0) >= 10)
    process.kill()
    process.wait()
    assert steps(place / "run") == [6], "killed too late to tell"
    return place


def set_up(place, source):
    return {
        "MODEL_DIR": str(place / "run"),
        "MIXTURE_OR_TASK_NAME": source,
        "CheckpointConfig__save_every_steps": 6,
        "CheckpointConfig__asynchronous": False,
        "CheckpointConfig__local_every_steps": 2,
        "CheckpointConfig__local_directory": str(place / "memory"),
    }


def damage(memory):
    for path in (path for path in memory.glob("*/0/*/**/*") if path.is_file()):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("disturb", "began", "said"),
    [
        (None, 10, ""),
        (damage, 6, "Falling back to step 6"),
        (shutil.rmtree, 6, ""),
    ],
    ids=["whole", "damaged", "gone"],
)
def test_it_goes_on_from_the_newest_that_is_whole(runner, source, finished, killed, tmp_path, disturb, began, said):
    place = tmp_path / "place"
    shutil.copytree(killed, place)
    if disturb is not None:
        disturb(place / "memory")
    resumed = runner.run("train", **set_up(place, source))
    assert said in resumed.err
    starts = [event["step"] for event in read_metrics(place / "run").events if event["event"] == "start"]
    assert starts == [0, began]
    assert steps(place / "run") == [6, 12]
    assert fingerprints(place / "run", 12) == fingerprints(finished.path, 12)
    check_same_metrics(place / "run", finished.path)
