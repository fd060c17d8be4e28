"""Asks for slices, which come when there are some: a queued resource.

    python tools/tpu/create.py NAME MACHINE [--spot] [--startup_script=FILE]

MACHINE is a file of gin/hardware without its ending (`v5p_64`, `v4_2x3072`: two slices), or Cloud's own name of one
slice (`v5p-128`). `status.py NAME` says when they are here.
"""

from __future__ import annotations

import argparse

from cloud import QUEUED, add_name, call, check_name, execute, make_parser, where
from machines import Machine, find_machine

from t5x_scale.core.errors import UserError


def add_request(parser: argparse.ArgumentParser) -> None:
    """What is asked for, and how."""
    add_name(parser)
    parser.add_argument("machine", metavar="MACHINE")
    parser.add_argument("--slices", type=int, help="how many, where MACHINE does not say")
    tier = parser.add_mutually_exclusive_group()
    tier.add_argument("--spot", action="store_true", help="cheap, and taken away when somebody pays more")
    tier.add_argument("--reserved", action="store_true", help="from a reservation")
    parser.add_argument("--valid_until_duration", metavar="6h", help="give up if there is none until then")
    parser.add_argument("--runtime_version", help="another than the generation's own")
    parser.add_argument("--startup_script", metavar="FILE", help="what every worker runs when it starts: startup.py")
    parser.add_argument("--service_account", help="who the workers are, for buckets")
    parser.add_argument("--network")
    parser.add_argument("--subnetwork")
    parser.add_argument("--internal_ips", action="store_true", help="no addresses outside the network")


def make_request(arguments: argparse.Namespace) -> list[str]:
    """`gcloud`'s words.

    Raises:
      UserError: there is no such machine, or not this way.
    """
    machine, name = find_machine(arguments.machine), check_name(arguments.name)
    runtime = arguments.runtime_version or machine.generation.runtime
    if runtime is None:
        raise UserError(f"{arguments.machine} comes through Kubernetes only: tools/tpu/workload.py")
    words = [*QUEUED, "create", name, *where(arguments), *machine.slice_flags(), f"--runtime-version={runtime}"]
    words += _nodes(name, machine, arguments.slices)
    words += [f"--{flag}" for flag in ("spot", "reserved") if getattr(arguments, flag)]
    if arguments.startup_script:
        words.append(f"--metadata-from-file=startup-script={arguments.startup_script}")
    for flag in ("valid_until_duration", "service_account", "network", "subnetwork"):
        if value := getattr(arguments, flag):
            words.append(f"--{flag.replace('_', '-')}={value}")
    return [*words, "--internal-ips"] if arguments.internal_ips else words


def _nodes(name: str, machine: Machine, slices: int | None) -> list[str]:
    count = machine.slices if slices is None else slices
    if count < 1 or machine.slices not in (1, count):
        raise UserError(f"--slices={count}, and it must be {'1 or more' if machine.slices == 1 else machine.slices}")
    return [f"--node-id={name}"] if count == 1 else [f"--node-count={count}", f"--node-prefix={name}"]


def main() -> int:
    """The command line; returns the exit code."""
    parser = make_parser(__doc__)
    add_request(parser)
    arguments = parser.parse_args()
    return execute(arguments, make_request(arguments))


if __name__ == "__main__":
    call(main)
