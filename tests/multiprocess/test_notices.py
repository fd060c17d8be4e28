"""The platform tells one process of two that its machine will be taken away: both stop at the same step, saved."""

import pathlib
import sys

from command_runner import devices, free_address, steps

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from metadata_server import FakeMetadata


def test_one_machine_is_taken_away(runner, settings, tmp_path):
    run = tmp_path / "run"
    given = {**settings, "MODEL_DIR": str(run), "TRAIN_STEPS": 1_000_000, "MAX_EPOCHS": None}
    given["PreemptionConfig__poll_seconds"] = 0.05
    place = (f"--coordinator_address={free_address()}", "--num_processes=2")
    with FakeMetadata() as server:
        first, second = (
            runner.start("train", *place, f"--process_id={index}", env={**devices(4), **more}, **given)
            for index, more in ((0, {"GCE_METADATA_HOST": "127.0.0.1:9"}), (1, {"GCE_METADATA_HOST": server.address}))
        )
        first.until(lambda process: " | loss " in process.out)
        server.answers["preempted"] = "TRUE"
        assert [process.wait() for process in (first, second)] == [75, 75], first.err
    assert f"stopped at step {steps(run)[-1]} and saved" in first.out
    assert "the platform announces preempted: TRUE" in second.err
    assert "the platform announces" not in first.err
