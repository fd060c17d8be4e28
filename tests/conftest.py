"""Shared by every test: the platform is a CPU split into eight simulated devices, with a fixed thread pool."""

import gc
import os
import time

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# The thread pool's size decides how sums are split, and so the last bits of a result.
os.environ["NPROC"] = "2"
os.environ.setdefault("EPATH_USE_TF", "false")
# The program after the same passes on the same partitions, with less work by LLVM: a fifth of the compile time. Whole
# runs in tests/endtoend say for themselves which flags they are made with.
_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
)
_given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([_given, *(flag for flag in _FLAGS if flag not in _given)]).strip()
# Where in the sources an operation was made is a twentieth of tracing and lowering, and no test reads it.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# Collecting makes hardly any garbage, and looking for it is a quarter of its time: see pytest_collection_finish.
gc.disable()


def pytest_collection_modifyitems(items):
    """Whole runs and comparisons of trainings first: no process shall be left with one of them when the rest is done.

    It wants `--no-loadscope-reorder`: pytest-xdist by itself begins with the files of most tests, which are quick ones.
    """
    items.sort(key=lambda item: item.path.parent.name not in ("endtoend", "numerics"))


def pytest_collection_finish(session):
    """Modules and tests stay: what looks for garbage, a tenth of a trace's time, need not visit them again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were to be waited for; nobody waits."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited
