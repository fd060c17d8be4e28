"""The life of a run, told from what killed, hung and rewound processes leave behind."""

import json
import os

import pytest

from t5x_scale.core import files
from t5x_scale.monitor import phases
from t5x_scale.monitor.life import DOWN, KILLED, LOST, RUNNING, read_life
from t5x_scale.monitor.life_figure import draw_life
from t5x_scale.monitor.life_tables import make_tables
from t5x_scale.monitor.metric_log import format_event, format_metrics, log_path, read_metrics
from t5x_scale.monitor.report import make_report

BORN = 1_000_000.0


class Run:
    """Writes the files of a run by hand."""

    def __init__(self, directory):
        self.directory = files.to_path(directory)
        self.metrics, self.logs = [], {0: [], 1: []}

    def life(self, pid, born, changes, process=0):
        for number, (at, phase, step, *more) in enumerate(changes):
            line = {"time": born + at, "at": at, "phase": phase, "step": step, **(more[0] if more else {})}
            self.logs[process].append(line | ({"pid": pid} if number == 0 else {}))

    def start(self, pid, step, at):
        self.metrics.append(format_event(step, at, "start", {"pid": pid}))

    def event(self, kind, step, at, **details):
        self.metrics.append(format_event(step, at, kind, details))

    def steps(self, steps, born, age, waited):
        for step in steps:
            values = {"train/loss": 1.0}
            if step == steps[-1]:
                values |= {"goodput/seconds": age, "goodput/data_wait_fraction": waited / age}
            self.metrics.append(format_metrics(step, born + age, values))

    def write(self):
        for process, lines in self.logs.items():
            path = phases.phase_log_path(self.directory, process)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        path = log_path(self.directory)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in self.metrics))
        return read_metrics(self.directory)


def write_run(directory):
    """Killed 4 s after its last line; then ended by another process's watchdog, in start-up; then done."""
    run = Run(directory)
    run.life(
        11, BORN, [(5, "startup", 0), (10, "compile", 0), (30, "step", 0), (60, "checkpoint", 30), (62, "step", 30)]
    )
    run.start(11, 0, BORN + 10)
    run.steps(range(1, 31), BORN, 60.0, 3.0)
    run.steps(range(31, 41), BORN, 72.0, 4.0)  # 38 s of steps and waits for data.
    second = BORN + 100
    run.life(12, second, [(4, "startup", 0), (6, "restore", 0)])
    reason = {"reason": "watchdog: nothing had moved for 20 s in restore"}
    run.life(92, second, [(4, "startup", 0), (26, "end", 0, reason)], process=1)
    third = BORN + 200
    run.life(
        13,
        third,
        [
            *((4, "startup", 0), (5, "restore", 0), (9, "compile", 0), (20, "step", 30), (40, "rewind", 50)),
            *((45, "step", 40), (65, "end", 60, {"reason": "done"})),
        ],
    )
    run.start(13, 30, third + 9)
    run.steps(range(31, 51), third, 40.0, 0.0)
    run.event("rewind", 40, third + 44, number=1)
    run.event("spike", 48, third + 40, reason="the loss rose")
    run.event("straggler", 48, third + 40, process=3, host="h3", measure="data", ratio=3.0)
    run.event("fallback", 30, third + 9, text="the checkpoint of step 35 is damaged [and] NOT used. Falling back")
    run.steps(range(41, 61), third, 65.0, 0.0)
    return run.write()


