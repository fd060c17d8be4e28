"""What the command lines of this folder share: their common words, and commands that are shown or run."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from t5x_scale.core.errors import UserError

QUEUED = ["gcloud", "compute", "tpus", "queued-resources"]
# On the workers, for whoever comes by ssh and for start-up scripts, which root runs: where the code lies, what it runs
# in, what the command at work has said, and which process it is.
BASE = "/var/t5x_scale"
CODE, ENVIRONMENT, LOG, PID = f"{BASE}/code", f"{BASE}/venv", f"{BASE}/log", f"{BASE}/pid"
PREPARE = f"sudo mkdir -p -m 777 {BASE} && sudo rm -rf {CODE} && mkdir {CODE}"
# TPU VMs come with a Python that is older than 3.11; uv brings one along.
INSTALL = (
    "python3 -m pip install --quiet --user uv && "
    f"~/.local/bin/uv venv --quiet --allow-existing --python=3.12 {ENVIRONMENT} && "
    f"~/.local/bin/uv pip install --quiet --python={ENVIRONMENT}/bin/python --editable='{CODE}[tpu]'"
)
_FOLD = 100


def make_parser(description: str, **options: Any) -> argparse.ArgumentParser:
    """A parser with what every command needs: where, and whether to show only."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
    )
    parser.add_argument("--project", default=os.environ.get("CLOUDSDK_CORE_PROJECT"), help="or CLOUDSDK_CORE_PROJECT")
    parser.add_argument("--zone", default=os.environ.get("CLOUDSDK_COMPUTE_ZONE"), help="or CLOUDSDK_COMPUTE_ZONE")
    parser.add_argument("--print", action="store_true", help="show the commands without running them")
    return parser


def add_name(parser: argparse.ArgumentParser) -> None:
    """The name of the slices."""
    parser.add_argument("name", metavar="NAME", help="of the slices")


def split_command() -> tuple[list[str], list[str]]:
    """The words of this command line before `--` and after it: what the workers run is theirs to understand."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    return words[:end], words[end + 1 :]


def check_command(words: Sequence[str]) -> Sequence[str]:
    """The words after `--` again.

    Raises:
      UserError: there are none.
    """
    if not words:
        raise UserError("write the command of the workers after --, such as: -- t5x_scale train --gin_file=…")
    return words


def where(arguments: argparse.Namespace) -> list[str]:
    """The flags that say where.

    Raises:
      UserError: the project or the zone is missing.
    """
    for name, variable in (("project", "CLOUDSDK_CORE_PROJECT"), ("zone", "CLOUDSDK_COMPUTE_ZONE")):
        if not getattr(arguments, name):
            raise UserError(f"which {name}? Give --{name}=NAME, or set {variable}")
    return [f"--project={arguments.project}", f"--zone={arguments.zone}"]


def check_name(name: str, longest: int = 61) -> str:
    """The name again.

    Raises:
      UserError: the cloud would refuse it.
    """
    if re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= longest:
        return name
    better = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:longest].strip("-")
    hint = f", such as {better!r}" if better else ""
    raise UserError(
        f"{name!r} is no name for slices: a small letter, then small letters, digits and hyphens, {longest} at "
        f"most{hint}"
    )


def on_workers(arguments: argparse.Namespace, command: str, node: str = "all", worker: str = "all") -> list[str]:
    """`gcloud`'s words that run a line of shell on workers (of slices) over ssh."""
    at = [check_name(arguments.name), *where(arguments), f"--node={node}", f"--worker={worker}"]
    return [*QUEUED, "ssh", *at, f"--command={command}"]


def in_environment(words: Sequence[str]) -> str:
    """A line of shell that becomes a command, in the environment that `push.py` or a start-up script made."""
    return f"cd {CODE} && export PATH={ENVIRONMENT}/bin:$PATH && exec {shlex.join(words)}"


def detached(words: Sequence[str]) -> str:
    """A line of shell that starts a command and leaves it running, unless one runs already.

    Nothing stands between the shell and the command: the process whose number is kept is the one to signal.
    """
    at_work = f'[ -e "/proc/$(cat {PID} 2>/dev/null || echo none)/status" ]'
    refusal = f"if {at_work}; then echo 'a command runs already: stop.py' >&2; exit 1; fi"
    begin = f"nohup setsid sh -c {shlex.quote(in_environment(words))} >{LOG} 2>&1 </dev/null & echo $! >{PID}"
    return f"{refusal}; rm -f {LOG} {PID}; {begin}"


def execute(arguments: argparse.Namespace, *commands: Sequence[str]) -> int:
    """Runs commands one after the other while they succeed, or shows them; returns the last one's exit code.

    Raises:
      UserError: a program is not installed.
    """
    code = 0
    for command in commands:
        if arguments.print:
            print(render(command))
            continue
        if code := start(command).returncode:
            break
    return code


def start(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess:
    """Runs a command to its end.

    Raises:
      UserError: the program is not installed.
    """
    try:
        return subprocess.run(command, check=False, **options)
    except FileNotFoundError as error:
        raise UserError(f"{command[0]} is not installed here; --print shows what it would be told") from error


def render(command: Sequence[str]) -> str:
    """A command as it can be pasted into a shell; a long one on a line for each flag."""
    line = shlex.join(command)
    if len(line) <= _FOLD:
        return line
    lines: list[str] = []
    for word in command:
        if lines and not word.startswith("-"):
            lines[-1] += f" {shlex.quote(word)}"
        else:
            lines.append(shlex.quote(word))
    return " \\\n    ".join(lines)


def call(main: Callable[[], int]) -> None:
    """Ends with the exit code of `main`, or 1 and one line for what the user has to mend."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
