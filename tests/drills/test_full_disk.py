"""A disk that is full, cannot be written or is not there while a run saves: it says so, goes on, and loses nothing."""

import contextlib
import os
import pathlib
import resource
import signal
import subprocess

import pytest
from command_runner import check_same_metrics, fingerprints, steps

END, ENDLESS = 800, 10_000_000
SAVES = {"CheckpointConfig__save_every_steps": 20}
MEGABYTES = 24


@pytest.fixture(scope="module")
def whole(runner, settings, tmp_path_factory):
    """The run that nothing happened to."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    runner.run("train", MODEL_DIR=str(directory), TRAIN_STEPS=END, **SAVES, **settings)
    return directory


@contextlib.contextmanager
def small_disk(directory: pathlib.Path):
    """A file system of its own at `directory`, with room for a few checkpoints."""
    directory.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(directory)]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount on this machine")
    if done.returncode:
        pytest.skip(f"not allowed to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory: pathlib.Path) -> None:
    """Takes the room that is left."""
    with contextlib.suppress(OSError), open(directory / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 12))


def remount(directory: pathlib.Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(directory)], check=True)


class Trouble:
    """What happens to a run, and how it ends. `process` is that of the run."""

    said = "No space left on device"

    def __init__(self, run: pathlib.Path):
        self.run, self.checkpoints = run, run / "checkpoints"

    def prepare(self, stack: contextlib.ExitStack) -> None:
        """Before the run begins."""

    def begin(self, pid: int) -> None:
        raise NotImplementedError

    def end(self, pid: int) -> None:
        raise NotImplementedError


class FullDisk(Trouble):
    """The disk of the checkpoints is full."""

    def prepare(self, stack):
        stack.enter_context(small_disk(self.checkpoints))

    def begin(self, pid):
        fill(self.checkpoints)

    def end(self, pid):
        (self.checkpoints / "filler").unlink()


class FullRun(FullDisk):
    """The disk of the whole run is full: metrics, heartbeats and checkpoints."""

    def prepare(self, stack):
        stack.enter_context(small_disk(self.run))

    def begin(self, pid):
        fill(self.run)

    def end(self, pid):
        (self.run / "filler").unlink()


class ReadOnlyDisk(FullDisk):
    """The file system of the checkpoints went read-only, as one does after errors of its disk."""

    said = "Read-only file system"

    def begin(self, pid):
        remount(self.checkpoints, "ro")

    def end(self, pid):
        remount(self.checkpoints, "rw")


class FileTooLarge(Trouble):
    """The process may not write files as large as a checkpoint's; its output and first metrics are smaller."""

    said = "File too large"

    def begin(self, pid):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))

    def end(self, pid):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class DirectoryGone(Trouble):
    """Where the checkpoints were, there is a file."""

    said = "Not a directory"

    def begin(self, pid):
        os.rename(self.checkpoints, self.run / "elsewhere")
        self.checkpoints.touch()

    def end(self, pid):
        self.checkpoints.unlink()
        os.rename(self.run / "elsewhere", self.checkpoints)


TROUBLES = {
    "the disk of the checkpoints is full": FullDisk,
    "the disk of the whole run is full": FullRun,
    "the disk is read-only": ReadOnlyDisk,
    "a file may not be as large": FileTooLarge,
    "a file is where the checkpoints were": DirectoryGone,
}


@pytest.fixture
def troubled(runner, settings, tmp_path):
    """Starts an endless run, waits until it has saved, and lets something happen to it; the trouble and the process."""
    with contextlib.ExitStack() as stack:

        def start(kind, **more):
            trouble = kind(tmp_path / "run")
            trouble.prepare(stack)
            given = {**settings, **SAVES, "MODEL_DIR": str(trouble.run), **more}
            process = runner.start("train", TRAIN_STEPS=ENDLESS, **given)
            stack.callback(lambda: process.code is None and process.kill())
            process.until(lambda process: len(steps(trouble.run)) > 1)
            return trouble, process

        yield start


def go_on_to_the_end(runner, settings, trouble, whole):
    """The same command again, and the run ends as that to which nothing happened."""
    runner.run("train", MODEL_DIR=str(trouble.run), TRAIN_STEPS=END, **SAVES, **settings)
    assert fingerprints(trouble.run, END) == fingerprints(whole, END)
    check_same_metrics(trouble.run, whole)


@pytest.mark.parametrize("name", TROUBLES)
def test_it_passes(runner, settings, troubled, whole, name):
    trouble, process = troubled(TROUBLES[name], CheckpointConfig__max_failed_saves=10_000)
    trouble.begin(process.pid)
    # At least two saves fail, and the run goes on all the same.
    process.until(lambda process: process.err.count("NOT saved") > 1)
    assert trouble.said in process.err, process.err
    trouble.end(process.pid)
    kept = steps(trouble.run)
    assert kept
    process.until(lambda process: steps(trouble.run)[-1] > kept[-1])
    process.kill(signal.SIGTERM)
    assert process.wait() == 75, process.err
    assert kept[-1] < steps(trouble.run)[-1] < END
    go_on_to_the_end(runner, settings, trouble, whole)


@pytest.mark.parametrize("name", TROUBLES)
def test_it_stays(runner, settings, troubled, whole, name):
    kind = TROUBLES[name]
    trouble, process = troubled(kind)
    trouble.begin(process.pid)
    assert process.wait() == 1, process.err
    [said] = [line for line in process.err.splitlines() if line.startswith("t5x_scale: error: ")]
    assert said.startswith("t5x_scale: error: saving the checkpoint of step ")
    assert "the last of 3 in a row" in said
    if kind is not FileTooLarge:  # Which ended with its process.
        trouble.end(process.pid)
    assert steps(trouble.run)
    go_on_to_the_end(runner, settings, trouble, whole)
