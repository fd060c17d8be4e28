"""A bar for a sweep: how much of its compute is done, and where the runs at hand are."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Sequence

from t5x_scale.monitor.metric_log import log_path
from t5x_scale.sweeps.jobs import Job

_TAIL_BYTES = 16384


class Progress:
    """A context manager that shows a bar on a terminal, and a line for every finished run elsewhere.

    Attributes:
      bar: rich's, within the context and on a terminal; else None.
    """

    def __init__(self, jobs: Sequence[Job], done: Collection[str]) -> None:
        # What nobody planned counts like the average of the others.
        known = [job.flops for job in jobs if job.flops]
        usual = sum(known) / len(known) if known else 1.0
        self._cost = {job.model_dir: job.flops or usual for job in jobs}
        self._said = set(done)
        self.bar = None
        self._task = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            columns = (
                progress.BarColumn(bar_width=24),
                progress.TaskProgressColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.description}"),
            )
            self.bar = progress.Progress(*columns, console=Console(stderr=True), speed_estimate_period=600)
            self._task = self.bar.add_task("", total=sum(self._cost.values()))
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, busy: Sequence[Job], finished: Sequence[str], failed: Sequence[str]) -> None:
        """Tells what runs, and what is done."""
        if self.bar is not None:
            states = [(job, *last_step(job)) for job in busy]
            done = sum(self._cost[name] for name in (*finished, *failed))
            done += sum(self._cost[job.model_dir] * step / total for job, step, total in states if total)
            at = ", ".join(f"{job.name} {step}" for job, step, _ in states)
            self.bar.update(self._task, completed=done, description=f"{len(finished)} of {len(self._cost)}; {at}")
            return
        for name in finished:
            if name not in self._said:
                self._said.add(name)
                print(f"{len(finished)} of {len(self._cost)}: {name}", flush=True)


def last_step(job: Job) -> tuple[int, int]:
    """(steps done, steps in all) of a run; zeros where it has not begun, or does not say."""
    try:
        with open(os.fspath(log_path(job.model_dir)), "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().splitlines()
        # The last one may be half written.
        step = next((json.loads(line)["step"] for line in reversed(lines[:-1]) if line.endswith(b"}")), 0)
        with open(f"{job.model_dir}/run.json", encoding="utf-8") as file:
            return int(step), int(json.load(file)["free"]["train_steps"])
    except (OSError, ValueError, KeyError):
        return 0, 0
