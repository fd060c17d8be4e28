"""Makes parts of units with all cores of this machine.

Each worker holds one unit, and the pool has as many again read and ready: memory does not grow with the corpus, and
the source is read no faster than it is worked off.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection, get_context

from t5x_scale.core.errors import UserError
from t5x_scale.data.building.parts import PartInfo
from t5x_scale.data.building.units import Unit
from t5x_scale.data.building.work import Options

# Seconds between two calls of `beat` while every worker is busy.
_BEAT = 1.0
# Seconds that a worker which is no longer needed has to end by itself.
_GRACE = 5.0


def make_parts(
    units: Iterable[Unit],
    directory: str | os.PathLike,
    options: Options,
    *,
    workers: int,
    beat: Callable[[], None] = lambda: None,
) -> Iterator[PartInfo]:
    """Makes the parts of units, in the order in which they are done.

    Args:
      units: read only as fast as workers become free.
      directory: of the parts; exists, and is visible to the workers, which run on this machine.
      options: with which parts are made.
      workers: how many processes, each with the whole vocabulary in memory.
      beat: called about once a second.

    Raises:
      UserError: what a worker refused, or the source; or a worker died.
    """
    with contextlib.ExitStack() as stack:
        team = [stack.enter_context(_start()) for _ in range(workers)]
        # Not before: what is sent may be larger than a pipe, and is taken only by a worker that is up.
        for worker in team:
            worker.brief(directory, options)
        yield from _run(iter(units), team, beat)


class _Worker:
    """One process and the unit it works on."""

    def __init__(self, process: subprocess.Popen, pipe: connection.Connection):
        self.process = process
        self.pipe = pipe
        self.index: int | None = None

    def brief(self, directory: str | os.PathLike, options: Options) -> None:
        # Not a real path of the child yet: "" is the directory it was started in, as here.
        self._send(list(sys.path))
        self._send((os.fspath(directory), options))

    def give(self, unit: Unit) -> None:
        self.index = unit.index
        self._send(unit)

    def _send(self, value: object) -> None:
        try:
            self.pipe.send(value)
        except (BrokenPipeError, ConnectionResetError):
            # Its last words say why.
            self.take()
            raise self._death() from None

    def take(self) -> PartInfo | None:
        """The answer; waits for it.

        Raises:
          UserError: what the worker refused, or that it died.
        """
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._death() from error
        if kind == "refused":
            raise UserError(value)
        if kind == "failed":
            raise RuntimeError(f"a worker failed at unit {self.index}:\n{value}")
        self.index = None
        return value

    def _death(self) -> UserError:
        code = self.process.wait()
        at = "while it began" if self.index is None else f"at unit {self.index}"
        by = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        memory = ": is there too little memory? Fewer workers need less" if code == -signal.SIGKILL else ""
        return UserError(
            f"a worker of the build died {at} ({by}){memory}; finished parts are kept, the same command goes on"
        )


@contextlib.contextmanager
def _start() -> Iterator[_Worker]:
    ours, theirs = get_context("spawn").Pipe()
    with ours:
        with theirs:
            command = [sys.executable, "-m", "t5x_scale.data.building.worker", str(theirs.fileno())]
            # So that -m finds this package wherever it is imported from.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        try:
            yield _Worker(process, ours)
        except BaseException:
            process.terminate()
            raise
        finally:
            ours.close()
            _end(process)


def _end(process: subprocess.Popen) -> None:
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _run(units: Iterator[Unit], team: list[_Worker], beat: Callable[[], None]) -> Iterator[PartInfo]:
    ready: collections.deque[Unit] = collections.deque()
    # Until each has said that it is.
    idle: list[_Worker] = []
    busy = {worker.pipe: worker for worker in team}
    exhausted, unfinished = False, 0
    while not exhausted or ready or unfinished:
        while idle and ready:
            worker = idle.pop()
            worker.give(ready.popleft())
            busy[worker.pipe] = worker
            unfinished += 1
        wants_more = not exhausted and len(ready) < len(team)
        for pipe in connection.wait(busy, 0 if wants_more else _BEAT):
            worker = busy.pop(pipe)
            info = worker.take()
            idle.append(worker)
            if info is not None:
                unfinished -= 1
                yield info
        if wants_more:
            unit = next(units, None)
            exhausted = unit is None
            ready.extend([] if unit is None else [unit])
        beat()
