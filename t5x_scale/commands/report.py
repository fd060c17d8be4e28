"""`t5x_scale report`: the life of a run as a page and a short table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.monitor.life import read_life
from t5x_scale.monitor.life_tables import make_tables
from t5x_scale.monitor.metric_log import read_metrics
from t5x_scale.monitor.report import headline, judged, make_report
from t5x_scale.planner.hindsight import JUDGES


def report(model_dir: str = "") -> int:
    """Writes `model_dir/report/`, prints its headline numbers and the path of the page, and returns exit code 0.

    Raises:
      UserError: `model_dir` is not named or holds no metrics.
    """
    if not model_dir:
        raise UserError("say which run: t5x_scale report MODEL_DIR")
    path = make_report(model_dir, JUDGES)
    console = Console()
    _print(console, headline(files.read_json(path.parent / "summary.json")))
    log = read_metrics(model_dir)
    for table in [*make_tables(model_dir, read_life(model_dir, log), log), *judged(log, JUDGES)]:
        console.print(f"\n[bold]{table.heading}[/bold]")
        _print(console, table.rows, table.header)
    # Not through rich: a path must stay on one line to be copied.
    print(f"\nreport: {path}")
    return 0


def _print(console: Console, rows: Iterable[Sequence[str]], header: Sequence[str] = ("", "")) -> None:
    table = Table(box=None, show_header=any(header), pad_edge=False, header_style="dim")
    for position, name in enumerate(header):
        table.add_column(
            name, style="dim" if position == 0 and not any(header) else "", justify="right" if position else "left"
        )
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
