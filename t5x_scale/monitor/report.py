"""The report of a run, made from what stands in its directory: loss curve, tables and a page to read them on."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.core.patience import read_patiently
from t5x_scale.monitor import figures, metric_log, page, phases
from t5x_scale.monitor.figures import smoothing_half
from t5x_scale.monitor.life import RunLife, read_life
from t5x_scale.monitor.life_figure import draw_life
from t5x_scale.monitor.life_tables import Table, make_tables
from t5x_scale.monitor.metric_log import MetricLog, Series, to_json_number
from t5x_scale.monitor.plan_band import PlanCourse, load_plan_band, make_course
from t5x_scale.monitor.status import format_count, format_duration

TRAIN_LOSS, TOKENS = "train/loss", "train/tokens"
_VALIDATION_LOSS = re.compile(r"eval/(?P<task>.+)/loss")
_PANELS = (
    # metric, title, whether it is a share, whether it is noisy
    ("optim/learning_rate", "Learning rate", False, False),
    ("optim/grad_norm", "Gradient norm", False, True),
    ("throughput/tokens_per_second", "Tokens per second", False, True),
    ("throughput/mfu", "Model FLOPs utilisation, full attention", True, True),
    ("throughput/data_wait_fraction", "Share of time waiting for data", True, True),
    ("memory/hbm_peak_bytes", "Peak device memory, bytes", False, False),
)
# Somebody who knows more than the record: a table, or None for nothing to say.
Judge = Callable[[MetricLog], Table | None]
_LARGEST_DOCUMENT = 256 * 1024


def make_report(model_dir: str | os.PathLike, judges: Sequence[Judge] = ()) -> files.Path:
    """Writes `MODEL_DIR/report/{loss.png, report.html, summary.json}` and returns the path of the page.

    Reads `metrics/metrics.jsonl` and the phase logs under `health/`, and shows `config.gin`, `model-info.txt` and the
    JSON records of the run where they stand beside it. Every number on the page comes from these files; `judges` add
    tables of what others make of them.

    Raises:
      UserError: there is no such directory, no metrics in it, or it cannot be read.
    """
    directory = files.to_path(model_dir)
    log = read_patiently(lambda: metric_log.read_metrics(directory), f"the record of {directory}")
    if not log.series:
        path = metric_log.log_path(directory)
        missing = f"{path} holds no metrics" if files.exists(directory) else f"no such directory: {directory}"
        raise UserError(f"{missing}; a report is made from the MODEL_DIR of a run that has logged at least one step")
    life = read_life(directory, log)
    summary = {**summarise(log), "life": _summarise_life(life)}
    course, summary["plan"] = _read_plan(directory, log, summary["train_loss"])
    train, validation = log.series.get(TRAIN_LOSS), _validation_losses(log)
    restarts = [entry["step"] for entry in summary["restarts"]]
    rewinds = [entry["step"] for entry in summary["rewinds"]]
    loss_png = figures.draw_loss(train, validation, restarts, rewinds, course)
    panels = [
        page.image(figures.draw_panel(title, log.series[name], percent=share, noisy=noisy), title)
        for name, title, share, noisy in _PANELS
        if name in log.series
    ]
    target = files.make_directory(directory / "report")
    (target / "loss.png").write_bytes(loss_png)
    files.write_json(target / "summary.json", summary)
    tables = [*make_tables(directory, life, log), *judged(log, judges)]
    story = (
        [page.image(draw_life(life), "Steps done over time, and what the first process was at")] if life.lives else []
    )
    story += [part for table in tables for part in (page.heading(table.heading), page.table(table.header, table.rows))]
    files.write_text(target / "report.html", _make_html(directory, summary, loss_png, panels, story))
    return target / "report.html"


def judged(log: MetricLog, judges: Sequence[Judge]) -> Iterator[Table]:
    """The tables of those judges that have something to say of the run."""
    return (table for judge in judges if (table := judge(log)) is not None)


def _read_plan(
    directory: files.Path, log: MetricLog, loss: dict[str, Any] | None
) -> tuple[PlanCourse | None, dict[str, Any] | None]:
    """The band of the plan along the run, and where the run stands; a damaged plan is no reason to have no report."""
    try:
        course = make_course(load_plan_band(directory), log.series.get(TOKENS))
    except UserError as error:
        return None, {"error": str(error)}
    return course, None if course is None else course.to_json(loss["mean"] if loss else None)


def summarise(log: MetricLog) -> dict[str, Any]:
    """The numbers of a report as plain JSON (numbers that are not finite as strings, as in the record)."""
    steps = max(int(series.steps[-1]) for series in log.series.values())
    train, tokens = log.series.get(TRAIN_LOSS), log.series.get(TOKENS)
    return {
        "step": steps,
        "seconds": log.seconds,
        "tokens": int(tokens.values[-1]) if tokens is not None and np.isfinite(tokens.values[-1]) else None,
        "train_loss": None if train is None else _mean_of_last(train),
        "validation_loss": {task: _summarise(series) for task, series in _validation_losses(log).items()},
        "tokens_per_second": _median(log.series.get("throughput/tokens_per_second")),
        "mfu": _median(log.series.get("throughput/mfu")),
        "metrics": {name: _summarise(series) for name, series in sorted(log.series.items())},
        "restarts": _going_back(log.events, metric_log.START)[1:],
        "rewinds": _going_back(log.events, metric_log.REWIND),
        "damaged_lines": log.damaged_lines,
    }


def _summarise_life(life: RunLife) -> dict[str, Any]:
    seconds = life.seconds()
    total = sum(seconds.values())
    return {
        "seconds": seconds,
        "goodput": seconds[phases.STEP] / total if total > 0 else None,
        "processes": [
            {
                name: getattr(entry, name)
                for name in ("began", "ended", "first_step", "last_step", "redone_steps", "reason")
            }
            for entry in life.lives
        ],
    }


def _summarise(series: Series) -> dict[str, Any]:
    finite = np.isfinite(series.values)
    values, steps = series.values[finite], series.steps[finite]
    result: dict[str, Any] = {
        "last": to_json_number(series.values[-1]),
        "step": int(series.steps[-1]),
        "points": len(series.steps),
        "not_finite": int((~finite).sum()),
    }
    if len(values):
        result |= {
            "first": float(values[0]),
            "lowest": float(values.min()),
            "lowest_step": int(steps[values.argmin()]),
            "highest": float(values.max()),
            "highest_step": int(steps[values.argmax()]),
        }
    return result


def _mean_of_last(series: Series) -> dict[str, Any]:
    """The value at the end of the smoothed curve: a single step's training loss is mostly noise."""
    values = series.values[-(smoothing_half(len(series.values)) + 1) :]
    values = values[np.isfinite(values)]
    return {"mean": float(values.mean()) if len(values) else None, "steps": len(values)}


