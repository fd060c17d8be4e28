"""Where gin files are found."""

import pathlib

import pytest

from t5x_scale.config import search
from t5x_scale.core.errors import UserError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with nothing beside it and nothing in it; the working directory is another, empty one."""
    (tmp_path / "site" / "t5x_scale").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(search, "gin_roots", lambda find=search.gin_roots: find(tmp_path / "site" / "t5x_scale"))
    return tmp_path / "site" / "t5x_scale"


def _write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_order(package, tmp_path):
    name = "gin/runs/a.gin"
    places = [
        tmp_path / "work" / name,
        tmp_path / "mine" / name,
        package.parent / name,
        package / "gin_files" / "runs/a.gin",
    ]
    for number, place in enumerate(places):
        _write(place, f"X = {number}")
    for number, place in enumerate(places):
        assert search.find_gin_file(name, [str(tmp_path / "mine")]).text == f"X = {number}"
        place.unlink()
    with pytest.raises(UserError, match=r"no gin file 'gin/runs/a.gin'"):
        search.find_gin_file(name)


@pytest.mark.parametrize("place", ["gin", "t5x_scale/gin_files"])
def test_leading_gin_may_be_left_out(package, place):
    _write(package.parent / place / "runs/a.gin", "X = 1")
    assert search.find_gin_file("runs/a.gin").text == "X = 1"
    assert search.find_gin_file("gin/runs/a.gin").text == "X = 1"


def test_gin_config_beside_an_installed_package_is_not_ours(package):
    _write(package.parent / "gin" / "__init__.py", "")
    _write(package.parent / "gin" / "runs" / "b.gin", "")
    assert search.gin_roots() == []


def test_absolute_and_home(package, tmp_path, monkeypatch):
    _write(tmp_path / "a.gin", "X = 1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert search.find_gin_file(str(tmp_path / "a.gin")).text == "X = 1"
    assert search.find_gin_file("~/a.gin").text == "X = 1"


def test_nearest_name(package):
    _write(package / "gin_files" / "models" / "palm" / "8b.gin", "")
    with pytest.raises(UserError, match=r"did you mean 'gin/models/palm/8b.gin'"):
        search.find_gin_file("gin/models/plam/8b.gin", wanted_by="run.gin:3")


def test_unreadable(package, tmp_path):
    (tmp_path / "work" / "a.gin").write_bytes(b"X = '\xff'")
    with pytest.raises(UserError, match=r"a\.gin is not a text file"):
        search.find_gin_file("a.gin")


def test_search_paths_of_the_command_line(cli, tmp_path):
    _write(tmp_path / "one" / "inner.gin", "TRAIN_STEPS = 4\n")
    _write(tmp_path / "two" / "run.gin", "include 'inner.gin'\n")
    result = cli("train", "--gin_file=run.gin", "--gin_search_paths=one,two")
    assert result.calls[0][1]["train_steps"] == 4


def test_the_repository_holds_no_python_in_gin():
    for root in search.gin_roots():
        assert not list(root.rglob("*.py"))
