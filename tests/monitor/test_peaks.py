import pytest

from t5x_scale.monitor.peaks import peak_flops


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v2", 23),  # A device is a core: two a chip.
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA B200", 2250),
    ],
)
def test_peak_of_known_kinds(kind, teraflops):
    assert peak_flops(kind) == teraflops * 1e12


@pytest.mark.parametrize("kind", ["cpu", "", "TPU v99", "NVIDIA H1000", "NVIDIA GeForce RTX 4090", "Radeon"])
def test_no_peak_is_invented(kind):
    assert peak_flops(kind) is None
