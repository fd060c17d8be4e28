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

from t5x_scale.core.errors import UserError

# Taken away, or never to come; Cloud keeps the request until it is deleted.
_GONE = ("SUSPENDED", "FAILED")


def read_state(arguments: argparse.Namespace) -> str:
    """The state of the request, empty where there is none."""
    words = [*QUEUED, "list", *where(arguments), f"--filter=name~/{arguments.name}$", "--format=value(state.state)"]
    if arguments.print:
        print(render(words))
        return _GONE[0]
    looked = start(words, capture_output=True, text=True)
    if looked.returncode:
        raise UserError(looked.stderr.strip().splitlines()[-1])
    return looked.stdout.strip()


def keep(arguments: argparse.Namespace) -> int:
    """One look, and what follows from it; returns the exit code of what was done."""
    request, deletion = make_request(arguments), make_deletion(arguments)
    try:
        state = read_state(arguments)
    except UserError as error:
        # It may be the network. Who cannot ask at all reads this once a minute.
        print(f"no answer: {error}", file=sys.stderr)
        return 0
    if state in _GONE:
        return execute(arguments, deletion, request)
    return 0 if state else execute(arguments, request)


def main() -> int:
    """The command line; returns the exit code."""
    parser = make_parser(__doc__)
    add_request(parser)
    parser.add_argument("--every_seconds", type=int, default=60, help="between two looks")
    arguments = parser.parse_args()
    while not (code := keep(arguments)) and not arguments.print:
        time.sleep(arguments.every_seconds)
    return code


if __name__ == "__main__":
    call(main)
