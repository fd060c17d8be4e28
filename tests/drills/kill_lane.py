"""One run after another that is killed again and again, each time while it does what was planned, by its phase log."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import random
import signal
import time

from command_runner import TIMEOUT, CommandRunner, Process, steps

STARTUP, RESTORE, STEP, ASYNC_SAVE = "startup", "restore", "step", "async_save"
PLACES = (STARTUP, RESTORE, STEP, ASYNC_SAVE)
# Seconds after the beginning of a phase within which a kill falls; start-up counts from the fork.
WINDOWS = {STARTUP: 1.5, RESTORE: 1.0, STEP: 0.6, ASYNC_SAVE: 0.15}


class Life:
    """One process of a run, and what it says of itself."""

    def __init__(self, process: Process, log: pathlib.Path):
        self.process = process
        self._log, self._offset = log, log.stat().st_size if log.exists() else 0
        self.lines: list[dict] = []

    def look(self) -> None:
        """Reads what has been added to the phase log; a line that is half written is left for the next time."""
        if not self._log.exists():
            return
        with open(self._log, "rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        self.lines += map(json.loads, whole.splitlines())

    @property
    def has_ended(self) -> bool:
        with open(f"/proc/{self.process.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"

    def wait_for(self, place: str, count: int) -> bool:
        """Waits for the beginning of a phase (of the `count`-th save); False where the process ends before it."""
        deadline = time.monotonic() + TIMEOUT
        while self._count(place) < count:
            if self.has_ended:
                return False
            assert time.monotonic() < deadline, f"no {place} within {TIMEOUT} s:\n{self.process.err}"
            time.sleep(0.001)
            self.look()
        return True

    def _count(self, place: str) -> int:
        if place == STARTUP:
            return 1  # From the fork on.
        lines = [line for line in self.lines if line["phase"] == place]
        if place == STEP:  # The first line of all says that the steps are next: their compilation comes first.
            return len(lines) - 1
        return sum(line.get("edge", "begin") == "begin" for line in lines)

    def place(self) -> str:
        """What the process was doing when it was killed."""
        self.look()
        edges = [line["edge"] for line in self.lines if line["phase"] == ASYNC_SAVE]
        if edges and edges[-1] == "begin":
            return ASYNC_SAVE
        phases = [line["phase"] for line in self.lines if line["phase"] != ASYNC_SAVE]
        # Between the end of restoring and the first step it is start-up again.
        return phases[-1] if phases else STARTUP


class Lane:
    """Kills runs of `train` in directories of its own, as `plan` says, until it has done so often enough."""

    def __init__(self, runner: CommandRunner, directory: pathlib.Path, settings: dict, seed: int):
        self._runner, self._directory, self._settings = runner, directory, settings
        self._random = random.Random(seed)
        self.killed: collections.Counter[str] = collections.Counter()
        self.finished: list[pathlib.Path] = []
        self._number = 0

    def kill_often(self, kills: int, each: int) -> None:
        """Kills `kills` times or more, `each` times or more in each of `PLACES`; the last run comes to its end.

        Raises:
          AssertionError: a process ends otherwise than by a kill or at the last step, a checkpoint is lost, or a place
            is met too seldom.
        """
        for _ in range(3 * kills):
            missing = [place for place in PLACES if self.killed[place] < each]
            if not missing and self.killed.total() >= kills:
                break
            self._live(self._random.choice(missing or PLACES))
        assert all(self.killed[place] >= each for place in PLACES), self.killed
        self._check_end(self._start())

    @property
    def run(self) -> pathlib.Path:
        """The directory of the run at present."""
        return self._directory / f"run_{self._number}"

    def _start(self) -> Process:
        return self._runner.start("train", MODEL_DIR=str(self.run), **self._settings)

    def _live(self, place: str) -> None:
        if place == RESTORE and not steps(self.run):
            place = ASYNC_SAVE
        before = steps(self.run)
        life = Life(self._start(), self.run / "health" / "phases_0.jsonl")
        begun = life.wait_for(place, self._random.randint(1, 4) if place == ASYNC_SAVE else 1)
        if begun:
            time.sleep(self._random.uniform(0, WINDOWS[place]))
        if not begun or life.has_ended:
            self._check_end(life.process)
            return
        os.kill(life.process.pid, signal.SIGKILL)
        assert life.process.wait() == -signal.SIGKILL, life.process.err
        self.killed[life.place()] += 1
        after = steps(self.run)
        assert not before or (after and after[-1] >= before[-1]), f"step {before[-1]} is lost: {after}"

    def _check_end(self, process: Process) -> None:
        """Asserts that a process has come to the last step of its run; the next one begins another run."""
        assert process.wait() == 0, process.err
        self.finished.append(self.run)
        self._number += 1
