"""What a run warns of is in its record, and on its terminal as before."""

import logging

from t5x_scale.monitor.metric_log import read_metrics
from t5x_scale.monitor.said import Said
from t5x_scale.monitor.writers import MetricWriters


def test_warnings_become_events(tmp_path):
    checkpoints, monitor = logging.getLogger("t5x_scale.checkpoint"), logging.getLogger("t5x_scale.monitor.peers")
    with MetricWriters(tmp_path) as writers, Said(lambda: 7) as said:
        checkpoints.warning("the checkpoint of step %d is damaged and NOT used. Falling back to step %d", 9, 6)
        said.connect(writers)
        checkpoints.error("the checkpoint of step 12 is NOT saved: disk full")
        checkpoints.info("nothing to see")
        monitor.warning("told already")
        logging.getLogger("t5x_scale.commands").warning("changed")
    checkpoints.warning("after its end")
    events = read_metrics(tmp_path).events
    assert [(event["event"], event["step"]) for event in events] == [
        ("fallback", 7),
        ("failed_save", 7),
        ("warning", 7),
    ]
    assert events[0]["text"].endswith("Falling back to step 6")


def test_the_terminal_is_told_as_well(monkeypatch, capsys):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with Said(lambda: 0):
        logging.getLogger("t5x_scale.checkpoint").warning("mind the gap")
    assert capsys.readouterr().err == "mind the gap\n"
