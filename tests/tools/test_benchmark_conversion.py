"""The benchmark of conversions runs, and what it converts is what it says."""

import json
import pathlib
import subprocess
import sys

TOOL = pathlib.Path(__file__).parents[2] / "tools" / "benchmark_conversion.py"


def test_it_measures_every_line(tmp_path):
    command = [sys.executable, str(TOOL), "--gigabytes=0.004", "--width=128", f"--directory={tmp_path}"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    results = json.loads(output.splitlines()[-1])
    assert list(results) == ["cp", "copy", "double", "cp again"]
    assert results["copy"]["gigabytes"] < results["double"]["gigabytes"] < 2 * results["copy"]["gigabytes"]
    assert abs(results["copy"]["gigabytes"] - results["cp"]["gigabytes"]) < 1e-5
    assert all(result["seconds"] > 0 and result["peak_memory_gb"] > 0 for result in results.values())
    assert list(tmp_path.iterdir()) == []
