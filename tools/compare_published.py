"""Predicts the steps of the published rows and holds them against what was measured.

    python tools/compare_published.py [NAME…] [--output=DIR]

NAME is a file of gin/calibration without its ending; all of them by default. Each is compiled by `t5x_scale
precompile`, which needs the package libtpu and minutes; DIR keeps its reports, and what is in DIR already is not
compiled again. Prints the table of the README.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile

from t5x_scale.core.errors import UserError
from t5x_scale.main import main as run
from t5x_scale.roofline.calibration import COMPARABLE, Comparison, compare, find_published, to_table


def predict(name: str, folder: pathlib.Path) -> Comparison:
    """Compiles a row, unless its report is in `folder`, and compares it.

    Raises:
      UserError: it does not compile, or there is no prediction for it.
    """
    find_published(name)
    path = folder / f"{name}.json"
    if not path.exists():
        code = run(["precompile", f"--gin_file=gin/calibration/{name}.gin", f"--output={path}"])
        if code or not path.exists():
            raise UserError(f"{name}: precompile ended with {code}")
    prediction = json.loads(path.read_text())["steps"][-1]["prediction"]
    if prediction is None:
        raise UserError(f"{name}: no prediction, it was not compiled; see {path}")
    return compare(name, prediction)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--output", metavar="DIR", type=pathlib.Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.output or pathlib.Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            print(to_table([predict(name, folder) for name in arguments.names or COMPARABLE]))
        except UserError as error:
            print(f"compare_published: error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
