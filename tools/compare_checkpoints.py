"""Compares two checkpoints leaf by leaf, by their fingerprints.

    python tools/compare_checkpoints.py A B

A and B are MODEL_DIRs (the newest step), `checkpoints` directories, or single steps, local or gs://. Prints
the steps, every leaf that differs, and one digest a side. Exit code: 0 equal, 1 different or not comparable.
"""

from __future__ import annotations

import argparse
import sys

from t5x_scale.checkpoint.layout import combine_digest, read_newest
from t5x_scale.core.errors import UserError


def compare(left: str, right: str, show_all: bool = False) -> bool:
    """Prints the comparison and returns whether steps and all leaves are equal."""
    documents = []
    for side, path in (("A", left), ("B", right)):
        where, document = read_newest(path)
        print(f"{side}  step {document.step:>8}  digest {combine_digest(document)}  {where}")
        documents.append(document)
    first, second = (document.leaves for document in documents)
    different = 0
    for path in sorted(first.keys() | second.keys()):
        equal = first.get(path) == second.get(path)
        different += not equal
        if show_all or not equal:
            shown = [side[path].fingerprint if path in side else "absent" for side in (first, second)]
            print(f"{'equal    ' if equal else 'DIFFERENT'}  {shown[0]:>16}  {shown[1]:>16}  {path}")
    same_step = documents[0].step == documents[1].step
    print(
        f"{len(first.keys() | second.keys())} leaves, {different} different; steps {'equal' if same_step else 'differ'}"
    )
    return same_step and not different


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("left", metavar="A")
    parser.add_argument("right", metavar="B")
    parser.add_argument("--all", action="store_true", help="print equal leaves too")
    arguments = parser.parse_args()
    try:
        return 0 if compare(arguments.left, arguments.right, arguments.all) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
