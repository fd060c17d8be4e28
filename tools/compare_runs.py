"""Says at which step two runs part, in which metric and by how much, and in what their records differ.

    python tools/compare_runs.py A B

A and B are MODEL_DIRs, local or gs://. Compared are the numbers of every step in metrics/metrics.jsonl, to the last
bit, but for those of the machine (speed, memory, goodput); of a step that was done twice, after a restart or a rewind,
those of the last time. What is on record where an interval ended (tokens and epochs of the data) is compared where both
have it, since one also ends where a run was stopped. Exit code: 0 where they are equal, 1 where they differ or cannot
be compared. What differs in their run.json is the likely reason, and decides nothing: runs of two machines may have the
same bits.
"""

from __future__ import annotations

import argparse
import sys

from t5x_scale.checkpoint.resume import find_differences
from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.monitor.comparison import Parting, find_partings, relative_difference
from t5x_scale.monitor.metric_log import MetricLog, log_path, read_metrics

# Of the command, not of the run.
_NOT_COMPARED = ("command_line",)


def compare(left: str, right: str, limit: int) -> bool:
    """Prints the comparison and returns whether all numbers on record are equal."""
    logs = []
    for side, path in (("A", left), ("B", right)):
        log = _read(path)
        steps = max((int(series.steps[-1]) for series in log.series.values()), default=0)
        restarts = sum(event["event"] == "start" for event in log.events) - 1
        rewinds = sum(event["event"] == "rewind" for event in log.events)
        print(f"{side}  {steps} steps, {max(restarts, 0)} restarts, {rewinds} rewinds  {files.to_path(path)}")
        logs.append(log)
    partings = find_partings(*logs)
    if partings:
        print(f"they part at step {partings[0].step}, in {partings[0].metric}")
        for parting in partings[:limit]:
            print(f"  {_render(parting)}")
        if len(partings) > limit:
            print(f"  ... and {len(partings) - limit} more metrics (--all)")
    else:
        print("equal: every number of every step has the same bits")
    _print_records(left, right)
    return not partings


def _read(path: str) -> MetricLog:
    log = read_metrics(path)
    if not log.series:
        raise UserError(f"{log_path(path)} holds no metrics: name a MODEL_DIR")
    return log


def _render(parting: Parting) -> str:
    count = f"{parting.different} of {parting.steps} steps differ"
    if parting.left is None or parting.right is None:
        here, other = ("A", "B") if parting.right is None else ("B", "A")
        return f"step {parting.step}  {parting.metric}: {here} has it, {other} has not; {count}"
    relative = relative_difference(parting.left, parting.right)
    return (
        f"step {parting.step}  {parting.metric}: {parting.left!r} and {parting.right!r}, {parting.ulps} numbers apart, "
        f"relative {relative:.2e}; {count}, by up to {parting.largest:.2e}"
    )


def _print_records(left: str, right: str) -> None:
    records = []
    for path in (left, right):
        file = files.to_path(path) / "run.json"
        if not file.exists():
            print(f"no {file}: the records are not compared")
            return
        record = files.read_json(file)
        if not isinstance(record, dict):
            raise UserError(f"{file} is no record of a run")
        records.append({name: value for name, value in record.items() if name not in _NOT_COMPARED})
    differences = find_differences(*records)
    print("in their records:" if differences else "their records are equal")
    for difference in differences:
        print(f"  {difference.render()}")


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("left", metavar="A")
    parser.add_argument("right", metavar="B")
    parser.add_argument("--all", action="store_true", help="print every metric that differs")
    arguments = parser.parse_args()
    try:
        return 0 if compare(arguments.left, arguments.right, 10**6 if arguments.all else 10) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
