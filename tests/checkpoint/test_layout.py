"""Names on disk, leaf paths and the document."""

import dataclasses
import errno
import json
import os
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.checkpoint import layout
from t5x_scale.core import files
from t5x_scale.core.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=8,
)


def write_document(path, document):
    (path / "metadata").mkdir(parents=True)
    (path / "metadata" / "metadata").write_text(json.dumps(layout.render_document(document)))


def make_document(step=3, metadata=None):
    return layout.Document(step, {"params/a": layout.LeafRecord((2, 3), "float32", "0" * 16)}, metadata or {})


def test_leaf_paths_of_a_state():
    state = State(1, {"a": {"b": 2}}, ({"mu": 3}, (), [4, 5]))
    flat = layout.flatten_leaves(state)
    assert flat == {"step": 1, "params/a/b": 2, "opt_state/0/mu": 3, "opt_state/2/0": 4, "opt_state/2/1": 5}
    assert layout.unflatten_leaves(state, flat) == state


@pytest.mark.parametrize("tree", [{"a/b": 1}, {"": 1}, [{"x": {"a/b": 1}}]])
def test_ambiguous_leaf_paths_are_refused(tree):
    with pytest.raises(ValueError, match="ambiguous"):
        layout.flatten_leaves(tree)


@given(metadata=st.dictionaries(st.text(max_size=3), JSON, max_size=3))
def test_documents_round_trip(tmp_path_factory, metadata):
    path = files.to_path(tmp_path_factory.mktemp("steps") / "3")
    write_document(path, make_document(3, metadata))
    assert layout.read_document(path) == make_document(3, metadata)


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_document_goes_unnoticed(tmp_path_factory, position, bit):
    path = files.to_path(tmp_path_factory.mktemp("steps") / "3")
    write_document(path, make_document(3, {"row": 24}))
    target = path / "metadata" / "metadata"
    data = bytearray(target.read_bytes())
    data[position % len(data)] ^= 1 << bit
    target.write_bytes(bytes(data))
    try:
        document = layout.read_document(path)
    except layout.DamagedError:
        return
    assert document == make_document(3, {"row": 24})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read: it is no JSON: Expecting value: line 1"),
        ("[]", "cannot be read: something in it is of another kind than was written"),
        ("null", "cannot be read: something in it is of another kind than was written"),
        ("{}", "cannot be read: it has no 'content'"),
        ("[" * 100_000, "cannot be read: it is nested too deeply"),
        ('{"content": 3, "digest": ""}', "does not match its digest"),
        ('"\xff"', "cannot be read: it is no text: byte 1 is not UTF-8"),
    ],
)
def test_nonsense_in_place_of_a_document_is_damage(tmp_path, text, words):
    path = files.to_path(tmp_path / "3")
    write_document(path, make_document(3))
    (path / "metadata" / "metadata").write_bytes(text.encode("latin-1"))
    with pytest.raises(layout.DamagedError, match=f"its metadata {words}") as raised:
        layout.read_document(path)
    assert "Error" not in str(raised.value), "a word of Python's"


def test_a_document_that_is_no_file(tmp_path):
    path = files.to_path(tmp_path / "3")
    write_document(path, make_document(3))
    (path / "metadata" / "metadata").unlink()
    with pytest.raises(layout.DamagedError, match=r"its metadata cannot be read: it is missing$"):
        layout.read_document(path)
    (path / "metadata" / "metadata").mkdir()
    with pytest.raises(layout.DamagedError, match=r"its metadata cannot be read: it is a directory and no file$"):
        layout.read_document(path)


def test_a_document_of_another_step_is_damage(tmp_path):
    path = files.to_path(tmp_path / "4")
    write_document(path, make_document(3))
    with pytest.raises(layout.DamagedError, match="of step 3"):
        layout.read_document(path)


def test_only_plain_numbers_are_steps(tmp_path):
    for name in ("0", "12", "012", "7.orbax-checkpoint-tmp", "5.deleting", "9.set_aside", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "99").write_text("a file")
    directory = files.to_path(tmp_path)
    assert layout.list_steps(directory) == [0, 12]
    assert sorted(path.name for path in layout.list_leftovers(directory)) == ["5.deleting", "7.orbax-checkpoint-tmp"]


def test_a_step_is_found_from_every_name_a_user_may_give(tmp_path):
    for step in (3, 20):
        write_document(files.to_path(tmp_path / "run" / "checkpoints" / str(step)), make_document(step))
    checkpoints = files.to_path(tmp_path / "run" / "checkpoints")
    assert layout.find_step_directory(tmp_path / "run") == (checkpoints, [20, 3])
    assert layout.find_step_directory(checkpoints) == (checkpoints, [20, 3])
    assert layout.find_step_directory(checkpoints / "3") == (checkpoints, [3])
    with pytest.raises(UserError, match="does not exist"):
        layout.find_step_directory(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        layout.find_step_directory(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"params/b": np.zeros((2, 3), np.float32)}, r"no leaf 'params/b'.*did you mean 'params/a'"),
        ({"params/a": np.zeros((2, 4), np.float32)}, r"'params/a' has the shape \[2, 3\] in here, .*\[2, 4\]"),
        ({"params/a": np.zeros((2, 3), np.int32)}, r"'params/a' is float32 in here, this run needs int32"),
        ({}, r"here has the leaf 'params/a', which this run does not know"),
    ],
)
def test_leaves_that_do_not_fit_are_named(wanted, message):
    with pytest.raises(UserError, match=message):
        layout.check_leaves(make_document(), wanted, "here")


def test_set_aside_never_overwrites(tmp_path):
    directory = files.to_path(tmp_path)
    for mark in "ab":
        (tmp_path / "5").mkdir()
        (tmp_path / "5" / mark).write_text(mark)
        layout.set_aside(directory, 5)
    assert (tmp_path / "5.set_aside" / "a").exists()
    assert (tmp_path / "5.set_aside_2" / "b").exists()
    assert layout.list_steps(directory) == []


def test_a_directory_that_appears_while_it_is_listed_is_empty(tmp_path, monkeypatch):
    """As a watcher sees the first save of a run."""

    def appear(path):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    monkeypatch.setattr(os, "listdir", appear)
    assert layout.list_steps(files.to_path(tmp_path)) == []
