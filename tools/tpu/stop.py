"""Stops the command on the workers as preemption would: a training saves, ends with 75, and can be resumed.

python tools/tpu/stop.py NAME
"""

from __future__ import annotations

from cloud import PID, add_name, call, execute, make_parser, on_workers


def main() -> int:
    """The command line; returns the exit code."""
    parser = make_parser(__doc__)
    add_name(parser)
    arguments = parser.parse_args()
    return execute(arguments, on_workers(arguments, f'sudo kill -TERM "$(cat {PID})"'))


if __name__ == "__main__":
    call(main)
