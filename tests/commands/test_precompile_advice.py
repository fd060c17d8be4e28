"""What to change when a step does not fit: the flags exist, and each makes the step smaller in the way it says."""

import dataclasses
import functools
import pathlib
import re
import sys
import types

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

import jax
from gin_files import ROOT

from t5x_scale.commands import COMMANDS
from t5x_scale.commands.precompiling.advice import advise
from t5x_scale.commands.precompiling.attempt import find_crowding
from t5x_scale.commands.precompiling.memory import StepMemory
from t5x_scale.config.load import Setting, load, make_arguments
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Runtime

FILES = ("gin/models/palm/tiny.gin", "gin/hardware/cpu_8.gin")
GIB = 2**30


@functools.cache
def program(**settings):
    flags = [Setting(name.replace("__", "."), value, f"--gin.{name}") for name, value in settings.items()]
    return make_arguments(load("precompile", COMMANDS, files=FILES, settings=flags, search_paths=[str(ROOT)]))[
        "program"
    ]


def advice(mesh=None, rows=64, state=GIB, available=10 * GIB, **settings):
    made = program(MICRO_BATCHES="1", **settings)
    made = dataclasses.replace(made, mesh=mesh or made.mesh)
    return advise(Runtime(made, made.mesh.make_mesh(jax.devices())), rows, state, available)


def test_in_the_order_of_what_they_cost():
    lines = advice(REMAT="'minimal'")
    assert [line.split(":")[0] for line in lines] == [
        "save less of each layer",
        "work on fewer rows at once, 8 of 16",
        "let more devices share each row",
    ]


def test_the_flags_are_taken_and_do_what_they_say():
    flags = re.findall(r"--gin\.(\S+?)=(\S+)", " ".join(advice(REMAT="'minimal'")))
    made = program(**{name.replace(".", "__"): value.replace("\\", "") for name, value in flags})
    assert made.model.module.remat == "full"
    assert made.step.micro_batches == 2
    assert (made.mesh.fsdp, made.mesh.model) == (1, 4)
    made.make()


def test_nothing_that_does_not_divide():
    # Already full, a row each, and an odd number of devices along fsdp.
    assert advice(mesh=MeshConfig(fsdp=1, model=4, data=2), rows=2, REMAT="'full'") == []
    assert not any("share each row" in line for line in advice(mesh=MeshConfig(fsdp=2, model=4), REMAT="'full'"))


def test_a_state_that_is_too_large_alone():
    lines = advice(state=12 * GIB)
    assert lines[0] == "parameters and optimiser alone take 12.00 GiB a device: use more devices"
    assert "--gin.MeshConfig.fsdp=-1" in lines[1]
    assert len(advice(mesh=MeshConfig(fsdp=8), state=12 * GIB)) == 1


@pytest.mark.parametrize("available", [None, 10 * GIB])
def test_without_a_known_size(available):
    assert advice(available=available, state=1, REMAT="'full'")


def step_memory(share):
    return StepMemory(10 * GIB, 20 * GIB, 0, 30 * GIB, 20 * GIB, 0, 0, peak=int(share * 64 * GIB), usable=64 * GIB)


@pytest.mark.parametrize(
    ("share", "waiting", "is_crowded"), [(0.95, 0.34, True), (0.83, 0.34, False), (0.95, 0.1, False)]
)
def test_a_step_that_waits_for_want_of_memory_is_told_so(share, waiting, is_crowded):
    prediction = types.SimpleNamespace(seconds=10.0, exposed=10 * waiting)
    said = find_crowding(step_memory(share), prediction)
    assert bool(said) == is_crowded
    if is_crowded:
        assert "34% of the step, with 95% of the memory" in said


def test_the_table_says_why_its_parts_are_more_than_the_whole():
    assert "less than its parts" in step_memory(0.9).lines()[-1]
    assert "less than its parts" not in "".join(dataclasses.replace(step_memory(0.9), peak=None).lines())
