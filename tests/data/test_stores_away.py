"""What the data is made of and cannot be reached is waited for, told, and neither taken for missing nor made anew."""

import errno
import os

import numpy as np
import pytest

from t5x_scale.core import files, patience
from t5x_scale.core.errors import UnavailableError, UserError
from t5x_scale.data import freezing, text_source
from t5x_scale.data.building.parts import find_part, list_parts, read_part, write_part
from t5x_scale.data.building.work import Part
from t5x_scale.data.catalog import Catalog
from t5x_scale.data.mixtures.named_mixture import look_up
from t5x_scale.data.rows import packing_plan_files
from t5x_scale.data.store_check import StoreCheck
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import load_vocabulary

SETTINGS = {"source": {"task": "t"}, "vocabulary_fingerprint": "v", "vocabulary_size": 99, "separator_id": 1}


pytestmark = pytest.mark.usefixtures("waits")


@pytest.fixture
def store(tmp_path):
    return freezing.freeze([np.array([5, 6, 7])], tmp_path / "s", **SETTINGS).directory


def hide(monkeypatch, path, number=errno.ESTALE, times=1000, module=os, name="stat"):
    """Has a function raise of one path for some times."""
    usual, left = getattr(module, name), [times]

    def act(given, *rest, **named):
        if str(given) == str(path) and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(path))
        return usual(given, *rest, **named)

    monkeypatch.setattr(module, name, act)


def never():
    raise AssertionError("built anew")


def test_a_store_that_is_away_is_not_built_anew(store, monkeypatch, waits):
    hide(monkeypatch, store / "manifest.json")
    for index in (0, 1):
        with pytest.raises(UnavailableError, match=r"^the token store .*/s cannot be read.*Stale.* goes on once it"):
            freezing.ensure(store, never, vocabulary_fingerprint="v", process_index=index)
    assert waits == 2 * list(patience.WAITS_SECONDS)


def test_a_store_that_was_away_for_a_moment_is_opened(store, monkeypatch, waits):
    hide(monkeypatch, store / "manifest.json", times=2)
    assert freezing.ensure(store, never, vocabulary_fingerprint="v").num_documents == 1
    assert waits == [1.0, 4.0]


@pytest.mark.parametrize("part", ["tokens/zarr.json", "tokens/c"])
def test_a_store_that_refuses_is_not_damaged(store, monkeypatch, part):
    hide(monkeypatch, store / part, errno.EACCES, name="stat" if part.endswith("c") else "open")
    with pytest.raises(UserError, match=r"the token store .* cannot be read, and may be sound: .*Permission denied$"):
        TokenStore.open(store)


def test_a_large_store_that_goes_away_while_it_is_checked_is_told_as_away(store, monkeypatch):
    opened = TokenStore.open(store)
    error = OSError(errno.ESTALE, "Stale file handle", "x")
    monkeypatch.setattr(TokenStore, "verify_documents", lambda self: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match="Stale") as raised:
        StoreCheck({"a": opened}, small=0).wait()
    assert raised.value.__cause__ is error


def test_names_of_sources_are_not_looked_up_elsewhere_as_the_stores_are_away(tmp_path, monkeypatch):
    hide(monkeypatch, tmp_path)
    with pytest.raises(UnavailableError, match=r"store_dir .* cannot be read"):
        look_up("some_task", Catalog(str(tmp_path), load_vocabulary("bytes")))


def test_whoever_waits_for_process_0_says_so(tmp_path, monkeypatch, caplog):
    """After 10 s, and every 3 minutes; what is waited for, where, and how long."""
    clock = iter(range(0, 100_000, 5))
    monkeypatch.setattr(freezing.time, "monotonic", lambda: next(clock))
    with pytest.raises(UserError, match="waited 1800 s for process 0"):
        freezing.ensure(tmp_path / "s", never, vocabulary_fingerprint="v", process_index=1)
    first, *others = caplog.messages
    assert first.startswith(f"waiting for process 0 to build the token store {tmp_path}/s (1")
    assert "gives up in 1" in first
    assert "every process must see the disk of store_dir" in first
    assert 7 <= len(others) <= 10


def test_whoever_waits_ends_when_the_storage_goes_away(tmp_path, monkeypatch, waits):
    looks = []

    def exists(path):
        looks.append(path)
        if len(looks) > 3:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(path))
        return False

    monkeypatch.setattr(files, "exists", exists)
    with pytest.raises(UnavailableError, match="not connected"):
        freezing.ensure(tmp_path / "s", never, vocabulary_fingerprint="v", process_index=1)
    assert waits[-3:] == list(patience.WAITS_SECONDS)


@pytest.mark.parametrize("pattern", ["*/a.txt", "**/*.txt", "sub/a.txt", "*/*"])
def test_files_of_a_directory_that_cannot_be_looked_into_are_not_passed_over(tmp_path, monkeypatch, pattern):
    (tmp_path / "b").mkdir()
    (tmp_path / "sub").mkdir()
    for folder in ("b", "sub"):
        (tmp_path / folder / "a.txt").write_text("x")
    assert text_source.list_files(f"text:{tmp_path}/{pattern}")
    hide(monkeypatch, tmp_path / "sub", errno.EACCES, name="scandir")
    hide(monkeypatch, tmp_path / "sub" / "a.txt", errno.EACCES)
    with pytest.raises(UserError, match=r"the directories of .* cannot be read.*Permission denied"):
        text_source.list_files(f"text:{tmp_path}/{pattern}")


def test_a_file_system_keeps_a_directory_for_itself(tmp_path, monkeypatch):
    """Whoever trains on a whole disk cannot look into it, and nothing of theirs is there."""
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.txt").write_text("x")
    hide(monkeypatch, tmp_path / "lost+found", errno.EACCES, name="scandir")
    hide(monkeypatch, tmp_path / "lost+found" / "a.txt", errno.EACCES)
    for pattern in ("**/*.txt", "*/a.txt"):
        assert text_source.list_files(f"text:{tmp_path}/{pattern}") == [files.to_path(tmp_path / "b" / "a.txt")]


def test_a_vocabulary_that_is_away_is_not_unknown(tmp_path, monkeypatch):
    hide(monkeypatch, tmp_path / "v.json")
    with pytest.raises(UnavailableError, match=r"the vocabulary .*v\.json cannot be read"):
        load_vocabulary(str(tmp_path / "v.json"))


def test_a_part_of_a_build_that_is_away_stays(tmp_path, monkeypatch):
    ones = np.ones(1, np.int64)
    part = Part(tokens=ones, lengths=ones, target_starts=0 * ones, begins=True, signatures={}, counts={})
    info = write_part(tmp_path, 0, part, unit="u", options="o")
    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "read_bytes", lambda path: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale")))
        patch.setattr(files.Path, "read_text", lambda path: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale")))
        for read in (lambda: read_part(tmp_path, info), lambda: find_part(tmp_path, 0), lambda: list_parts(tmp_path)):
            with pytest.raises(OSError, match="Stale"):
                read()
    assert read_part(tmp_path, info).lengths == ones


def test_a_plan_that_is_away_is_not_called_damaged(tmp_path, monkeypatch, caplog):
    hide(monkeypatch, tmp_path / "d.json")
    assert packing_plan_files._open(files.to_path(tmp_path), "d") is None
    assert "d.json cannot be reached and is made again" in caplog.text
