"""What a field of settings may be, and the settings of a run that is watched over, made of anything."""

import dataclasses
import math
from typing import Any

import pytest

from t5x_scale.checkpoint.config import CheckpointConfig
from t5x_scale.core.checks import check_above, check_address, check_kind, check_seconds, check_whole
from t5x_scale.core.errors import UserError
from t5x_scale.core.preemption import PreemptionConfig
from t5x_scale.monitor.corruption import ProbeConfig
from t5x_scale.monitor.health import HealthConfig
from t5x_scale.monitor.stragglers import StragglerConfig
from t5x_scale.monitor.watchdog import WatchdogConfig


@dataclasses.dataclass
class Settings:
    value: Any


@pytest.mark.parametrize(
    ("check", "good", "bad", "words"),
    [
        (lambda s: check_whole(s, 1, "value"), [1, 10**30], [0, True, 1.0, "1", None], "a whole number, 1 or more"),
        (
            lambda s: check_whole(s, 1, "value", may_be_none=True),
            [None, 1],
            [0, math.nan, [1]],
            "a whole number, 1 or more, or None",
        ),
        (
            lambda s: check_above(s, 1, "value"),
            [1.5, 2],
            [1, True, math.inf, math.nan, 10**400, "2", None],
            "a finite number above 1",
        ),
        (
            lambda s: check_seconds(s, "value"),
            [1e-3, 60],
            [0, -1.0, 1e10, math.inf, math.nan, "60", None, False],
            "a number of seconds above 0, at most 1e+09",
        ),
        (lambda s: check_kind(s, bool, "value"), [True, False], [1, "yes", None], "True or False"),
        (lambda s: check_kind(s, Settings, "value"), [Settings(1)], [Settings, 1, None], "a Settings"),
        (
            lambda s: check_address(s, "value"),
            [None, "localhost:1", "10.0.0.1:65535", "[::1]:80", "metadata.google.internal:80"],
            ["", "nonsense", ":1", "localhost:99999", "localhost:0", "a b:1", "http://a:1", "a:1\n", "a:\u0661", 80],
            "host:port, such as 10.0.0.1:8080, with a port from 1 to 65535, or None",
        ),
    ],
)
def test_what_a_field_may_be(check, good, bad, words):
    for value in good:
        check(Settings(value))
    for value in bad:
        with pytest.raises(UserError) as raised:
            check(Settings(value))
        assert str(raised.value).startswith("Settings.value is ")
        assert str(raised.value).endswith(f"; it must be {words}")


CASES = [
    (PreemptionConfig, "poll_seconds", (0, math.inf, math.nan, "5", None)),
    (PreemptionConfig, "address", ("nonsense", ":1", "localhost:99999", 5)),
    (PreemptionConfig, "watch_maintenance", ("no",)),
    (CheckpointConfig, "save_every_seconds", (0, math.inf, math.nan, "60")),
    (CheckpointConfig, "save_every_steps", (-1, 1.5, "10", None)),
    (CheckpointConfig, "keep", (0, "3", True)),
    (CheckpointConfig, "local_keep", (0, None)),
    (CheckpointConfig, "asynchronous", ("no",)),
    (CheckpointConfig, "local_directory", ("", "rel/dir", " ", ".", 5, "gs://bucket/run")),
    *((WatchdogConfig, field.name, (0, math.inf, math.nan, "60")) for field in dataclasses.fields(WatchdogConfig)),
    (HealthConfig, "beat_seconds", (0, math.inf, math.nan, "5", None)),
    (HealthConfig, "watchdog", (600.0, WatchdogConfig)),
    (HealthConfig, "stragglers", (None,)),
    (HealthConfig, "probe", (100,)),
    (StragglerConfig, "factor", (1, math.inf, math.nan, "2")),
    (StragglerConfig, "least_share", (0, math.inf, math.nan, "1")),
    (StragglerConfig, "window_seconds", (0, math.inf, math.nan, None)),
    (StragglerConfig, "probe_every_steps", (-1, 1.5, "5")),
    (ProbeConfig, "every_steps", (-1, None)),
    (ProbeConfig, "stop", (1,)),
]


@pytest.mark.parametrize(("settings", "field", "value"), [(a, b, value) for a, b, values in CASES for value in values])
def test_settings_of_a_run_name_the_field(settings, field, value):
    settings()
    with pytest.raises(UserError, match=f"^{settings.__name__}.{field} is .*; it must be "):
        settings(**{field: value})
