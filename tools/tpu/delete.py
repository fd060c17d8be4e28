"""Gives slices back, and what lies on their disks with them. What is in buckets stays.

python tools/tpu/delete.py NAME
"""

from __future__ import annotations

import argparse

from cloud import QUEUED, add_name, call, check_name, execute, make_parser, where


def make_deletion(arguments: argparse.Namespace) -> list[str]:
    """`gcloud`'s words: the request, with the machines that it brought."""
    return [*QUEUED, "delete", check_name(arguments.name), *where(arguments), "--force", "--quiet"]


def main() -> int:
    """The command line; returns the exit code."""
    parser = make_parser(__doc__)
    add_name(parser)
    arguments = parser.parse_args()
    return execute(arguments, make_deletion(arguments))


if __name__ == "__main__":
    call(main)
