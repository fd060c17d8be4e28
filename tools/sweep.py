"""Trains a grid of runs, and writes their figures as rows that tools/fit_laws.py takes.

    python tools/sweep.py gin/runs/sweep_demo/sizes.json --jobs=2
    python tools/sweep.py sizes.json epochs.json --dry_run

A grid is a JSON file, described in t5x_scale/sweeps/grid.py. Every run is a `t5x_scale train` with a MODEL_DIR of its
own below the grid's `output`; what it prints is in its train.log. The same command again trains what is missing:
finished runs are left alone, stopped and killed ones go on. Exit codes: 0 all are finished, 75 stopped and resumable,
1 a run failed (the others were trained all the same).
"""

from __future__ import annotations

import argparse
import sys

from t5x_scale.core.errors import UserError
from t5x_scale.sweeps.run import describe, list_jobs, sweep


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", nargs="+", metavar="GRID.json")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores (default 1)")
    parser.add_argument("--dry_run", action="store_true", help="only list the runs")
    options = parser.parse_args(arguments)
    try:
        if options.dry_run:
            print(describe(list_jobs(options.grids)))
            return 0
        return sweep(options.grids, options.jobs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
