"""A sweep from its file to its rows."""

from __future__ import annotations

import sys

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.sweeps.grid import load_grid
from t5x_scale.sweeps.jobs import Job, make_jobs
from t5x_scale.sweeps.pool import Pool
from t5x_scale.sweeps.rows import Row, read_row
from t5x_scale.sweeps.tables import ROWS


def list_jobs(paths: list[str]) -> dict[str, list[Job]]:
    """The runs of each grid, by the grid's directory.

    Raises:
      UserError: a grid is none, or two share a directory.
    """
    jobs: dict[str, list[Job]] = {}
    for path in paths:
        grid = load_grid(path)
        if grid.output in jobs:
            raise UserError(f"{path}: another grid writes to {grid.output} too")
        jobs[grid.output] = make_jobs(grid)
    return jobs


def describe(jobs: dict[str, list[Job]]) -> str:
    """What would be trained."""
    every = [job for group in jobs.values() for job in group]
    lines = [f"{job.model_dir:70} {job.flops:10.3g} FLOPs" if job.flops else job.model_dir for job in every]
    return "\n".join([*lines, f"{len(every)} runs, {sum(job.flops for job in every):.3g} FLOPs"])


def sweep(paths: list[str], count: int = 1) -> int:
    """Trains the runs of grids, `count` at a time, and writes rows.json into the directory of each.

    Returns:
      0 when all are finished, 75 when stopped and the same call goes on, 1 when a run failed.

    Raises:
      UserError: a grid is none, or a finished run had other settings.
    """
    jobs = list_jobs(paths)
    if count < 1:
        raise UserError(f"--jobs is {count}; expected 1 or more")
    outcome = Pool(count).train([job for group in jobs.values() for job in group])
    finished = set(outcome.finished)
    for directory, group in jobs.items():
        rows = [make_row(job) for job in group if job.model_dir in finished]
        files.make_directory(directory)
        files.write_json(files.to_path(directory) / ROWS, rows)
        print(f"{len(rows)} of {len(group)} runs: {directory}/{ROWS}")
    if outcome.resumable:
        print(f"stopped with {len(outcome.resumable)} runs to go: the same command goes on", file=sys.stderr)
    return outcome.code


def make_row(job: Job) -> Row:
    """The row of a finished run, with what its grid notes."""
    return {**read_row(job.model_dir), **job.quantities}