def _median(series: Series | None) -> float | None:
    values = [] if series is None else [float(value) for value in series.values if np.isfinite(value)]
    return statistics.median(values) if values else None


def _going_back(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Where the run went back to; what has a number counts once, however often kills made it be carried out again."""
    found: dict[Any, dict[str, Any]] = {}
    for index, event in enumerate(events):
        if event["event"] == kind:
            found.setdefault(event.get("number", f"unnumbered {index}"), event)
    return [
        {"step": event["step"], "time": event["time"], "redone_steps": max(event["furthest_step"] - event["step"], 0)}
        for event in found.values()
    ]


def _validation_losses(log: MetricLog) -> dict[str, Series]:
    matches = {name: _VALIDATION_LOSS.fullmatch(name) for name in sorted(log.series)}
    return {match["task"]: log.series[name] for name, match in matches.items() if match}


def _make_html(
    directory: files.Path, summary: dict[str, Any], loss_png: bytes, panels: list[str], story: list[str]
) -> str:
    validation = [
        [task, _number(entry["last"]), _number(entry.get("lowest")), _number(entry.get("lowest_step"))]
        for task, entry in summary["validation_loss"].items()
    ]
    every = [
        [name, f"{entry['step']:,}", *(_number(entry.get(key)) for key in ("last", "lowest", "highest"))]
        for name, entry in summary["metrics"].items()
    ]
    back = [
        [kind, f"{entry['step']:,}", f"{entry['redone_steps']:,}"]
        for kind in ("restarts", "rewinds")
        for entry in summary[kind]
    ]
    documents = _documents(directory)
    return page.make_page(
        directory.name,
        str(directory),
        [
            page.facts(headline(summary)),
            page.image(loss_png, "Training and validation loss over steps"),
            _damage(summary),
            page.heading("Validation") if validation else "",
            page.table(["task", "last loss", "lowest loss", "at step"], validation),
            page.heading("Course of the run") if panels else "",
            page.panels(panels),
            page.heading("The life of the run") if story else "",
            *story,
            page.heading("Interruptions") if back else "",
            page.table(
                ["kind", "back to step", "steps done again"], [[k.removesuffix("s"), *rest] for k, *rest in back]
            ),
            page.heading("Every metric"),
            page.table(["metric", "step", "last", "lowest", "highest"], every),
            page.heading("Files"),
            page.links(
                [("metrics", "../metrics/"), ("checkpoints", "../checkpoints/"), ("summary.json", "summary.json")]
            ),
            *(page.document(name, content) for name, content in documents.items()),
        ],
    )


def headline(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, value) of the few numbers that matter most."""
    loss = summary["train_loss"]
    best = [(task, entry["last"]) for task, entry in summary["validation_loss"].items()]
    rows = [
        ("steps", f"{summary['step']:,}"),
        ("training loss", _number(loss["mean"]) if loss else None),
        (f"validation loss, {best[0][0]}" if len(best) == 1 else "", _number(best[0][1]) if len(best) == 1 else None),
        ("loss against the plan", _against_plan(summary.get("plan"))),
        ("tokens", format_count(summary["tokens"]) if summary["tokens"] is not None else None),
        ("time running", format_duration(summary["seconds"])),
        ("tokens per second", format_count(summary["tokens_per_second"]) if summary["tokens_per_second"] else None),
        ("MFU, full attention", f"{summary['mfu']:.1%}" if summary["mfu"] is not None else None),
        ("goodput", f"{summary['life']['goodput']:.1%}" if summary.get("life", {}).get("goodput") else None),
        ("restarts", str(len(summary["restarts"])) if summary["restarts"] else None),
        ("rewinds", str(len(summary["rewinds"])) if summary["rewinds"] else None),
    ]
    return [(label, value) for label, value in rows if value is not None]


def _against_plan(plan: dict[str, Any] | None) -> str | None:
    if plan is None:
        return None
    if "error" in plan:
        return plan["error"]
    return f"{plan['side']} the band of {plan['law']}, {_number(plan['low'])} to {_number(plan['high'])}"


def _damage(summary: dict[str, Any]) -> str:
    sentences = [
        f"{name} is not finite at {entry['not_finite']:,} of {entry['points']:,} steps."
        for name, entry in summary["metrics"].items()
        if entry["not_finite"]
    ]
    if summary["damaged_lines"]:
        sentences.append(f"{summary['damaged_lines']} lines of metrics.jsonl are damaged and were left out.")
    return page.warning(" ".join(sentences)) if sentences else ""


def _documents(directory: files.Path) -> dict[str, str]:
    """config.gin, model-info.txt and the small JSON files of the run, by name."""
    names = ["config.gin", "model-info.txt"]
    names += sorted(path.name for path in directory.iterdir() if path.name.endswith(".json"))
    found = {}
    for name in names:
        path = directory / name
        if not files.exists(path) or files.is_directory(path):
            continue
        content = path.read_bytes()[:_LARGEST_DOCUMENT].decode("utf-8", errors="replace")
        found[name] = content + ("\n…" if len(content) >= _LARGEST_DOCUMENT else "")
    return found


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    if 1e3 <= abs(value) < 1e9:
        return f"{value:,.1f}"
    return f"{value:.4f}" if 1e-2 <= abs(value) < 1e3 else f"{value:.4g}"
