"""The runs of a sweep in a few processes, with what is done already left alone and what was stopped going on."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from t5x_scale.core.parallel import count_cores
from t5x_scale.core.preemption import EXIT_RESUMABLE
from t5x_scale.sweeps import worker
from t5x_scale.sweeps.jobs import Job, is_finished, mark_finished, write_texts
from t5x_scale.sweeps.progress import Progress

_LOCK = ".building_stores"
_LOOK_SECONDS = 0.5


@dataclasses.dataclass
class _Worker:
    process: Any
    connection: Connection
    job: Job | None = None


@dataclasses.dataclass
class Outcome:
    """What became of the runs: directories of those that are finished, that failed, and that can be resumed."""

    finished: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    resumable: list[str] = dataclasses.field(default_factory=list)

    @property
    def code(self) -> int:
        """0 all are finished, 1 one failed, 75 the same command goes on."""
        return 1 if self.failed else EXIT_RESUMABLE if self.resumable else 0


class Pool:
    """Trains jobs in `count` processes.

    A process that dies takes only its run with it. SIGINT and SIGTERM make every run save and stop.
    """

    def __init__(self, count: int = 1, serve: Callable[[Connection, str], None] = worker.serve) -> None:
        self._count = count
        self._serve = serve
        self._is_stopping = False
        self._context = multiprocessing.get_context("spawn")

    def train(self, jobs: Sequence[Job]) -> Outcome:
        """Trains those jobs that are not finished, the longest first.

        Raises:
          UserError: a finished one had other settings.
        """
        outcome = Outcome()
        waiting = []
        for job in jobs:
            (outcome.finished if is_finished(job) else waiting).append(job)
        outcome.finished = [job.model_dir for job in outcome.finished]
        if not waiting:
            return outcome
        # The longest first, so that processes end at about the same time.
        waiting.sort(key=lambda job: -job.flops)
        for job in waiting:
            write_texts(job)
        lock = str(pathlib.Path(waiting[0].model_dir).parent / _LOCK)
        previous = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        workers: list[_Worker] = []
        try:
            with Progress(jobs, outcome.finished) as progress:
                self._run(waiting, workers, lock, outcome, progress)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for one in workers:
                one.connection.close()
                one.process.join()
        return outcome

    def _run(self, waiting: list[Job], workers: list[_Worker], lock: str, outcome: Outcome, progress: Progress) -> None:
        told = False
        while True:
            if self._is_stopping and not told:
                told = True
                for one in workers:
                    if one.job is not None:
                        one.process.terminate()
            if not self._is_stopping:
                self._give(waiting, workers, lock)
            busy = [one for one in workers if one.job is not None]
            progress.show([one.job for one in busy], outcome.finished, outcome.failed)
            if not busy:
                outcome.resumable += [job.model_dir for job in waiting]
                return
            for one in self._answered(busy):
                self._take(one, workers, outcome)

    def _give(self, waiting: list[Job], workers: list[_Worker], lock: str) -> None:
        """Gives waiting jobs to idle processes, of which it starts as many as are missing."""
        while waiting and len(workers) < min(self._count, len(waiting) + sum(one.job is not None for one in workers)):
            workers.append(self._start(lock))
        for one in workers:
            if waiting and one.job is None:
                one.job = waiting.pop(0)
                one.connection.send(one.job)

    def _start(self, lock: str) -> _Worker:
        ours, theirs = self._context.Pipe()
        # Each has its share of the cores; the thread pool's size is part of a CPU run's bits.
        cores = os.environ.get("NPROC")
        os.environ["NPROC"] = str(max(1, int(cores or count_cores()) // self._count))
        try:
            process = self._context.Process(target=self._serve, args=(theirs, lock))
            process.start()
        finally:
            os.environ.pop("NPROC") if cores is None else os.environ.update(NPROC=cores)
        theirs.close()
        return _Worker(process, ours)

    def _answered(self, busy: list[_Worker]) -> Iterator[_Worker]:
        ready = wait([one.connection for one in busy], timeout=_LOOK_SECONDS)
        return (one for one in busy if one.connection in ready)

    def _take(self, one: _Worker, workers: list[_Worker], outcome: Outcome) -> None:
        job = one.job
        assert job is not None
        try:
            code = one.connection.recv()
        except (EOFError, ConnectionError):
            one.process.join()
            workers.remove(one)
            code = EXIT_RESUMABLE if self._is_stopping else one.process.exitcode
        one.job = None
        if code == 0:
            mark_finished(job)
            outcome.finished.append(job.model_dir)
        elif code == EXIT_RESUMABLE:
            outcome.resumable.append(job.model_dir)
            self._is_stopping = True
        else:
            outcome.failed.append(job.model_dir)
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            print(f"{job.model_dir} {how}, see {worker.LOG} there{_last_words(job)}", file=sys.stderr, flush=True)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True


def _last_words(job: Job) -> str:
    log = pathlib.Path(job.model_dir, worker.LOG)
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
