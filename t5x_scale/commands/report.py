"""`t5x_scale report`: the life of a run as a page and a short table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from t5x_scale.core import files
from t5x_scale.monitor.report import headline, make_report


def report(model_dir: str) -> int:
    """Writes `model_dir/report/`, prints its headline numbers and the path of the page, and returns exit code 0.

    Raises:
      UserError: `model_dir` holds no metrics.
    """
    path = make_report(model_dir)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for label, value in headline(files.read_json(path.parent / "summary.json")):
        table.add_row(label, value)
    Console().print(table)
    # Not through rich: a path must stay on one line to be copied.
    print(f"report: {path}")
    return 0
