"""The run that precompile assumes: usual sizes for a model on a machine, each changed by the flag that sets it."""

import functools
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from gin_files import ROOT, names

from t5x_scale.commands import COMMANDS
from t5x_scale.commands.precompiling import usual_run
from t5x_scale.config.load import Setting, load, make_arguments
from t5x_scale.core.errors import UserError
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.rules import fsdp_model
from t5x_scale.program import Runtime


def assumed(*files, **settings):
    """The arguments of precompile when it is given these files and no run file."""
    flags = [Setting(name.replace("__", "."), repr(value), f"--gin.{name}") for name, value in settings.items()]
    return make_arguments(load("precompile", COMMANDS, files=files, settings=flags, search_paths=[str(ROOT)]))


@pytest.mark.parametrize(
    ("model", "hardware", "optimizer", "rows", "length", "micro_batches"),
    [
        # PaLM's own batch on its own machine.
        ("palm/540b", "v4_2x3072", "PalmAdafactor", 2048, 2048, 1),
        ("palm/62b", "v4_512", "PalmAdafactor", 2048, 2048, 1),
        ("palm/8b", "v4_64", "PalmAdafactor", 2048, 2048, 8),
        ("llama2/7b", "v5p_64", "AdamW", 1024, 4096, 8),
        ("llama2/70b", "v5p_512", "AdamW", 1024, 4096, 1),
        ("pythia/1b", "v5e_16", "AdamW", 2048, 2048, 32),
        # As many positions as the table has.
        ("gpt2/1.5b", "h200_1", "AdamW", 4096, 1024, 512),
        # One row at least for each part of the mesh: 2,048 of them.
        ("llama/tiny", "v5p_2048", "AdamW", 1024, 4096, 1),
    ],
)
def test_sizes(model, hardware, optimizer, rows, length, micro_batches):
    made = assumed(f"gin/models/{model}.gin", f"gin/hardware/{hardware}.gin")
    program, data = made["program"], made["data"]
    assert made["assumes_usual_run"] is True
    assert type(program.optimizer).__name__ == optimizer
    assert data.schedule.sizes() == (rows,)
    assert data.sequence_length == length
    assert program.step.micro_batches == micro_batches
    Runtime(program, program.mesh.make_abstract_mesh()).check_batch_size(rows, length)


def test_never_less_than_a_row_for_each_part_of_the_mesh():
    lengths = {"targets": 131072}
    assert usual_run.rows(MeshConfig(fsdp=96), fsdp_model(), {"targets": 2**23}) == 96
    assert usual_run.rows(MeshConfig(fsdp=96), fsdp_model(), lengths) == 96
    assert usual_run.rows(MeshConfig(fsdp=24, model=4), fsdp_model(), lengths) == 48
    assert usual_run.micro_batches(MeshConfig(fsdp=96), fsdp_model(), 96, lengths) == 1


@pytest.mark.parametrize("lengths", [{"targets": 0}, {}, {"targets": -5}, {"target": 5}])
def test_lengths_that_cannot_be_are_said_as_of_the_data(lengths):
    for size in (usual_run.rows, functools.partial(usual_run.micro_batches, rows=64)):
        with pytest.raises(UserError, match=r"TASK_FEATURE_LENGTHS (must be|names the feature)"):
            size(MeshConfig(fsdp=64), fsdp_model(), lengths=lengths)


def test_micro_batches_divide_every_batch_of_a_schedule():
    schedule = ((0, 512), (1000, 1536))
    parts = usual_run.micro_batches(MeshConfig(fsdp=64), fsdp_model(), schedule, {"targets": 2048})
    assert parts == 8
    assert all(rows % (64 * parts) == 0 for _, rows in schedule)


def test_flags_and_files_change_it():
    files = ("gin/models/palm/8b.gin", "gin/optim/lion.gin", "gin/hardware/v4_64.gin")
    made = assumed(*files, BATCH_SIZE=256, TASK_FEATURE_LENGTHS={"targets": 1024}, REMAT="minimal", MICRO_BATCHES=2)
    assert type(made["program"].optimizer).__name__ == "Lion"
    assert made["data"].schedule.sizes() == (256,)
    assert made["data"].sequence_length == 1024
    assert made["program"].step.micro_batches == 2
    assert made["program"].model.module.remat == "minimal"


def test_a_run_file_takes_its_place():
    required = dict.fromkeys(("MODEL_DIR", "MIXTURE_OR_TASK_NAME", "VOCABULARY"), "any")
    files = ["gin/models/palm/8b.gin", "gin/optim/adamw.gin", "gin/runs/pretrain.gin", "gin/hardware/v4_64.gin"]
    made = assumed(*files, **required, TRAIN_STEPS=10000, BATCH_SIZE=128)
    assert "assumes_usual_run" not in made
    assert made["program"].step.micro_batches == 1


@pytest.mark.parametrize("name", [name for name in names("calibration") if "like" not in name])
def test_a_calibration_file_is_enough(name):
    made = assumed(name)
    program, data = made["program"], made["data"]
    runtime = Runtime(program, program.mesh.make_abstract_mesh())
    runtime.check_batch_size(*data.schedule.sizes(), data.sequence_length)
    assert made["topology"].startswith(pathlib.Path(name).stem.split("_")[-2])
    assert program.step.micro_batches == 1


@pytest.mark.parametrize(
    ("name", "billions"),
    [("maxtext_32b_v5p_64", 31.7), ("maxtext_128b_v5p_128", 125), ("maxtext_1024b_v5p_2048", 997)],
)
def test_published_shapes_have_as_many_parameters_as_published(name, billions):
    program = assumed(f"gin/calibration/{name}.gin")["program"]
    count = sum(row.count for row in Runtime(program, program.mesh.make_abstract_mesh()).parameter_rows())
    assert count / 1e9 == pytest.approx(billions, rel=0.005)
