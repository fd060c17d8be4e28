"""Puts this checkout's last commit on every worker of every slice, and installs it there.

    python tools/tpu/push.py NAME

Again after each commit: what is there is replaced, and the environment is kept.
"""

from __future__ import annotations

from cloud import CODE, INSTALL, PREPARE, QUEUED, add_name, call, check_name, execute, make_parser, on_workers, where

ARCHIVE = "/tmp/t5x_scale.tar.gz"


def main() -> int:
    """The command line; returns the exit code."""
    parser = make_parser(__doc__)
    add_name(parser)
    arguments = parser.parse_args()
    copy = [ARCHIVE, f"{check_name(arguments.name)}:{ARCHIVE}", *where(arguments), "--node=all", "--worker=all"]
    return execute(
        arguments,
        ["git", "archive", "--format=tar.gz", f"--output={ARCHIVE}", "HEAD"],
        [*QUEUED, "scp", *copy],
        on_workers(arguments, f"{PREPARE} && tar -xzf {ARCHIVE} -C {CODE} && {INSTALL}"),
    )


if __name__ == "__main__":
    call(main)
