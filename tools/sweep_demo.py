"""`make sweep-demo`: fifty runs of 20 to 640 thousand parameters, laws fitted to them, and a plan tried.

    python tools/sweep_demo.py --jobs=2

Grids in gin/runs/sweep_demo/ are trained into runs/sweep_demo/ (L(N), L(D), IsoFLOP valleys, epochs, the share of a
domain in continued training, people learnt by heart); laws are fitted to them; a run for a budget above that of the
valleys is planned by these laws and trained, and its loss held against the prediction. Leaves laws.json, plots/,
results.json and table.md, with the date and with what did not come out. The same command again goes on where it was
stopped (exit code 75), and trains nothing twice; delete runs/sweep_demo/plan to plan anew.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import sys
import time

from t5x_scale.core.errors import UserError
from t5x_scale.core.files import write_json, write_text
from t5x_scale.core.preemption import EXIT_RESUMABLE
from t5x_scale.main import main as t5x_scale
from t5x_scale.sweeps import findings, fits, plots
from t5x_scale.sweeps.grid import make_grid
from t5x_scale.sweeps.jobs import make_jobs
from t5x_scale.sweeps.pool import Pool
from t5x_scale.sweeps.rows import Row, read_row
from t5x_scale.sweeps.run import sweep
from t5x_scale.sweeps.tables import read_rows
from tasks import people_text

ROOT, GRIDS = pathlib.Path("runs/sweep_demo"), "gin/runs/sweep_demo"
FIRST = ("scaling", "isoflop", "epochs", "base", "people")
# The shares go on with what `base` trained.
THEN = ("shares",)
BUDGET = 8e12
# The tokens of all sizes, and the size of all numbers of tokens, in scaling.json.
SIZES_AT, TOKENS_AT = 2.4e6, 1.6e5
DOMAIN, GENERAL = "stdlib_code", "stdlib_docs"


def train(names: tuple[str, ...], jobs: int) -> int:
    """Trains grids; returns their exit code."""
    return sweep([f"{GRIDS}/{name}.json" for name in names], jobs)


def fit(rows: dict[str, list[Row]]) -> dict[str, fits.Fitted]:
    """All laws, by the name of their picture."""
    once = [*rows["scaling"], *rows["isoflop"]]
    sizes = [row for row in rows["scaling"] if abs(row["tokens"] / SIZES_AT - 1) < 0.05]
    tokens = [row for row in rows["scaling"] if abs(row["params"] / TOKENS_AT - 1) < 0.05]
    return {
        "sizes": fits.fit_rows("kaplan_params", sizes),
        "tokens": fits.fit_rows("kaplan_tokens", tokens),
        "chinchilla": fits.fit_rows("chinchilla", once),
        "data_constrained": fits.fit_rows("data_constrained", [*once, *rows["epochs"]]),
        "share_of_domain": fits.fit_rows("dcpt_share", rows["shares"], DOMAIN, samples=0),
        "share_of_general": fits.fit_rows("dcpt_share", rows["shares"], GENERAL, samples=0),
    }


def train_plan(laws: pathlib.Path) -> tuple[int, float, Row | None]:
    """Plans a run for the budget by the fitted laws and trains it: exit code, predicted loss, its row."""
    directory = ROOT / "plan"
    if not (directory / "plan.json").exists():
        shape = ["--family=palm", "--vocab_size=640", "--length=128", "--chips=cpu"]
        words = [f"--flops={BUDGET:g}", "--law=chinchilla", f"--laws={laws}", f"--output={directory}"]
        if code := t5x_scale(["plan", *words, *shape, f"--report={directory}/plan.png"]):
            return code, 0.0, None
    predicted = json.loads((directory / "plan.json").read_text())["choices"]["expected loss"]["value"]
    gin_files = [f"{directory}/model.gin", f"{directory}/run.gin"]
    # Should the laws ask for more tokens than there are, a second epoch is worth nearly as much.
    more = {"output": str(directory), "gin_files": gin_files, "points": [{"MAX_EPOCHS": 4.0}]}
    grid = make_grid({**json.loads(pathlib.Path(GRIDS, "_common.json").read_text()), **more}, "plan")
    (job,) = make_jobs(grid)
    code = Pool(1).train([job]).code
    return code, predicted, None if code else read_row(job.model_dir)


def judge(rows: dict[str, list[Row]], fitted: dict[str, fits.Fitted], predicted: float, planned: Row | None) -> list:
    """Every finding; `planned` is None where that run came to nothing."""
    largest = max(row["flops"] for row in (*rows["scaling"], *rows["isoflop"]))
    people = (people_text.VALUE_BITS, people_text.NAMES, people_text.TOKENS_A_PERSON)
    return [
        findings.power_law("L(N)", fitted["sizes"], "params"),
        findings.power_law("L(D)", fitted["tokens"], "tokens"),
        findings.valleys(rows["isoflop"]),
        findings.repetition(rows["epochs"]),
        findings.trade_off(rows["shares"], DOMAIN, GENERAL),
        findings.knowledge(rows["people"], *people),
        findings.prediction(predicted, planned, largest),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        for names in (FIRST, THEN):
            if code := train(names, options.jobs):
                return code
        rows = {name: read_rows([str(ROOT / name)]) for name in (*FIRST, *THEN)}
        fitted = fit(rows)
        for name, one in fitted.items():
            print(f"\n{fits.to_text(one)}")
            plots.draw(one, str(ROOT / "plots" / f"{name}.png"))
        plots.draw_valleys(rows["isoflop"], str(ROOT / "plots" / "valleys.png"))
        laws = ROOT / "laws.json"
        write_json(laws, [fits.to_json(fitted[name]) for name in ("chinchilla", "data_constrained")])
        code, predicted, planned = train_plan(laws)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if code == EXIT_RESUMABLE:
        return code
    found = judge(rows, fitted, predicted, planned)
    count = sum(map(len, rows.values())) + 1
    head = f"{datetime.date.today()}, {count} runs, this call {(time.monotonic() - began) / 60:.0f} minutes."
    table = findings.to_markdown(found, head)
    write_text(ROOT / "table.md", table)
    write_json(ROOT / "results.json", {"date": str(datetime.date.today()), "findings": [vars(f) for f in found]})
    print(f"\n{table}")
    return code


if __name__ == "__main__":
    sys.exit(main())
