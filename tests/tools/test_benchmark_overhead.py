"""The benchmark of what watching costs runs the loop as it is, with each part on in the variant of its name."""

import argparse
import importlib.util
import pathlib

import jax.numpy as jnp
import pytest

from t5x_scale.monitor.spikes import SpikeDetector

PATH = pathlib.Path(__file__).parents[2] / "tools" / "benchmark_overhead.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_overhead", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_variant_is_measured_and_only_that(benchmark, monkeypatch):
    seen = {"guard": 0, "fingerprints": 0, "heartbeats": 0}

    def counting(name, function):
        def call(*arguments, **keywords):
            seen[name] += 1
            return function(*arguments, **keywords)

        return call

    monkeypatch.setattr(benchmark, "make_document", counting("fingerprints", benchmark.make_document))
    monkeypatch.setattr(benchmark, "Health", counting("heartbeats", benchmark.Health))
    monkeypatch.setattr(SpikeDetector, "see", counting("guard", SpikeDetector.see))
    options = argparse.Namespace(steps=40, rounds=1, save_every=10)
    rows = benchmark.measure_host({"params/kernel": jnp.ones((8, 8))}, options)
    assert [row["variant"] for row in rows] == list(benchmark.VARIANTS)
    assert rows[0]["extra_host_ms"] == 0.0
    # Two rounds, in two of the five variants each.
    assert seen == {"guard": 4 * 40, "fingerprints": 4 * 3, "heartbeats": 4}
