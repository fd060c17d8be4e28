"""What an installation contains, beyond Python."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The files of a wheel, without the wheel around them."""
    pytest.importorskip("setuptools")
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(target)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return target


def _names(directory: pathlib.Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_gin_files(installed):
    ours = {str(path.relative_to(ROOT / "gin")) for path in (ROOT / "gin").rglob("*.gin")}
    assert ours
    assert {name for name in _names(installed / "t5x_scale" / "gin_files") if name.endswith(".gin")} == ours


def test_vocabularies(installed):
    data = pathlib.Path("t5x_scale/data/vocabularies")
    assert _names(installed / data) >= _names(ROOT / data)
    assert any(name.endswith("tokenizer.model") for name in _names(installed / data))


def test_tasks_and_nothing_else_at_the_top(installed):
    assert {path.name for path in installed.iterdir()} == {"t5x_scale", "tasks"}


def test_installed_gin_files_are_found_from_anywhere(installed, tmp_path):
    name = next(path.relative_to(ROOT) for path in sorted((ROOT / "gin").rglob("*.gin")))
    code = (
        "from t5x_scale.config import search\n"
        f"file = search.find_gin_file({str(name)!r})\n"
        f"assert file.identity.startswith({str(installed.resolve())!r}), file\n"
    )
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
