"""What a run says of itself: copies that need not be, and how its steps are compiled."""

import contextlib
import dataclasses
import json
import logging
import pathlib
import sys
import types

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "fakes"))

from gin_files import load_files, load_program

from t5x_scale import run_files
from t5x_scale.checkpoint import together
from t5x_scale.config.load import make_arguments
from t5x_scale.core import patience
from t5x_scale.core.errors import UnavailableError, UserError
from t5x_scale.partitioning.compiler_flags import CompilerFlags
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.rules import fsdp_model, make_rules
from t5x_scale.program import Runtime

TINY = "gin/models/palm/tiny.gin"


def runtime_of_8b(rules):
    program = load_program("gin/models/palm/8b.gin", hardware="gin/hardware/v4_64.gin")
    mesh = MeshConfig(fsdp=16, model=4)
    return Runtime(dataclasses.replace(program, mesh=mesh, rules=rules), mesh.make_abstract_mesh())


def test_large_copies_are_warned_of(caplog):
    rules = make_rules({**fsdp_model(), "mlp": None})
    with caplog.at_level(logging.WARNING):
        run_files.warn_of_copies(runtime_of_8b(rules))
    # 32 x 4096 x 16384 in float32 over 16 devices, which four devices hold alike.
    wanted = "decoder/layers/mlp/{}/kernel: 512 MiB on each of model=4 devices that hold the same"
    texts = [record.getMessage() for record in caplog.records]
    assert all(any(text.startswith(wanted.format(name)) for text in texts) for name in ("wi_0", "wi_1", "wo"))
    assert len(texts) == 3


def test_the_shipped_rules_leave_none(caplog):
    with caplog.at_level(logging.WARNING):
        run_files.warn_of_copies(runtime_of_8b(fsdp_model()))
    assert not caplog.records


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"xla_no_such_option": True}, "the compiler has no option 'xla_no_such_option': take it away with"),
        ({}, None),
        ({"xla_cpu_enable_fast_min_max": True}, None),
    ],
)
def test_an_option_that_the_compiler_does_not_know(extra, message):
    program = dataclasses.replace(load_program(TINY), compiler=CompilerFlags(extra=extra))
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        program.make(jax.devices()[:1]).check_compiler_options()


def test_compiler_options_are_on_record():
    settings = {"CompilerFlags__extra": {"xla_cpu_enable_fast_min_max": True}}
    files = (TINY, "gin/optim/adamw.gin", "gin/runs/pretrain.gin", "gin/hardware/cpu_1.gin")
    made = make_arguments(load_files("train", files, **settings))
    program = made["program"]
    assert isinstance(program.compiler, CompilerFlags)
    record = run_files.make_record(program.make(jax.devices()[:1]), made["data"], train_steps=10)
    assert record["environment"]["compiler_options"] == {"xla_cpu_enable_fast_min_max": True}
    json.dumps(record)


def test_what_one_process_refuses_ends_all(tmp_path, monkeypatch):
    """Here there is nothing to refuse; whoever went on would wait for the other."""
    seen = UserError("another holds a converted checkpoint (process 1 of 2)")
    monkeypatch.setattr(together.multihost, "share_error", lambda error: error or seen)
    with pytest.raises(UserError, match="process 1 of 2"):
        run_files.check_run(str(tmp_path), {"refused": {}}, train_steps=10)


def test_a_run_is_not_passed_over_as_its_storage_is_away(tmp_path, monkeypatch):
    """What belongs to another run would be written to."""

    def read_metadata(step):
        raise UnavailableError("away")

    manager = types.SimpleNamespace(steps=lambda: [1], read_metadata=read_metadata)
    monkeypatch.setattr(run_files, "CheckpointManager", lambda path: manager)
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    with pytest.raises(UnavailableError, match="away; nothing was changed"):
        run_files.check_run(str(tmp_path), {"refused": {}}, train_steps=10)
