"""Storage that is away: asked again, then the run stops with nothing changed; never taken for damage."""

import errno
import os
import socket

import google.auth.exceptions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from gcsfs.retry import HttpError

from t5x_scale.checkpoint import layout, lazy_reader, multihost, restore, together
from t5x_scale.checkpoint.config import CheckpointConfig
from t5x_scale.checkpoint.layout import DamagedError
from t5x_scale.checkpoint.lazy_reader import read_lazily
from t5x_scale.checkpoint.manager import CheckpointManager
from t5x_scale.checkpoint.stream_writer import write_stream
from t5x_scale.checkpoint.verifying import verify_step
from t5x_scale.core import files, patience
from t5x_scale.core.errors import StillAwayError, UnavailableError, UserError
from t5x_scale.core.preemption import EXIT_RESUMABLE
from t5x_scale.core.storage_errors import explain
from t5x_scale.main import main

STATE = {"kernel": jnp.arange(64.0), "params": {"bias": jnp.ones(3)}}
ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE)


pytestmark = pytest.mark.usefixtures("waits")


@pytest.fixture
def run(tmp_path):
    """A run with the steps 1 and 2."""
    with CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1)) as manager:
        for step in (1, 2):
            manager.save(step, STATE, {})
    return tmp_path


def ask_nobody():
    """What TensorStore raises where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    context = ts.Context({"http_request_retries": {"max_retries": 1, "initial_delay": "1ms"}})
    store = {"driver": "http", "base_url": address, "path": "state/"}
    ts.open({"driver": "zarr", "kvstore": store}, context=context).result()


def fail(monkeypatch, module, name, error, times=1000):
    """Has a function of a module raise for some times. Returns the list of its calls."""
    usual, calls = getattr(module, name), []

    def act(*given, **named):
        calls.append(given)
        if len(calls) <= times:
            raise error
        return usual(*given, **named)

    monkeypatch.setattr(module, name, act)
    return calls


def hide(monkeypatch, ending, number=errno.ETIMEDOUT, times=1000):
    """Has the system raise of paths that end so, for some times. Returns the list of these."""
    usual, asked = os.stat, []

    def stat(path, *given, **named):
        if str(path).endswith(ending):
            asked.append(path)
            if len(asked) <= times:
                raise OSError(number, os.strerror(number), path)
        return usual(path, *given, **named)

    monkeypatch.setattr(os, "stat", stat)
    return asked


@pytest.mark.parametrize("name", ["state", "state/_METADATA", "state/manifest.ocdbt"])
@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_what_is_not_found_by_a_library_while_the_storage_is_away_is_not_missing(run, monkeypatch, name, times):
    """It asks whether a file exists, and hears no."""
    hide(monkeypatch, f"/2/{name}", times=times)
    restored = CheckpointManager(run).restore(ABSTRACT)
    assert restored.step == 2
    np.testing.assert_array_equal(restored.state["kernel"], STATE["kernel"])


@pytest.mark.parametrize("name", ["kernel", "kernel/.zarray"])
@pytest.mark.parametrize("times", [1, 2])
def test_nor_is_an_array_of_the_plain_form(run, tmp_path_factory, monkeypatch, name, times):
    converted = tmp_path_factory.mktemp("converted")
    write_stream(converted, 3, read_lazily(run)[2], {})
    hide(monkeypatch, f"/3/state/{name}", times=times)
    assert CheckpointManager(converted).restore(ABSTRACT).step == 3
    array = converted / "checkpoints" / "3" / "state" / name
    array.rename(array.with_name("elsewhere"))
    with pytest.raises(UserError, match="can be trusted: step 3: its arrays cannot be read"):
        CheckpointManager(converted).restore(ABSTRACT)


def test_nor_is_it_when_it_stays_away(run, monkeypatch):
    hide(monkeypatch, "/2/state")
    with pytest.raises(UnavailableError, match=r"the arrays of step 2 cannot be read, as .* 2/state: Connection timed"):
        CheckpointManager(run).restore(ABSTRACT)
    hide(monkeypatch, "/2/state", errno.EACCES)
    with pytest.raises(UserError, match=r"the arrays of step 2 cannot be read, and may be sound: 2/state: Permission"):
        CheckpointManager(run).restore(ABSTRACT)


def test_a_library_that_finds_nothing_of_what_is_there(run, monkeypatch):
    """The storage has come back when it is looked for."""
    library = type(files.to_path("/a"))
    usual = library.exists
    monkeypatch.setattr(library, "exists", lambda path: path.name != "state" and usual(path))
    with pytest.raises(UnavailableError, match="does not answer: 2/state: it was not found, and is there"):
        CheckpointManager(run).restore(ABSTRACT)


@pytest.mark.parametrize("name", ["state", "state/manifest.ocdbt"])
def test_what_is_missing_is_damage(run, name, caplog):
    path = run / "checkpoints" / "2" / name
    path.rename(path.with_name("elsewhere"))
    assert CheckpointManager(run).restore(ABSTRACT).step == 1
    assert "step 2 in" in caplog.text


def test_parameters_to_begin_with_are_waited_for(run, monkeypatch):
    hide(monkeypatch, "/2/state", times=2)
    assert restore.restore_parameters(run, ABSTRACT["params"])[1].step == 2
    hide(monkeypatch, "/checkpoints/2", times=2)
    assert restore.restore_parameters(run, ABSTRACT["params"])[1].step == 2


@pytest.mark.parametrize(
    ("ending", "number", "kind", "said"),
    [
        ("/2", errno.EACCES, UserError, "and may be sound: checkpoints/2: Permission denied"),
        ("/2", errno.EIO, UserError, "cannot be read: checkpoints/2: Input/output error"),
        ("/2", errno.ETIMEDOUT, UnavailableError, "checkpoints/2: Connection timed out"),
    ],
)
def test_a_step_that_nobody_can_see_is_not_passed_over(run, monkeypatch, ending, number, kind, said):
    hide(monkeypatch, ending, number)
    for ask in (
        CheckpointManager(run).latest,
        lambda: CheckpointManager(run).restore(ABSTRACT),
        CheckpointManager(run).steps,
        lambda: restore.restore_parameters(run, ABSTRACT["params"]),
        lambda: read_lazily(run),
    ):
        with pytest.raises(UserError, match=said) as caught:
            ask()
        assert isinstance(caught.value, kind)


def test_a_directory_that_nobody_can_see_is_not_missing(run, monkeypatch):
    hide(monkeypatch, "/checkpoints", errno.EACCES)
    fail(monkeypatch, os, "listdir", PermissionError(errno.EACCES, "Permission denied", "checkpoints"))
    with pytest.raises(UserError, match=r"may be sound: .*/checkpoints: Permission denied"):
        CheckpointManager(run).latest()


def test_a_manifest_that_cannot_be_seen_for_a_while_is_no_damage(run, monkeypatch):
    hide(monkeypatch, "manifest.ocdbt", times=1)
    assert not verify_step(files.to_path(run) / "checkpoints" / "2").damage
    hide(monkeypatch, "manifest.ocdbt", errno.EIO)
    assert "Input/output error" in verify_step(files.to_path(run) / "checkpoints" / "2").damage


def test_it_is_asked_again_until_it_answers(run, monkeypatch, waits, caplog):
    calls = fail(monkeypatch, restore, "read_leaves", ConnectionResetError(errno.ECONNRESET, "Connection reset"), 2)
    assert CheckpointManager(run).restore(ABSTRACT).step == 2
    assert len(calls) == 3
    assert waits == [1.0, 4.0]
    said = "the arrays of step 2 cannot be read, as the storage does not answer: "
    assert caplog.text.count(said) == 2
    assert "trying again in 4 s" in caplog.text


def test_the_run_stops_and_nothing_is_changed(run, monkeypatch, waits):
    before = sorted(os.walk(run))
    calls = fail(monkeypatch, restore, "read_leaves", ValueError('UNAVAILABLE: Error reading "gs://b/2/state/d/1": no'))
    with pytest.raises(UnavailableError) as caught:
        CheckpointManager(run).restore(ABSTRACT)
    assert str(caught.value) == (
        "the arrays of step 2 cannot be read, as the storage does not answer: d/1 cannot be reached; nothing was "
        "changed, and the same command goes on once it does"
    )
    assert len(calls) == 1 + len(waits) == 1 + len(patience.WAITS_SECONDS)
    assert sorted(os.walk(run)) == before


def test_neither_is_a_document_of_storage_that_is_away(run, monkeypatch):
    fail(monkeypatch, files, "read_bounded", TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
    with pytest.raises(UnavailableError, match=r"the metadata of step 2 cannot be read, as .*: Connection timed out;"):
        CheckpointManager(run).restore(ABSTRACT)
    with pytest.raises(UnavailableError):
        CheckpointManager(run).read_metadata(2)


def test_a_list_that_cannot_be_had_is_not_an_empty_one(run, monkeypatch):
    """A mount that is gone: nothing there exists, and the run would begin anew."""
    gone = OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), "checkpoints")
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    fail(monkeypatch, os, "listdir", gone)
    for ask in (CheckpointManager(run).latest, lambda: CheckpointManager(run).restore(ABSTRACT)):
        with pytest.raises(UnavailableError, match=r"the list of checkpoints in .*: Transport endpoint is not"):
            ask()


def test_tools_do_not_take_the_step_before_it(run, monkeypatch):
    calls = fail(monkeypatch, files, "read_bounded", ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    with pytest.raises(UnavailableError, match=r"checkpoints/2 cannot be read"):
        read_lazily(run)
    with pytest.raises(UnavailableError, match=r"checkpoints/2 cannot be read"):
        verify_step(files.to_path(run) / "checkpoints" / "2")
    assert len(calls) == 2 * (1 + len(patience.WAITS_SECONDS))


def test_the_command_may_be_given_again(run, monkeypatch, capsys):
    fail(monkeypatch, files, "read_bounded", ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
    assert main(["verify", str(run)]) == EXIT_RESUMABLE
    line = capsys.readouterr().err
    assert line.startswith(f"t5x_scale: error: the checkpoint {run}/checkpoints/2 cannot be read, as the storage does")
    assert line.endswith("Connection refused; nothing was changed, and the same command goes on once it does\n")


def test_arrays_that_cannot_be_had_are_not_damaged_for_verify(run, monkeypatch):
    failure = DamagedError("its leaf 'kernel' cannot be read (DEADLINE_EXCEEDED: late)")
    failure.__cause__ = ValueError("DEADLINE_EXCEEDED: late")
    fail(monkeypatch, lazy_reader, "verify_lazily", failure, 1)
    assert not verify_step(files.to_path(run) / "checkpoints" / "2").damage


def test_what_cannot_be_read_back_now_is_not_damaged(tmp_path, monkeypatch, caplog):
    failure = DamagedError("its leaf 'kernel' cannot be read (UNAVAILABLE: away)")
    failure.__cause__ = ValueError("UNAVAILABLE: away")
    fail(monkeypatch, lazy_reader, "open_leaves", failure)
    events = []
    with CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1)) as manager:
        manager.report_to(lambda kind, step, reason: events.append(kind))
        manager.save(1, STATE, {})
    assert not events
    assert "could not be read back: step 1 cannot be read, as the storage does not answer" in caplog.text


def http_error(code):
    return HttpError({"code": code, "message": "message"})


AWAY, REFUSED, DAMAGED = UnavailableError, UserError, DamagedError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *[(ValueError(f"{name}: x"), AWAY) for name in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")],
        (ValueError("FAILED_PRECONDITION: Error reading local file \"x\": [os_error_code='107']"), AWAY),
        (OSError(errno.ESTALE, "Stale file handle"), AWAY),
        (socket.gaierror(-3, "Temporary failure in name resolution"), AWAY),
        (http_error(503), AWAY),
        (http_error("429"), AWAY),
        (http_error(None), AWAY),
        (google.auth.exceptions.TransportError("x"), AWAY),
        (http_error(401), REFUSED),
        (http_error(400), REFUSED),
        (google.auth.exceptions.RefreshError("x"), REFUSED),
        (OSError("Forbidden: https://storage/b/x\nno"), REFUSED),
        (ValueError("PERMISSION_DENIED: x"), REFUSED),
        (OSError(errno.EIO, "Input/output error"), DAMAGED),
        *[(ValueError(f"{name}: x"), DAMAGED) for name in ("DATA_LOSS", "NOT_FOUND", "OUT_OF_RANGE")],
        (FileNotFoundError(errno.ENOENT, "No such file"), DAMAGED),
        (KeyError("UNAVAILABLE"), DAMAGED),
    ],
)
def test_what_an_error_says_of_the_bytes(error, kind):
    damage = DamagedError("its arrays cannot be read")
    damage.__cause__ = error
    assert type(explain(damage, "the arrays")) is kind
    if isinstance(error, HttpError):
        # Where nothing else is made of it.
        assert type(explain(error, "the arrays")) is kind


def test_what_tensorstore_says_where_nobody_listens():
    with pytest.raises(ValueError, match=r"onnect to") as caught:
        ask_nobody()
    assert type(explain(caught.value, "the arrays")) is UnavailableError


def test_other_errors_stay_what_they_are():
    for error in (MemoryError(), jax.errors.JaxRuntimeError("UNAVAILABLE: a peer"), KeyError("a"), UserError("b")):
        assert explain(error, "the arrays") is error
    said = str(explain(OSError(errno.EIO, "Input/output error", "checkpoints"), "the list"))
    assert said == "the list cannot be read: checkpoints: Input/output error"


def test_all_hear_what_one_has_seen(run, monkeypatch):
    """And wait with it, although they have read."""
    seen = [UnavailableError("away (process 1 of 2)")] * 2 + [None] * 10
    monkeypatch.setattr(together.multihost, "share_error", lambda error: error or seen.pop(0))
    restored = CheckpointManager(run).restore(ABSTRACT)
    assert restored.step == 2
    np.testing.assert_array_equal(restored.state["kernel"], STATE["kernel"])


def test_what_was_waited_for_is_not_waited_for_again(run, monkeypatch, waits):
    """A reading within a reading."""
    calls = fail(monkeypatch, files, "read_bounded", ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    with pytest.raises(UnavailableError, match=r"refused; nothing was changed, [^;]*once it does$"):
        together.read_together(lambda: read_lazily(run), "what a run begins with")
    assert len(calls) == 1 + len(waits) == 1 + len(patience.WAITS_SECONDS)


def test_other_files_than_steps_may_not_be_seen(run, monkeypatch):
    """By a command that lists them when all else is done."""
    hide(monkeypatch, "/2", times=1)
    assert main(["verify", str(run)]) == 0
    fail(monkeypatch, layout, "list_leftovers", TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
    assert main(["verify", str(run)]) == EXIT_RESUMABLE


def test_a_place_to_write_to_that_nobody_can_see_is_said_in_a_line(run, tmp_path_factory, monkeypatch):
    hide(monkeypatch, "/checkpoints/3", errno.EACCES)
    with pytest.raises(UserError, match=r"what is at .*/3 cannot be read, and may be sound: checkpoints/3: Permission"):
        write_stream(tmp_path_factory.mktemp("converted"), 3, read_lazily(run)[2], {})


def test_one_process_that_has_waited_ends_the_waiting_of_all(monkeypatch):
    ranks = {}

    def gather(own):
        ranks[kind] = int(own)
        return np.array([own, 0])

    monkeypatch.setattr(multihost, "is_alone", lambda: False)
    monkeypatch.setattr(multihost.multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(multihost, "_share_text", lambda text, source: text)
    for kind in (DamagedError, UnavailableError, StillAwayError, UserError):
        shared = multihost.share_error(kind("x"))
        assert (type(shared), str(shared)) == (kind, "x (process 0 of 2)")
    assert list(ranks.values()) == [1, 2, 3, 4]
