"""Runs a command on every worker of every slice, as a training wants it.

python tools/tpu/run.py NAME -- t5x_scale train --gin_file=…             detached: logs.py follows it
python tools/tpu/run.py NAME --attached -- python -c 'import jax; print(jax.device_count())'
"""

from __future__ import annotations

from cloud import (
    add_name,
    call,
    check_command,
    detached,
    execute,
    in_environment,
    make_parser,
    on_workers,
    split_command,
)


def main() -> int:
    """The command line; returns the exit code."""
    parser = make_parser(__doc__, usage="%(prog)s NAME [flags] -- COMMAND")
    add_name(parser)
    parser.add_argument("--attached", action="store_true", help="wait for it, and show what it says")
    words, command = split_command()
    arguments = parser.parse_args(words)
    shell = in_environment if arguments.attached else detached
    return execute(arguments, on_workers(arguments, shell(check_command(command))))


if __name__ == "__main__":
    call(main)
