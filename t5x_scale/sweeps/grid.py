"""A grid: what varies between the runs of a sweep, and what they share.

A JSON file:

    {
      "output": "runs/sizes",
      "plan": {"family": "palm", "vocab_size": 640, "length": 128},
      "gin_files": ["my_run.gin"],
      "settings": {"VOCABULARY": "bytes"},
      "axes": {"params": [1e5, 2e5], "tokens": [1e6, 4e6], "SEED": [0, 1]},
      "points": [{"params": 4e5, "tokens": 1e6}]
    }

Every combination of the axes is a run, and so is every point. Two of `params`, `tokens` and `flops` let the planner
write model.gin and run.gin, with batch, learning rate and schedule for that size and length; without them the gin files
say everything. `ratio` is the share of the source named by "domain" in a mixture with "general". Any other name is a
gin setting. A value that is an object sets several names at once, and its axis may be called anything:
{"data": [{"MIXTURE_OR_TASK_NAME": "a", "MAX_EPOCHS": 4}, …]}. "quantities" are noted in the rows of all runs and set
nothing, and "about" says what the grid is for. "like" names a file beside this one from which it takes what it does not
say itself.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.errors import UserError, did_you_mean

PLANNED = ("params", "tokens", "flops")
RATIO = "ratio"
_PLAN_OPTIONS = ("family", "vocab_size", "length", "chips", "law", "laws")
_SETTING = re.compile(r"([A-Z][A-Z0-9_]*|[\w./]*\w+\.\w+\.\w+|\w+\.\w+)")


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a file says; see the module.

    Attributes:
      output: the directory of the sweep; each run is a directory below.
      axes: values by name.
      points: further runs, values by name.
      plan: options of the planner.
      gin_files: behind those of the planner, later ones win.
      settings: gin settings of all runs.
      domain, general: the two sources whose mixture `ratio` is.
      quantities: noted in the rows.
    """

    output: str
    axes: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)
    points: tuple[Mapping[str, Any], ...] = ()
    plan: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gin_files: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    domain: str | None = None
    general: str | None = None
    quantities: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a grid: its name, and what it sets."""

    name: str
    values: Mapping[str, Any]


def load_grid(path: str) -> Grid:
    """Reads and checks a grid.

    Raises:
      UserError: there is no such file, or it is no grid; says what is wrong where.
    """
    record = _read(path)
    if "like" in record:
        other = str(files.to_path(path).parent / str(record.pop("like")))
        record = _merge(_read(other), record)
    return make_grid(record, path)


def _read(path: str) -> dict[str, Any]:
    try:
        record = json.loads(files.read_bounded(path))
    except OSError as error:
        raise UserError(f"cannot read the grid {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"the grid {path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: a grid is an object with 'output' and 'axes'")
    return record


def _merge(usual: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What `own` says, and of objects also what only `usual` says."""
    merged = {**usual, **own}
    for name in usual.keys() & own.keys():
        if isinstance(usual[name], dict) and isinstance(own[name], dict):
            merged[name] = {**usual[name], **own[name]}
    return merged


def make_grid(record: Mapping[str, Any], where: str) -> Grid:
    """A grid from plain values, checked.

    Raises:
      UserError: it is none.
    """
    record = {name: value for name, value in record.items() if name != "about"}
    known = {field.name: field for field in dataclasses.fields(Grid)}
    for name, value in record.items():
        if name not in known:
            raise UserError(f"{where}: a grid has no '{name}'{did_you_mean(name, known)}")
        expected = _KINDS[name]
        if not isinstance(value, expected):
            raise UserError(f"{where}: '{name}' is {value!r}; expected {_WORDS[expected]}")
    if not record.get("output", "").strip():
        raise UserError(f"{where}: a grid needs 'output', the directory of its runs")
    listed = {name: tuple(record[name]) for name in ("points", "gin_files") if name in record}
    grid = Grid(**{**record, **listed})
    _check(grid, where)
    return grid


def list_points(grid: Grid) -> list[Point]:
    """The runs of a grid, each once, in the order of the file."""
    names = list(grid.axes)
    combined = [dict(zip(names, values, strict=True)) for values in itertools.product(*grid.axes.values())]
    found: dict[str, Point] = {}
    for values in [*(combined if grid.axes else []), *grid.points]:
        name = "-".join(f"{_plain(axis)}_{_text(value)}" for axis, value in values.items())
        found.setdefault(name, Point(name, dict(_flat(values))))
    return list(found.values())


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from value.items()
        else:
            yield name, value


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "_".join(_text(inner) for inner in value.values())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _plain(value)
    return f"{value:.6g}".replace("+", "")


def _plain(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", str(value)).strip("_.") or "none"


_KINDS: dict[str, type] = {
    "output": str, "axes": dict, "points": list, "plan": dict, "gin_files": list, "settings": dict, "domain": str,
    "general": str, "quantities": dict,
}  # fmt: skip
_WORDS = {str: "text", dict: "an object", list: "a list"}


def _check(grid: Grid, where: str) -> None:
    for name, values in grid.axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: the axis '{name}' is {values!r}; expected a list of values")
    if not grid.axes and not grid.points:
        raise UserError(f"{where}: neither 'axes' nor 'points': nothing varies")
    for name in grid.plan:
        if name not in _PLAN_OPTIONS:
            raise UserError(f"{where}: 'plan' has no '{name}'{did_you_mean(name, _PLAN_OPTIONS)}")
    for number, point in enumerate(grid.points):
        if not isinstance(point, dict) or not point:
            raise UserError(f"{where}: point {number} is {point!r}; expected an object of values")
    for point in list_points(grid):
        _check_point(grid, point, where)
    for name in grid.settings:
        _check_setting(name, where)


def _check_point(grid: Grid, point: Point, where: str) -> None:
    planned = [name for name in PLANNED if name in point.values]
    if len(planned) not in (0, 2):
        raise UserError(f"{where}: a run takes two of {', '.join(PLANNED)}, or none; {point.name} has {len(planned)}")
    for name, value in point.values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in PLANNED and not (is_number and value > 0):
            raise UserError(f"{where}: {name} is {value!r}; expected a positive number")
        if name == RATIO:
            if not (grid.domain and grid.general):
                raise UserError(f"{where}: 'ratio' is a share of 'domain' in a mixture with 'general': name both")
            if not (is_number and 0 <= value <= 1):
                raise UserError(f"{where}: ratio is {value!r}; expected a share from 0 to 1")
        if name not in (*PLANNED, RATIO):
            _check_setting(name, where)


def _check_setting(name: str, where: str) -> None:
    if not _SETTING.fullmatch(name):
        known = (*PLANNED, RATIO)
        near = did_you_mean(name, known) or f"; beside {', '.join(known)} it may be a gin setting"
        raise UserError(f"{where}: nothing is called '{name}'{near}")
