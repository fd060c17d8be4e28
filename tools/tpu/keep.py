"""Keeps slices there until the work is done: asks for them, and again whenever they were taken away.

    python tools/tpu/keep.py NAME MACHINE --spot --startup_script=train.sh

Takes the words of create.py. With a start-up script (startup.py) the training goes on by itself on whatever comes. Ends
only by a signal: look at the log (logs.py), and give the slices back (delete.py) when it says `done`.
"""

from __future__ import annotations

import argparse
import sys
import time

from cloud import QUEUED, call, check_name, execute, make_parser, render, start, where
from create import add_request, make_request
from delete import make_deletion

# Taken away, or never to come; Cloud keeps the request until it is deleted.
_GONE = ("SUSPENDED", "FAILED")


def make_look(arguments: argparse.Namespace) -> list[str]:
    """`gcloud`'s words that say the state of the request, and nothing where there is none."""
    only = f"--filter=name~/{check_name(arguments.name)}$"
    return [*QUEUED, "list", *where(arguments), only, "--format=value(state.state)"]


def read_state(arguments: argparse.Namespace) -> str | None:
    """The state of the request, empty where there is none; None where Cloud does not answer."""
    looked = start(make_look(arguments), capture_output=True, text=True)
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


def show(arguments: argparse.Namespace) -> str:
    """`keep` for a shell: as there, only what is gone is deleted."""
    request, deletion, look = (render(make(arguments)) for make in (make_request, make_deletion, make_look))
    gone = " | ".join(_GONE)
    return f'state=$({look}) &&\ncase "$state" in\n{gone})\n{deletion} &&\n{request} ;;\n"")\n{request} ;;\nesac'


def main() -> int:
    """The command line; returns the exit code."""
    parser = make_parser(__doc__)
    add_request(parser)
    parser.add_argument("--every_seconds", type=int, default=60, help="between two looks")
    arguments = parser.parse_args()
    if arguments.print:
        print(f"# Every {arguments.every_seconds} seconds:\n{show(arguments)}")
        return 0
    # What fails at once is wrong; what fails later may be the network.
    if code := keep(arguments):
        return code
    while True:
        time.sleep(arguments.every_seconds)
        keep(arguments)


if __name__ == "__main__":
    call(main)
