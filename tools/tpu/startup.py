"""Writes a start-up script: what every worker runs by itself whenever it starts, again after a preemption.

    python tools/tpu/startup.py --source=gs://bucket/t5x_scale.tar.gz -- t5x_scale train --gin_file=… > train.sh
    python tools/tpu/startup.py --source=https://host/repository.git@v1 -- t5x_scale train --gin_file=… > train.sh

The archive is made by `git archive --format=tar.gz HEAD | gcloud storage cp - gs://bucket/t5x_scale.tar.gz`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from cloud import CODE, INSTALL, PID, PREPARE, call, check_command, detached, split_command

from t5x_scale.core.errors import UserError

_SCRIPT = """#!/bin/bash
# Made by tools/tpu/startup.py; root runs it at each start of a worker.
set -e
export HOME=/root
{prepare}
{load}
{install}
# Of a life before this start.
rm -f {pid}
{start}
"""


def make_script(source: str, words: Sequence[str]) -> str:
    """The script.

    Raises:
      UserError: the source is neither an archive in a bucket nor a repository.
    """
    if source.startswith("gs://") and source.endswith(".tar.gz"):
        load = f"gcloud storage cat {shlex.quote(source)} | tar -xz -C {CODE}"
    elif source.startswith(("https://", "git@")):
        address, _, revision = source.partition(".git@")
        branch = f"--branch={shlex.quote(revision)} " if revision else ""
        address = f"{address}.git" if revision else address
        load = f"git clone --quiet --depth=1 {branch}{shlex.quote(address)} {CODE}"
    else:
        raise UserError(f"--source={source}: an archive gs://….tar.gz, or a repository https://….git@REVISION")
    return _SCRIPT.format(prepare=PREPARE, load=load, install=INSTALL, pid=PID, start=detached(words))


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s --source=SOURCE -- COMMAND",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", required=True, help="where the code comes from")
    words, command = split_command()
    arguments = parser.parse_args(words)
    print(make_script(arguments.source, check_command(command)), end="")
    return 0


if __name__ == "__main__":
    call(main)
