"""Compares the values of two checkpoints of any kind, tensor by tensor: before and after a surgery, ours and theirs.

    python tools/diff_checkpoint.py A B [--tolerance=1e-6] [--all]

A and B are what `tools/inspect_checkpoint.py` reads. Prints the tensors that differ, most first, with the largest
difference and the norm of the difference over the norm of A's. Exit code: 0 when no tensor differs by more than the
tolerance, 1 otherwise. (tools/compare_checkpoints.py compares two of ours by their bits, without reading them.)
"""

from __future__ import annotations

import argparse
import sys

from t5x_scale.conversion.sources import open_source
from t5x_scale.conversion.statistics import Difference, compare_tensors
from t5x_scale.core.errors import UserError
from t5x_scale.core.leaves import Leaves


def find_strangers(left: Leaves, right: Leaves) -> list[str]:
    """A line for each tensor that only one side has, or that has two shapes."""
    lines = [f"only in A  {path} {list(leaf.shape)}" for path, leaf in left.items() if path not in right]
    lines += [f"only in B  {path} {list(leaf.shape)}" for path, leaf in right.items() if path not in left]
    both = [path for path in left if path in right and left[path].shape != right[path].shape]
    return lines + [f"shapes     {path} {list(left[path].shape)} and {list(right[path].shape)}" for path in both]


def find_differences(left: Leaves, right: Leaves) -> dict[str, Difference]:
    """The differences of the tensors that both sides have in one shape, the largest first."""
    both = [path for path in left if path in right and left[path].shape == right[path].shape]
    found = {path: compare_tensors(left[path].array, right[path].array) for path in both}
    return dict(sorted(found.items(), key=lambda item: -item[1].relative))


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("left", metavar="A")
    parser.add_argument("right", metavar="B")
    parser.add_argument("--tolerance", type=float, default=0.0, help="of the relative difference (default 0)")
    parser.add_argument("--all", action="store_true", help="print equal tensors too")
    arguments = parser.parse_args()
    try:
        sources = [open_source(path, parameters_only=True, verify=False) for path in (arguments.left, arguments.right)]
        for side, source in zip("AB", sources, strict=True):
            print(f"{side}  {source.place} ({source.kind})")
        left, right = (source.weights.leaves for source in sources)
        strangers, differences = find_strangers(left, right), find_differences(left, right)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    over = [path for path, gap in differences.items() if not (gap.is_equal or gap.relative <= arguments.tolerance)]
    for path, gap in differences.items():
        if arguments.all or not gap.is_equal:
            print(f"{gap.relative:12.4g} relative  {gap.max_abs:12.4g} at most  {path}")
    print(*strangers, sep="\n" if strangers else "")
    print(
        f"{len(differences)} tensors in both, {len(over)} beyond the tolerance, {len(strangers)} without a counterpart"
    )
    return int(bool(over or strangers))


if __name__ == "__main__":
    sys.exit(main())
