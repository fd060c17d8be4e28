"""The command lines that rent machines: what they would tell `gcloud` and `xpk`, and what the workers would do.

Everything printed stands in tpu_commands.txt, for a person to read; XPK 1.16 and gcloud 528 parse all of it.
"""

import os
import pathlib
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = ROOT / "tools" / "tpu"
GOLDEN = pathlib.Path(__file__).with_name("tpu_commands.txt")
CASES = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", GOLDEN.read_text(), re.MULTILINE)
HARDWARE = sorted(path.stem for path in (ROOT / "gin" / "hardware").glob("*.gin") if path.stem[0] in "vt")

sys.path.insert(0, str(TOOLS))
import cloud  # noqa: E402
import machines  # noqa: E402

from t5x_scale.core.errors import UserError  # noqa: E402
from t5x_scale.planner.slices import slice_sizes  # noqa: E402


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls a tool as a shell does; returns its exit code and all it says."""

    def run(line, project="my-project", zone="us-east5-a"):
        tool, *words = shlex.split(line)
        for name, value in (("CLOUDSDK_CORE_PROJECT", project), ("CLOUDSDK_COMPUTE_ZONE", zone)):
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", [str(TOOLS / tool), *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOLS / tool), run_name="__main__")
        said = capsys.readouterr()
        return stop.value.code, said.out + said.err

    return run


@pytest.mark.parametrize(("line", "expected"), CASES, ids=[line for line, _ in CASES])
def test_commands(call, line, expected):
    code, said = call(line)
    assert said == expected
    assert code == (1 if said.startswith("error: ") else 0)
    assert code == 0 or said.count("\n") == 1


def test_all_tools_have_a_case():
    scripts = {path.name for path in TOOLS.glob("*.py")} - {"cloud.py", "machines.py"}
    assert {line.split()[0] for line, _ in CASES} == scripts
    for path in TOOLS.glob("*.py"):
        assert len(path.read_text().splitlines()) < (180 if path.name in ("cloud.py", "machines.py") else 100)


@pytest.mark.parametrize(("missing", "said"), [("project", "--project=NAME"), ("zone", "--zone=NAME")])
def test_where_is_missing(call, missing, said):
    code, line = call("status.py --print", **{missing: ""})
    assert (code, line.count("\n")) == (1, 1)
    assert line.startswith(f"error: which {missing}? Give {said}, or set CLOUDSDK_")


def test_no_program(call, monkeypatch):
    monkeypatch.setenv("PATH", "")
    code, said = call("status.py")
    assert (code, said) == (1, "error: gcloud is not installed here; --print shows what it would be told\n")


@pytest.mark.parametrize("name", HARDWARE)
def test_every_hardware_file_can_be_asked_for(name):
    machine = machines.find_machine(name)
    slices, chips = re.fullmatch(r"\w+?_(?:(\d+)x)?(\d+)", name).groups()
    assert (machine.slices, machine.chips) == (int(slices or 1), int(chips))
    sizes = [int(size) for size in machine.shape.split("x")]
    assert len(sizes) == machine.generation.dimensions
    assert machine.chips == sizes[0] * sizes[1] * (sizes[2] if len(sizes) > 2 else 1)
    assert machine.slice_flags()


@pytest.mark.parametrize("word", machines.GENERATIONS)
def test_a_plan_may_ask_for_every_slice_of_a_generation(word):
    generation = machines.GENERATIONS[word]
    assert generation.sizes == sorted(set(generation.sizes))
    planned = {chips for chips in slice_sizes(word) if chips <= generation.sizes[-1]}
    assert planned <= set(generation.sizes)
    assert set(generation.shapes) <= set(generation.sizes)
    for chips in planned:
        cloud_name = machines.Machine(generation, chips).accelerator_type
        assert machines.find_machine(cloud_name).chips == machines.find_machine(f"{word}_{chips}").chips == chips


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5p_0", "nearest is v5p_4 "),
        ("v5p-130", "has 65 chips; nearest are v5p_64 .* and v5p_128 "),
        ("v4_2x3071", "has 3071 chips; nearest are v4_3008 .* and v4_3072 "),
        ("v5p_6145", "nearest is v5p_6144 .*; two slices are v5p_2x6144$"),
        ("v5litepod-12", "nearest are v5e_8 .*v5litepod-8.* and v5e_16 "),
        ("v5p_0x64", "no machine 'v5p_0x64' .did you mean 'v5p_64'"),
    ],
)
def test_a_size_that_cloud_does_not_have(name, said):
    with pytest.raises(UserError, match=said):
        machines.find_machine(name)


def test_a_shape_that_cloud_does_not_give():
    machine = machines.Machine(machines.GENERATIONS["v5p"], 512, shape="4x8x16")
    with pytest.raises(UserError, match="v5p-1024 comes as 8x8x8, and the hardware file is for 4x8x16"):
        machine.slice_flags()
    assert machine.xpk_type == "v5p-4x8x16"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
def test_what_is_shown_is_what_is_run(words):
    def understood(text):
        """The words of a line, as a shell reads them."""
        done = subprocess.run(["bash", "-c", f"printf '%s\\0' {text}"], capture_output=True, check=True)
        return done.stdout.decode().split("\0")[:-1]

    inner = cloud.in_environment(words)
    command = [*cloud.QUEUED, "ssh", *words, f"--command={inner}"]
    assert understood(cloud.render(command)) == command
    # And once more on the worker.
    assert understood(inner.partition(" && exec ")[2]) == words


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """This machine as a worker: returns a function that runs a line as ssh does."""
    (tmp_path / "code").mkdir()
    for name in ("CODE", "ENVIRONMENT", "LOG", "PID"):
        monkeypatch.setattr(cloud, name, str(tmp_path / getattr(cloud, name).rsplit("/", 1)[1]))

    def run(line):
        return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=False)

    return run


def test_detached_on_a_worker(worker, tmp_path):
    odd = """it's $HOME "quoted" `ls` ; \\ *"""
    program = "import os, sys, time; print(os.getcwd(), sys.argv[1], os.environ['PATH'], flush=True); time.sleep(60)"
    line = cloud.detached([sys.executable, "-c", program, odd])
    started = worker(line)
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    log, deadline = tmp_path / "log", time.monotonic() + 20
    while not log.read_text().endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.read_text().startswith(f"{tmp_path}/code {odd} {tmp_path}/venv/bin:")
    pid = int((tmp_path / "pid").read_text())
    again = worker(line)
    assert (again.returncode, again.stderr) == (1, "a command runs already: stop.py\n")
    # The process itself, not a shell around it.
    assert pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().startswith(sys.executable.encode())
    os.kill(pid, signal.SIGTERM)