def test_where_the_time_went(tmp_path):
    life = read_life(tmp_path, write_run(tmp_path))
    first, second, third = life.lives
    assert (first.reason, second.reason, third.reason) == (
        KILLED,
        "process 1: watchdog: nothing had moved for 20 s in restore",
        "done",
    )
    assert (first.first_step, first.last_step, first.redone_steps) == (0, 40, 10)
    assert (second.first_step, second.redone_steps) == (None, 0)
    assert (third.first_step, third.last_step, third.redone_steps) == (30, 60, 10)
    # 72 s old when it last wrote; 40 s of stepping, 4 of them waiting; a quarter of its forty steps was lost.
    assert first.seconds["data_wait"] == 4.0
    assert first.seconds[LOST] == pytest.approx(36.0 / 4)
    assert first.seconds["step"] == pytest.approx(36.0 * 3 / 4)
    assert first.ended - first.began == 72.0
    # A quarter of the third's forty steps, too.
    assert third.seconds[LOST] == pytest.approx(40.0 / 4)
    seconds = life.seconds()
    assert seconds[DOWN] == (100 - 72) + (200 - 106)
    assert seconds["restore"] == 0.0 + 4.0
    assert sum(seconds.values()) == pytest.approx(265.0)


def test_a_run_that_goes_on_and_one_that_was_killed(tmp_path):
    log = write_run(tmp_path)
    path = phases.phase_log_path(tmp_path, 0)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + '\n{"time": 5, "ph')
    files.write_json(
        phases.health_directory(tmp_path) / "host_0.json",
        {"pid": 13, "host": "h0", "process": 0, "processes": 2, "time": 500.0, "step": 55, "phase": "step"},
    )
    assert read_life(tmp_path, log, now=510.0).lives[-1].reason == RUNNING
    assert read_life(tmp_path, log, now=5000.0).lives[-1].reason == KILLED
    assert [sign["host"] for sign in read_life(tmp_path, log).hosts] == ["h0"]


def test_without_a_phase_log(tmp_path):
    write_run(tmp_path)
    for process in (0, 1):
        phases.phase_log_path(tmp_path, process).unlink()
    life = read_life(tmp_path, read_metrics(tmp_path))
    assert list(life.lives) == []
    assert sum(life.seconds().values()) == 0
    assert make_report(tmp_path).exists()


def test_what_is_told(tmp_path):
    log = write_run(tmp_path)
    intervention = {"number": 1, "spike_step": 47, "reason": "loss", "rewind_to": 40, "skip_rows": [[0, 8], [20, 36]]}
    (tmp_path / "interventions.jsonl").write_text(json.dumps(intervention) + "\n{}\n")
    tables = {table.heading: table.rows for table in make_tables(tmp_path, read_life(tmp_path, log), log)}
    assert tables["Rewinds"] == [["loss", "47", "40", "24"]]
    assert tables["Processes"][0] == [KILLED, "0", "40", "1m12s", "10"]
    assert ["process 3 on h3 is slower than its peers (data, 3.0 times)", "48"] in tables["What happened"]
    assert ["spike: the loss rose", "48"] in tables["What happened"]
    assert any("Falling back" in row[0] for row in tables["What happened"])
    assert "Hosts" not in tables
    shares = [float(row[2].rstrip("%")) for row in tables["Where the time went"]]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_interventions_that_cannot_be_read_are_not_shown(tmp_path):
    log = write_run(tmp_path)
    path = tmp_path / "interventions.jsonl"
    path.write_bytes(b"\xff\n")
    before = make_tables(tmp_path, read_life(tmp_path, log), log)
    path.unlink()
    os.mkfifo(path)
    assert make_tables(tmp_path, read_life(tmp_path, log), log) == before
    assert "Rewinds" not in {table.heading for table in before}


@pytest.mark.parametrize("remote", [False, True])
def test_the_page(tmp_path, bucket, remote):
    directory = f"{bucket}/run" if remote else tmp_path
    write_run(directory)
    page = make_report(directory).read_text()
    for words in ("The life of the run", "Where the time went", "steps done again later", "Steps done over time"):
        assert words in page
    summary = files.read_json(files.to_path(directory) / "report" / "summary.json")
    assert summary["life"]["goodput"] == pytest.approx((27 + 30) / 265)


def test_the_picture(tmp_path):
    assert draw_life(read_life(tmp_path, write_run(tmp_path))).startswith(b"\x89PNG")
