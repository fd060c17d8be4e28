"""Fits scaling laws to runs of one's own.

    python tools/fit_laws.py runs/sizes --law=chinchilla,kaplan_params --output=laws.json --report=runs/sizes/fits
    python tools/fit_laws.py table.csv --law=data_constrained
    python tools/fit_laws.py runs/shares --law=dcpt_share --source=stdlib_code

Runs are MODEL_DIRs, directories of a sweep (tools/sweep.py), or tables: CSV with a header or a JSON list of objects,
whose columns are called as the quantities of the laws (`params tokens loss …`). Printed are the constants with their
bootstrap intervals beside the published ones, and the error on rows kept away from a second fit. `t5x_scale plan
--laws=laws.json` plans by them; --report draws a picture of each.
"""

from __future__ import annotations

import argparse
import sys

from t5x_scale.core.errors import UserError
from t5x_scale.core.files import make_directory, to_path, write_json
from t5x_scale.sweeps import fits, plots
from t5x_scale.sweeps.tables import read_rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUNS")
    parser.add_argument("--law", required=True, help="names, separated by commas; `t5x_scale.laws.LAWS` has them")
    parser.add_argument("--source", help="whose loss is fitted, where runs have several; its share is `ratio`")
    parser.add_argument("--output", help="a JSON file for `t5x_scale plan --laws`")
    parser.add_argument("--report", help="a directory for pictures")
    parser.add_argument("--samples", type=int, default=fits.SAMPLES, help="of the bootstrap (default %(default)s)")
    parser.add_argument("--held_out", type=float, default=fits.HELD_OUT, help="share of rows (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        rows = read_rows(options.runs)
        settings = {name: getattr(options, name) for name in ("source", "samples", "held_out", "seed")}
        fitted = [fits.fit_rows(name.strip(), rows, **settings) for name in options.law.split(",")]
        print("\n\n".join(map(fits.to_text, fitted)))
        if options.output:
            make_directory(to_path(options.output).parent)
            write_json(options.output, [fits.to_json(one) for one in fitted])
            print(f"\nwritten to {options.output}")
        for one in fitted if options.report else ():
            plots.draw(one, f"{options.report}/{one.law.name}.png")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