def test_attached_on_a_worker(worker, tmp_path):
    done = worker(cloud.in_environment(["sh", "-c", "pwd; exit 75"]))
    assert (done.returncode, done.stdout) == (75, f"{tmp_path}/code\n")


# The n-th time that it is asked, it gives the n-th answer.
FAKE = """#!/bin/bash
echo "$4" >> {log}
[ "$4" = list ] || exit 0
answers=({answers})
answer=${{answers[$(grep -c list {log}) - 1]}}
[ "$answer" != failure ] || {{ echo "no network" >&2; exit 1; }}
echo "$answer"
"""


@pytest.mark.parametrize(
    ("answers", "told", "code"),
    [
        ("ACTIVE WAITING_FOR_RESOURCES", "list list", 99),
        ("SUSPENDED ACTIVE", "list delete create list", 99),
        ("FAILED ACTIVE", "list delete create list", 99),
        ("'' PROVISIONING", "list create list", 99),
        ("ACTIVE failure SUSPENDED", "list list list delete create", 99),
        ("failure", "list", 1),
    ],
)
def test_keep_asks_again(call, monkeypatch, tmp_path, answers, told, code):
    looks = iter(answers.split()[1:])

    def until_there_are_no_more(seconds):
        if next(looks, None) is None:
            raise SystemExit(99)

    (tmp_path / "gcloud").write_text(FAKE.format(log=tmp_path / "log", answers=answers))
    (tmp_path / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(time, "sleep", until_there_are_no_more)
    ended, _ = call("keep.py pod v6e_256 --spot")
    assert ended == code
    assert (tmp_path / "log").read_text().split() == told.split()


@pytest.mark.parametrize(
    ("state", "told"),
    [("ACTIVE", "list"), ("SUSPENDED", "list delete create"), ("''", "list create"), ("failure", "list")],
)
def test_what_keep_shows_does_what_it_does(call, tmp_path, state, told):
    code, shown = call("keep.py pod v6e_256 --spot --print")
    assert code == 0
    (tmp_path / "gcloud").write_text(FAKE.format(log=tmp_path / "log", answers=state))
    (tmp_path / "gcloud").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", shown], env={"PATH": path}, capture_output=True, timeout=30, check=False)
    assert (tmp_path / "log").read_text().split() == told.split()


def test_startup_scripts_are_scripts(call, tmp_path):
    code, script = call("startup.py --source=gs://bucket/t5x_scale.tar.gz -- t5x_scale train '--gin.A=\"b c\"'")
    assert code == 0
    (tmp_path / "train.sh").write_text(script)
    subprocess.run(["bash", "-n", str(tmp_path / "train.sh")], check=True)
