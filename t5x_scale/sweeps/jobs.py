"""From a point of a grid to a run that can be trained: its gin files, its words, and whether it is done already."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.planner import gin_files
from t5x_scale.planner.budgets import make_budget
from t5x_scale.planner.law_table import load_laws
from t5x_scale.planner.plans import Plan, make_plan
from t5x_scale.sweeps.grid import PLANNED, RATIO, Grid, Point, list_points

FINISHED = "finished.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to be trained.

    Attributes:
      name: within its sweep.
      model_dir: of it.
      gin_files: in order.
      settings: gin settings, as gin text.
      texts: files to be written below model_dir before it starts.
      flops: that it takes; 0 where nobody planned it.
      quantities: that its row notes.
    """

    name: str
    model_dir: str
    gin_files: tuple[str, ...]
    settings: Mapping[str, str]
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    flops: float = 0.0
    quantities: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """The command: `t5x_scale train …` without its first word."""
        settings = [f"--gin.{name}={value}" for name, value in self.settings.items()]
        return ["train", *(f"--gin_file={path}" for path in self.gin_files), *settings]

    @property
    def identity(self) -> dict[str, Any]:
        """What a run must have been trained with to count as this one."""
        # The reasons of a plan stand in comments, and may be put otherwise tomorrow.
        return {"words": self.words, "texts": {name: _without_comments(text) for name, text in self.texts.items()}}


def make_jobs(grid: Grid) -> list[Job]:
    """All runs of a grid.

    Raises:
      UserError: the planner knows no run for a size and a number of tokens.
    """
    return [make_job(grid, point) for point in list_points(grid)]


def make_job(grid: Grid, point: Point) -> Job:
    """The run of one point."""
    model_dir = f"{grid.output.rstrip('/')}/{point.name}"
    planned = {name: value for name, value in point.values.items() if name in PLANNED}
    plan = _make_plan(grid, planned) if planned else None
    texts = {} if plan is None else _plan_texts(plan, planned, model_dir)
    own = {name: value for name, value in point.values.items() if name not in (*PLANNED, RATIO)}
    settings = {**grid.settings, **own, "MODEL_DIR": model_dir}
    if RATIO in point.values:
        settings["MIXTURE_RATES"] = _mixture(grid, point.values[RATIO])
    return Job(
        name=point.name,
        model_dir=model_dir,
        gin_files=(*(f"{model_dir}/{name}" for name in texts), *grid.gin_files),
        settings={name: to_gin(value) for name, value in settings.items()},
        texts=texts,
        flops=0.0 if plan is None else plan.cost.flops,
        quantities=grid.quantities,
    )


def to_gin(value: Any) -> str:
    """A JSON value as gin text; what begins with @ or % is a reference."""
    if isinstance(value, str) and value[:1] in "@%" and value:
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(to_gin, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {to_gin(item)}" for key, item in value.items()) + "}"
    return repr(value)


def write_texts(job: Job) -> None:
    """Writes the gin files of a run."""
    directory = files.make_directory(job.model_dir)
    for name, text in job.texts.items():
        files.write_text(directory / name, text)


def is_finished(job: Job) -> bool:
    """Whether it was trained to its end.

    Raises:
      UserError: what was trained there had other settings.
    """
    path = files.to_path(job.model_dir) / FINISHED
    if not files.exists(path):
        return False
    if json.loads(files.read_bounded(path)) != job.identity:
        raise UserError(
            f"{job.model_dir} was trained with other settings than the grid says now: delete it, or give the grid "
            "another 'output'"
        )
    return True


def mark_finished(job: Job) -> None:
    """Puts on record that it was trained to its end, and how."""
    files.write_json(files.to_path(job.model_dir) / FINISHED, job.identity)


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if line and not line.startswith("#"))


def _make_plan(grid: Grid, planned: Mapping[str, float]) -> Plan:
    options = dict(grid.plan)
    law, laws = options.pop("law", None), load_laws(options.pop("laws", None))
    return make_plan(make_budget(**planned, **options), laws, law)


def _plan_texts(plan: Plan, planned: Mapping[str, float], model_dir: str) -> dict[str, str]:
    title = "A run for " + ", ".join(f"{name}={value:g}" for name, value in planned.items())
    return {"model.gin": gin_files.model_text(plan), "run.gin": gin_files.run_text(plan, title, model_dir)}


def _mixture(grid: Grid, ratio: float) -> dict[str, float]:
    shares = {grid.domain: ratio, grid.general: 1 - ratio}
    return {name: share for name, share in shares.items() if share > 0}
