"""What drills share: the runner of commands, one text to train on, and the table that is printed at the end.

Drills disturb real runs and take minutes: `make drill` runs them, `make test` does not. A test tells the table how many
`cases` it tried, how many `passed` and what is worth being `shown` by pytest's
`record_property`; without that it is one case.
`DRILL=20` makes the drills that repeat something do it twenty times.
"""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "endtoend"))
from command_runner import CommandRunner, write_text


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    """Starts commands; see tests/endtoend/command_runner.py."""
    runner = CommandRunner(tmp_path_factory.mktemp("processes"))
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    """Of a run that is as long as a drill wants it: a text, frozen once, and no evaluations."""
    directory = tmp_path_factory.mktemp("data")
    return {
        "MIXTURE_OR_TASK_NAME": write_text(directory / "words.txt"),
        "STORE_DIR": str(directory / "stores"),
        "EvaluationConfig__every_steps": 0,
        "MAX_EPOCHS": None,
    }


def pytest_terminal_summary(terminalreporter):
    """One table of all drills: cases, passed, seconds."""
    rows = []
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            if "drills/" in report.nodeid and (report.when == "call" or outcome == "skipped"):
                told = dict(report.user_properties)
                cases = told.get("cases", 0 if outcome == "skipped" else 1)
                passed = told.get("passed", cases) if outcome == "passed" else told.get("passed", 0)
                rows.append((_name(report), cases, passed, report.duration, told.get("shown", "")))
    if not rows:
        return
    width = max(len(name) for name, *_ in rows)
    terminalreporter.section("drills")
    terminalreporter.write_line(f"{'drill':<{width}}  {'cases':>6}  {'passed':>6}  {'seconds':>7}")
    for name, cases, passed, seconds, shown in rows:
        terminalreporter.write_line(f"{name:<{width}}  {cases:>6}  {passed:>6}  {seconds:>7.1f}  {shown}".rstrip())


def _name(report):
    """What a test is called in the table: its words."""
    return report.nodeid.split("::", 1)[1].removeprefix("test_").replace("_", " ")
