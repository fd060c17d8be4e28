"""Runs, sweeps and tables of one's own as rows, and what of them a law is fitted to."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.laws import Law
from t5x_scale.laws.isoflop import Valley, fit_valley
from t5x_scale.sweeps.rows import RUN, Row, is_run, read_row

ROWS = "rows.json"
# What laws that count no tables are given under their own names.
_SAME_BUDGET = 0.05
_BARE = {"params": "bare_params", "flops": "bare_flops"}


def read_rows(paths: Iterable[str]) -> list[Row]:
    """The rows behind paths: MODEL_DIRs, directories of a sweep, and tables (CSV with a header, JSON lists of objects).

    Raises:
      UserError: there is nothing of the kind.
    """
    rows = [row for path in paths for row in _read(path)]
    if not rows:
        raise UserError("no run to fit: give MODEL_DIRs, the directory of a sweep, or a table (.csv, .json)")
    return rows


def make_data(law: type[Law], rows: Sequence[Row], source: str | None = None) -> dict[str, np.ndarray]:
    """Arrays [rows] of what a law takes and what it predicts.

    A law that counts no tables is given `bare_params`. With `source` the loss is that of one source of the runs, and
    `ratio` its trained share. A law of the best `params` at a budget is given the bottoms of the valleys of the loss.

    Raises:
      UserError: a row carries not what the law needs; names it.
    """
    if law.predicts == "params" and law.required == ("flops",) and _has(rows, "loss"):
        return _valleys(law, rows)
    chosen = [_of_source(row, source) for row in rows] if source else list(rows)
    names = [*law.required, law.predicts]
    names += [name for name in law.quantities if name not in names and _has(chosen, _column(law, name, chosen))]
    return {name: _array(law, name, chosen) for name in names}


def _read(path: str) -> list[Row]:
    place = files.to_path(path)
    if is_run(path):
        return [read_row(path)]
    if files.is_directory(place):
        if files.exists(place / ROWS):
            return _from_json(place / ROWS)
        below = sorted(str(run) for run in place.iterdir() if is_run(run))
        if below:
            return [read_row(run) for run in below]
        raise UserError(f"{path} is neither a run ({RUN}) nor a sweep ({ROWS}), and there are no runs in it")
    if not files.exists(place):
        raise UserError(f"there is no {path}")
    return _from_csv(place) if str(path).endswith(".csv") else _from_json(place)


def _from_json(path: files.Path) -> list[Row]:
    try:
        rows = json.loads(files.read_bounded(path))
    except ValueError as error:
        raise UserError(f"{path} is neither a run nor JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected a list of objects, one a run, such as {{'params': …, 'loss': …}}")
    return [{"run": f"{path}:{number}", **row} for number, row in enumerate(rows, 1)]


def _from_csv(path: files.Path) -> list[Row]:
    try:
        records = list(csv.DictReader(io.StringIO(files.read_bounded(path).decode())))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no table: {error}") from error
    rows = []
    for number, record in enumerate(records, 2):
        row: Row = {"run": f"{path}:{number}"}
        for name, text in record.items():
            if name is None or text is None:
                raise UserError(f"{path}:{number}: the line has not as many cells as the header")
            try:
                row[name.strip()] = float(text)
            except ValueError:
                row[name.strip()] = text.strip()
        rows.append(row)
    return rows


def _of_source(row: Row, source: str) -> Row:
    losses = row.get("losses") or {}
    if source not in losses:
        raise UserError(f"{row['run']} has no loss of {source}; it has those of {', '.join(losses) or 'nothing'}")
    return {**row, "loss": losses[source], "ratio": row.get("shares", {}).get(source, 0.0)}


def _column(law: type[Law], name: str, rows: Sequence[Row]) -> str:
    bare = _BARE.get(name)
    return bare if law.with_embeddings is False and bare is not None and _has(rows, bare) else name


def _has(rows: Sequence[Row], name: str) -> bool:
    return all(_is_number(row.get(name)) for row in rows)


def _array(law: type[Law], name: str, rows: Sequence[Row]) -> np.ndarray:
    column = _column(law, name, rows)
    for row in rows:
        if not _is_number(row.get(column)):
            what = f"has {column} = {row[column]!r}" if column in row else f"has no {column}"
            raise UserError(f"{row['run']} {what}, which the law {law.name} needs")
    return np.array([float(row[column]) for row in rows])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def find_valleys(law: type[Law], rows: Sequence[Row]) -> list[Valley]:
    """The valley of the loss over sizes at each budget of which there are three sizes or more.

    Raises:
      UserError: at a budget the losses have no valley.
    """
    params, loss = (_array(law, name, rows) for name in ("params", "loss"))
    return [fit_valley(budget, params[group], loss[group]) for budget, group in group_budgets(law, rows)]


def group_budgets(law: type[Law], rows: Sequence[Row]) -> list[tuple[float, np.ndarray]]:
    """(FLOPs, indices of rows) of every budget that three sizes or more met, up to the rounding of their batches."""
    flops, params = (_array(law, name, rows) for name in ("flops", "params"))
    order = np.argsort(flops)
    groups = np.split(order, np.flatnonzero(np.diff(np.log(flops[order])) > np.log1p(_SAME_BUDGET)) + 1)
    chosen = [group for group in groups if len(np.unique(params[group])) >= 3]
    return [(float(np.exp(np.mean(np.log(flops[group])))), group) for group in chosen]


def _valleys(law: type[Law], rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Bottoms of valleys at budgets; those at an end of the sizes are left out."""
    inside = [valley for valley in find_valleys(law, rows) if valley.is_inside]
    if len(inside) < 2:
        raise UserError(f"the law {law.name} needs two budgets with a valley among the sizes; there is {len(inside)}")
    return {"flops": np.array([v.flops for v in inside]), "params": np.array([v.params for v in inside])}
