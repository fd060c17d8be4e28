"""A run goes on with other numbers of processes and on other meshes, one after another: the same run throughout."""

import json

import numpy as np
from command_runner import devices, free_address, numbers

from t5x_scale.checkpoint import layout
from t5x_scale.monitor.metric_log import read_metrics

# Eight devices in all. Each stay is as long as `PART` steps.
STAYS = (
    (1, {"data": 2, "fsdp": 4}),
    (4, {"data": 8}),
    (2, {"fsdp": 8}),
    (4, {"fsdp": 4, "model": 2}),
    (1, {"data": 4, "model": 2}),
    (2, {"data": 2, "fsdp": 2, "model": 2}),
    (1, {"fsdp": 2, "data": 4}),
)
PART, TOLERANCE = 6, 5e-5
STEPS = PART * len(STAYS)


def data_position(model_dir, step):
    """Which data comes next, and from what."""
    return layout.read_document(layout.step_directory(model_dir / layout.CHECKPOINTS, step)).metadata["data"]


def test_another_mesh_and_number_of_processes(runner, settings, tmp_path, record_property):
    settings = {**settings, "CheckpointConfig__save_every_steps": PART, "CheckpointConfig__keep": None}

    def train(model_dir, processes, mesh, until):
        given = {**settings, **{f"MeshConfig__{axis}": size for axis, size in mesh.items()}}
        given |= {"MODEL_DIR": str(model_dir), "TRAIN_STEPS": until}
        table = ["--gin_file=gin/sharding/fsdp_model.gin"] if "model" in mesh else []
        place = (f"--coordinator_address={free_address()}", f"--num_processes={processes}")
        started = [
            runner.start("train", *table, *place, f"--process_id={i}", env=devices(8 // processes), **given)
            for i in range(processes)
        ]
        assert [process.wait() for process in started] == [0] * processes, started[0].err

    run, whole = tmp_path / "run", tmp_path / "whole"
    train(whole, *STAYS[0], STEPS)
    for number, (processes, mesh) in enumerate(STAYS, 1):
        train(run, processes, mesh, number * PART)
        record_property("cases", number)
    ours, theirs = numbers(read_metrics(run)), numbers(read_metrics(whole))
    losses = theirs["train/loss"][1]
    assert len(losses) == STEPS
    # Neighbouring steps have other batches, and it shows: equal losses are equal data.
    assert np.abs(np.diff(losses)).min() > 4 * TOLERANCE
    for name in ("train/loss", "train/tokens", "train/weight", "optim/learning_rate"):
        np.testing.assert_array_equal(ours[name][0], theirs[name][0], err_msg=name)
        np.testing.assert_allclose(ours[name][1], theirs[name][1], atol=TOLERANCE, rtol=0, err_msg=name)
    for step in range(PART, STEPS + 1, PART):
        assert data_position(run, step) == data_position(whole, step), step
    lines = map(json.loads, (run / "metrics" / "metrics.jsonl").read_text().splitlines())
    starts = [(line["step"], line["processes"]) for line in lines if line.get("event") == "start"]
    assert starts == [(number * PART, processes) for number, (processes, _) in enumerate(STAYS)]
    record_property("shown", f"losses within {np.abs(ours['train/loss'][1] - losses).max():.1e}")
