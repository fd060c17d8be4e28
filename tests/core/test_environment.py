"""What a run's bits depend on."""

import json

import jax

from t5x_scale.core import environment


def test_description(monkeypatch):
    # A backend that began with these flags would end the process.
    assert jax.devices()
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setenv("XLA_FLAGS", "--of --this test")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    found = environment.describe_environment()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["jax"] == jax.__version__
    assert found["backend"] == "cpu"
    assert found["device_count"] == 8
    assert found["process_count"] == 1
    assert found["cpu_cores"] == 2
    assert found["flags"]["XLA_FLAGS"] == "--of --this test"
    assert "LIBTPU_INIT_ARGS" not in found["flags"]
    assert environment.describe_environment() == found


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("jax", "no-such-package-at-all"))
    assert environment.describe_environment()["versions"]["no-such-package-at-all"] == "absent"


def test_cores_are_counted_where_none_are_set(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    assert environment.describe_environment()["cpu_cores"] == 5
    # Not every system says which cores a process may use.
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert environment.describe_environment()["cpu_cores"] == 7
