"""Accuracy on held-out spans, row by row, and whether a difference is more than chance.

  python tools/span_accuracy.py measure --gin_file=RUN/config.gin --gin_file=OBJECTIVES.gin --output=counts.json
  python tools/span_accuracy.py compare counts.json:span_from_both_sides baseline.json:span_from_left

`measure` goes through a split with each of EVAL_OBJECTIVES (see `data.objectives.infill` for those that hold out spans)
and writes the sums of every row; --gin.NAME=value changes a setting. `compare` adds the tasks together and prints both
accuracies, and their difference with its confidence interval: a paired bootstrap over rows. It exits with 0 if the
first is the better one with that confidence, with 1 if it is not or there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, NoReturn

from t5x_scale.checkpoint.restore import restore_parameters
from t5x_scale.commands import COMMANDS
from t5x_scale.config.load import Setting, load, make_arguments
from t5x_scale.core.errors import UserError
from t5x_scale.core.files import make_directory, to_path, write_json
from t5x_scale.data.pipeline import make_eval_sources
from t5x_scale.evaluation import evaluate_rows
from t5x_scale.metrics import RowSums, accuracy_gain, by_objective
from t5x_scale.run_files import check_data, data_options


def measure(gin_files: list[str], gin_words: list[str], output: str) -> None:
    """Evaluates the newest checkpoint of a run, or of `checkpoint_path`, and writes the sums of every row."""
    sys.path.insert(0, os.getcwd())
    words = [word.removeprefix("--gin.").partition("=") for word in gin_words]
    settings = [Setting(name, value, f"--gin.{name}") for name, _, value in words]
    arguments = make_arguments(load("eval", COMMANDS, gin_files, settings))
    data, evaluation, model_dir = arguments["data"], arguments["evaluation"], arguments["model_dir"]
    if not data.eval_objectives:
        raise UserError("EVAL_OBJECTIVES is empty: name what to measure, such as (@objectives.SpanFromLeft(),)")
    runtime = arguments["program"].make()
    check_data(runtime, data, evaluation.batch_size)
    make_directory(to_path(output).parent)
    checkpoint = arguments.get("checkpoint_path") or model_dir
    params, origin = restore_parameters(checkpoint, runtime.abstract_params)
    sources = make_eval_sources(data, **evaluation.options(), **data_options(model_dir))
    # Those of the objective of training are called like their tasks.
    chosen = {name: source for name, source in sources.items() if name != source.name}
    rows = evaluate_rows(runtime.row_eval_step, runtime.batch_sharding, params, chosen)
    for name, sums in rows.items():
        print(f"{name:40} loss {sums.loss:.4f}  accuracy {sums.accuracy:.4f}  tokens {int(sums.weight.sum()):,}")
    record = {"checkpoint": str(origin.source), "step": origin.step, "split": evaluation.split}
    write_json(output, record | {"rows": {name: sums.to_dict() for name, sums in rows.items()}})
    print(f"written to {output}")


def read_rows(name: str) -> RowSums:
    """The rows of all tasks, of `FILE:OBJECTIVE`."""
    path, _, objective = name.rpartition(":")
    if not path or not to_path(path).exists():
        raise UserError(f"{name}: write FILE:OBJECTIVE, a file that `measure` wrote and one of its objectives")
    rows = by_objective(json.loads(to_path(path).read_text())["rows"])
    if objective not in rows:
        raise UserError(f"{path} has nothing of '{objective}'; it has {', '.join(sorted(rows))}")
    return RowSums.join(list(rows[objective].values()))


def compare(first: str, second: str, options: dict[str, Any]) -> bool:
    """Prints the comparison and returns whether the first is the more accurate one, with confidence."""
    after, before = read_rows(first), read_rows(second)
    gain = accuracy_gain(after, before, **options)
    for name, sums in ((first, after), (second, before)):
        print(f"{sums.accuracy:8.4f}  {name}  ({len(sums.weight):,} rows, {int(sums.weight.sum()):,} tokens)")
    print(f" {gain.render()}  {options['confidence']:.0%} confidence")
    return gain.side == "above"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--gin_file", action="append", required=True, help="configuration; may be given many times")
    measuring.add_argument("--output", required=True, help="a JSON file")
    comparing = commands.add_parser("compare")
    comparing.add_argument("first", metavar="FILE:OBJECTIVE")
    comparing.add_argument("second", metavar="FILE:OBJECTIVE")
    comparing.add_argument("--confidence", type=float, default=0.95)
    comparing.add_argument("--block", type=int, default=1, help="neighbouring rows that are drawn together")
    return parser


def main() -> int:
    """The command line; returns the exit code."""
    gin_words = [word for word in sys.argv[1:] if word.startswith("--gin.")]
    try:
        options = make_parser().parse_args([word for word in sys.argv[1:] if word not in gin_words])
        if options.command == "measure":
            measure(options.gin_file, gin_words, options.output)
            return 0
        settings = {"confidence": options.confidence, "block": options.block}
        return 0 if compare(options.first, options.second, settings) else 1
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
