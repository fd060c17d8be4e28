"""Joining the other processes of a run, with JAX's own part in it taken by a stand-in."""

import sys
import types

import jax
import pytest

from t5x_scale.core import distributed
from t5x_scale.core.distributed import LOST, ProcessConfig, has_lost_others, join_run, leave_run, wait_for_all
from t5x_scale.core.errors import UserError
from t5x_scale.core.launchers import ADDRESS, COUNT, INDEX

PLACE = {ADDRESS: "10.0.0.1:1234", COUNT: "4", INDEX: "3"}


@pytest.fixture
def initialised(monkeypatch):
    """The calls of `jax.distributed.initialize`, which does nothing here."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    return calls


@pytest.fixture
def joined(monkeypatch):
    """A process that is one of several, as far as this module knows."""
    words = types.SimpleNamespace(cancel=lambda: None)
    monkeypatch.setattr(distributed, "_joined", distributed._Joined(ProcessConfig(), words))


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_process_on_its_own(initialised):
    join_run()
    wait_for_all("nobody")
    assert initialised == []
    assert not distributed.is_joined()
    assert leave_run(7) == 7
    assert not has_lost_others(RuntimeError("Gloo AllGather failed"))


def test_a_place_and_the_times_to_wait(initialised, monkeypatch):
    set_all(monkeypatch, PLACE)
    join_run(ProcessConfig(1, 2, 3))
    assert initialised == [
        {
            "coordinator_address": "10.0.0.1:1234",
            "num_processes": 4,
            "process_id": 3,
            "local_device_ids": None,
            "cluster_detection_method": "deactivate",
            "initialization_timeout": 1,
            "heartbeat_timeout_seconds": 2,
            "shutdown_timeout_seconds": 3,
        }
    ]


def test_a_cloud_tpu_is_left_to_jax(initialised, monkeypatch):
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(type(jax.config), "jax_platforms", "tpu,cpu")
    join_run()
    (arguments,) = initialised
    assert set(arguments) == {"initialization_timeout", "heartbeat_timeout_seconds", "shutdown_timeout_seconds"}


def test_what_the_network_throws_is_one_line(monkeypatch):
    def refuse(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody there\nand a page of C++")

    set_all(monkeypatch, PLACE)
    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(UserError, match=r"cannot join .* \(DEADLINE_EXCEEDED: nobody there\); check"):
        join_run()


def test_pathways(initialised, monkeypatch):
    monkeypatch.setattr(type(jax.config), "jax_platforms", "proxy")
    monkeypatch.delenv("JAX_BACKEND_TARGET", raising=False)
    with pytest.raises(UserError, match="JAX_BACKEND_TARGET"):
        join_run()
    monkeypatch.setenv("JAX_BACKEND_TARGET", "grpc://127.0.0.1:29000")
    monkeypatch.setitem(sys.modules, "pathwaysutils", None)
    with pytest.raises(UserError, match=r"pip install 't5x_scale\[pathways\]'"):
        join_run()
    calls = []
    monkeypatch.setitem(sys.modules, "pathwaysutils", types.SimpleNamespace(initialize=lambda: calls.append(1)))
    join_run()
    assert (calls, initialised) == ([1], []), "one process sees all devices: there is nobody to join"


@pytest.mark.parametrize("name", ["initialization", "heartbeat", "shutdown", "barrier"])
def test_no_time_to_wait(name):
    with pytest.raises(UserError, match=f"ProcessConfig.{name}_timeout_seconds is 0"):
        ProcessConfig(**{f"{name}_timeout_seconds": 0})


def test_whose_fault_it_is(joined):
    assert has_lost_others(ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"))
    assert has_lost_others(UserError(f"waited up to 3 s: {LOST}"))
    assert not has_lost_others(ValueError("the shapes differ"))
    outer = UserError("saving the checkpoint of step 3 failed")
    outer.__cause__ = jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out")
    assert has_lost_others(outer)
    # A bucket, not a process.
    outer.__cause__ = ValueError("UNAVAILABLE: 503 Service Unavailable")
    assert not has_lost_others(outer)
