"""Keeps slices there until the work is done: asks for them, and again whenever they were taken away.

    python tools/tpu/keep.py NAME MACHINE --spot --startup_script=train.sh

Takes the words of create.py. With a start-up script (startup.py) the training goes on by itself on whatever comes. Ends
only by a signal: look at the log (logs.py), and give the slices back (delete.py) when it says `done`.
"""

from __future__ import annotations

import argparse
import sys
import time

from cloud import QUEUED, call, execute, make_parser, render, start, where
from create import add_request, make_request
from delete import make_deletion

# Taken away, or never to come; Cloud keeps the request until it is deleted.
_GONE = ("SUSPENDED", "FAILED")


def read_state(arguments: argparse.Namespace) -> str | None:
    """The state of the request, empty where there is none; None where Cloud does not answer."""
    words = [*QUEUED, "list", *where(arguments), f"--filter=name~/{arguments.name}$", "--format=value(state.state)"]
    if arguments.print:
        print(render(words))
        return _GONE[0]
    looked = start(words, capture_output=True, text=True)
    if looked.returncode:
        print(f"no answer: {looked.stderr.strip()}", file=sys.stderr)
        return None
    return looked.stdout.strip()


def keep(arguments: argparse.Namespace) -> int:
    """One look, and what follows from it; returns the exit code of what was done."""
    request, deletion = make_request(arguments), make_deletion(arguments)
    state = read_state(arguments)
    if state is None:
        return 1
    if state in _GONE:
        return execute(arguments, deletion, request)
    return 0 if state else execute(arguments, request)


def main() -> int:
    """The command line; returns the exit code."""
    parser = make_parser(__doc__)
    add_request(parser)
    parser.add_argument("--every_seconds", type=int, default=60, help="between two looks")
    arguments = parser.parse_args()
    # What fails at once is wrong; what fails later may be the network.
    if (code := keep(arguments)) or arguments.print:
        return code
    while True:
        time.sleep(arguments.every_seconds)
        keep(arguments)


if __name__ == "__main__":
    call(main)
