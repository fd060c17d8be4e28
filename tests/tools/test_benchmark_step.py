"""The floor of the benchmark is honest: its products are the FLOPs that MFU counts, no more and no fewer."""

import importlib.util
import pathlib

import pytest

from t5x_scale.models import accounting
from t5x_scale.models.config import ModelConfig

PATH = pathlib.Path(__file__).parents[2] / "tools" / "benchmark_step.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_step", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["llama-50m", "llama-1b", "llama-8b"])
def test_floor_has_the_flops_of_a_step(benchmark, name):
    config, rows, length = ModelConfig(*benchmark.CONFIGS[name]), 4, 512
    products = benchmark.matrix_products(config, rows, length)
    flops = sum(2 * b * m * k * n * count for (b, m, k, n), count in products.items())
    count = accounting.count_parameters(config, accounting.find_anatomy("llama"))
    assert flops == pytest.approx(rows * length * accounting.train_flops_per_token(count, config, length), rel=1e-9)
