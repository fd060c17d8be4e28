"""Runs a command on slices of a Kubernetes cluster, through XPK (`pip install xpk`).

    python tools/tpu/workload.py create NAME MACHINE --cluster=CLUSTER --docker_image=IMAGE -- t5x_scale train …
    python tools/tpu/workload.py create NAME MACHINE … --pathways=gs://bucket/scratch -- t5x_scale train …
    python tools/tpu/workload.py list --cluster=CLUSTER
    python tools/tpu/workload.py delete NAME --cluster=CLUSTER

A workload that was stopped, or that lost a machine, is started again and resumes: at most `--max_restarts` times. With
Pathways one process at the head of the cluster sees the devices of all slices; IMAGE needs `t5x_scale[pathways]`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from cloud import call, check_command, check_name, execute, make_parser, split_command, where
from machines import find_machine

# Ours for "stopped, saved and resumable" beside those that XPK starts again by itself: 42, and whatever a signal did.
_RESUMABLE = 75
_LONGEST_NAME = 40


def make_workload(arguments: argparse.Namespace, command: Sequence[str]) -> list[str]:
    """XPK's words that create a workload."""
    machine = find_machine(arguments.machine)
    words = ["xpk", "workload", "create-pathways" if arguments.pathways else "create"]
    words += [f"--workload={check_name(arguments.name, _LONGEST_NAME)}", *_cluster(arguments)]
    words += [f"--tpu-type={machine.xpk_type}", f"--num-slices={machine.slices}"]
    words += [f"--docker-image={arguments.docker_image}", f"--max-restarts={arguments.max_restarts}"]
    words.append(f"--termination-grace-period-seconds={arguments.seconds_to_save}")
    if arguments.pathways:
        words.append(f"--pathways-gcs-location={arguments.pathways}")
    else:
        words.append(f"--restart-on-exit-codes={_RESUMABLE}")
    if arguments.spot:
        words.append("--spot")
    # XPK signals the shell that runs this, which must not stand between.
    return [*words, f"--command=exec {shlex.join(check_command(command))}"]


def make_parser_of_all() -> argparse.ArgumentParser:
    """The parser, with one part for each thing to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True, metavar="create|list|delete")
    common = make_parser("", add_help=False)
    common.add_argument("--cluster", required=True)
    create, _, delete = (parts.add_parser(what, parents=[common]) for what in ("create", "list", "delete"))
    for part in (create, delete):
        part.add_argument("name", metavar="NAME")
    create.add_argument("machine", metavar="MACHINE")
    create.add_argument("--docker_image", required=True, help="with t5x_scale installed")
    create.add_argument("--pathways", metavar="gs://…", help="run on Pathways, which keeps its own things there")
    create.add_argument("--spot", action="store_true", help="where the cluster makes nodes as they are needed")
    create.add_argument("--max_restarts", type=int, default=100)
    create.add_argument("--seconds_to_save", type=int, default=300, help="after a signal, before it is killed")
    return parser


def _cluster(arguments: argparse.Namespace) -> list[str]:
    return [f"--cluster={arguments.cluster}", *where(arguments)]


def main() -> int:
    """The command line; returns the exit code."""
    words, command = split_command()
    arguments = make_parser_of_all().parse_args(words)
    if arguments.what == "create":
        return execute(arguments, make_workload(arguments, command))
    words = ["xpk", "workload", arguments.what]
    if arguments.what == "delete":
        words.append(f"--workload={check_name(arguments.name, _LONGEST_NAME)}")
    return execute(arguments, [*words, *_cluster(arguments)])


if __name__ == "__main__":
    call(main)
