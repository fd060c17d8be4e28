"""Starts commands as real processes (see fork_server.py), stops them where a test says, and looks at what they left."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from t5x_scale.checkpoint import layout
from t5x_scale.monitor.metric_log import MetricLog, read_metrics

HERE = pathlib.Path(__file__).resolve().parent
TINY = HERE / "tiny.gin"
# The same passes of the compiler with less work by LLVM: a third of the time; equal runs have equal bits all the same.
FAST = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
TIMEOUT = 120.0
LOSS_AND_NORM = ("train/loss", "optim/grad_norm", "optim/learning_rate", "train/tokens", "train/weight")


@dataclasses.dataclass
class Process:
    """A command that runs; `out` and `err` are its streams so far."""

    server: CommandRunner
    pid: int
    streams: pathlib.Path
    code: int | None = None

    @property
    def out(self) -> str:
        return self.streams.with_suffix(".out").read_text()

    @property
    def err(self) -> str:
        return self.streams.with_suffix(".err").read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code, as `subprocess` has it."""
        if self.code is None:
            self.code = self.server.ask(wait=self.pid)["code"]
        return self.code

    def until_said(self, text: str) -> Process:
        """Waits for `text` among the errors, also of a process that has ended: its last words may take a moment."""
        deadline = time.monotonic() + 5.0
        while text not in self.err and time.monotonic() < deadline:
            time.sleep(0.01)
        assert text in self.err, self.err
        return self

    def until(self, condition: Callable[[Process], object]) -> Process:
        """Looks every millisecond until `condition` holds."""
        deadline = time.monotonic() + TIMEOUT
        while not condition(self):
            assert time.monotonic() < deadline, f"nothing to be seen of it:\n{self.out}{self.err}"
            assert os.path.exists(f"/proc/{self.pid}"), "no such process"
            with open(f"/proc/{self.pid}/stat") as file:
                assert ") Z" not in file.read(), f"it ended before its time: {self.wait()}\n{self.out}{self.err}"
            time.sleep(0.001)
        return self


class CommandRunner:
    """The client of one fork server.

    The programs that its processes compile are kept for those that start later, which is a third of a tiny run's time.
    A run that others are compared with asks for `anew=True`, so that two compilations stand behind what is compared.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "2", "XLA_FLAGS": FAST}
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._count = 0

    def ask(self, **request: object) -> dict:
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(
        self, command: str, *flags: str, env: dict[str, str] | None = None, anew: bool = False, **settings: object
    ) -> Process:
        """Starts a command with tiny.gin and settings of gin (`BATCH_SIZE=8`, `StepConfig__z_loss=0`).

        With `anew` it compiles everything itself; so do the processes of a run of several.
        """
        anew = anew or any(flag.startswith("--coordinator_address") for flag in flags)
        self._count += 1
        streams = self.directory / f"process_{self._count:03d}"
        for suffix in (".out", ".err"):
            streams.with_suffix(suffix).touch()
        answer = self.ask(
            start=[command, *arguments(**settings), *flags],
            env=env or {},
            cwd=str(self.directory),
            compiled=None if anew else str(self.directory / "compiled"),
            out=str(streams.with_suffix(".out")),
            err=str(streams.with_suffix(".err")),
        )
        return Process(self, answer["pid"], streams)

    def run(
        self,
        command: str,
        *flags: str,
        code: int = 0,
        env: dict[str, str] | None = None,
        anew: bool = False,
        **settings: object,
    ) -> Process:
        """Runs a command to its end and checks its exit code."""
        process = self.start(command, *flags, env=env, anew=anew, **settings)
        assert process.wait() == code, f"exit code {process.code}\n{process.out}{process.err}"
        return process

    def start_all(
        self, count: int, command: str, *flags: str, env: dict[str, str] | None = None, **settings: object
    ) -> list[Process]:
        """Starts one run of `count` processes on this machine."""
        run = (f"--coordinator_address={free_address()}", f"--num_processes={count}")
        return [self.start(command, *flags, *run, f"--process_id={i}", env=env, **settings) for i in range(count)]

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def free_address() -> str:
    """host:port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def arguments(**settings: object) -> list[str]:
    """The flags of a command for the tiny run."""
    values = {name.replace("__", "."): value for name, value in settings.items()}
    return [f"--gin_file={TINY}", *(f"--gin.{name}={value!r}" for name, value in values.items())]


def devices(number: int) -> dict[str, str]:
    """The environment of a process that has so many devices."""
    return {"XLA_FLAGS": f"{FAST} --xla_force_host_platform_device_count={number}"}


def write_text(path: pathlib.Path, lines: int = 1200, seed: int = 0) -> str:
    """Writes a file of words with something to learn in them and returns the name of it as a source."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdefghij", k=generator.randint(2, 6))) for _ in range(50)]
    path.write_text("".join(" ".join(generator.choices(words, k=10)) + "\n" for _ in range(lines)))
    return f"text:{path}"


def fingerprints(model_dir: pathlib.Path, step: int) -> dict[str, str]:
    """{leaf: fingerprint} of a checkpoint, parameters and optimiser."""
    document = layout.read_document(layout.step_directory(model_dir / layout.CHECKPOINTS, step))
    return {path: leaf.fingerprint for path, leaf in document.leaves.items()}


def steps(model_dir: pathlib.Path) -> list[int]:
    """The committed steps."""
    return layout.list_steps(model_dir / layout.CHECKPOINTS)


def check_same_metrics(left: pathlib.Path, right: pathlib.Path, first: int = 1) -> None:
    """Asserts that two runs have the same numbers on record for the same steps from `first` on, bit for bit."""
    one, two = numbers(read_metrics(left)), numbers(read_metrics(right))
    assert one.keys() == two.keys()
    assert one.keys() > {"train/loss", "optim/grad_norm"}
    for name, (at, values) in one.items():
        np.testing.assert_array_equal(at, two[name][0], err_msg=name)
        np.testing.assert_array_equal(values[at >= first], two[name][1][at >= first], err_msg=name)


def numbers(log: MetricLog) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{metric: (steps, values)} without those that depend on the machine."""
    kept = ("train/", "optim/", "eval/")
    return {name: (s.steps, s.values) for name, s in log.series.items() if name.startswith(kept)}


def contents(directory: pathlib.Path) -> dict[str, str]:
    """{path below: hash of its bytes} of every file and folder."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(directory.rglob("*"))
    }
