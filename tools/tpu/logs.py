"""Shows what the command on the workers has said: process 0's, unless others are asked for.

python tools/tpu/logs.py NAME [--follow] [--node=1] [--worker=all]
"""

from __future__ import annotations

from cloud import LOG, add_name, call, execute, make_parser, on_workers


def main() -> int:
    """The command line; returns the exit code."""
    parser = make_parser(__doc__)
    add_name(parser)
    parser.add_argument("--node", default="0", help="the slice, or all")
    parser.add_argument("--worker", default="0", help="the worker of the slice, or all")
    parser.add_argument("--lines", type=int, default=50)
    parser.add_argument("--follow", action="store_true", help="go on as more is said")
    arguments = parser.parse_args()
    tail = f"tail -n {arguments.lines} {'-F ' if arguments.follow else ''}{LOG}"
    return execute(arguments, on_workers(arguments, tail, arguments.node, arguments.worker))


if __name__ == "__main__":
    call(main)
