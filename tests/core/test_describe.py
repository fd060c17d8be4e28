"""Configurations as JSON values."""

import dataclasses
import functools
import json
from typing import Any

from t5x_scale.core.describe import describe


@dataclasses.dataclass
class Inner:
    rate: float = 0.5


@dataclasses.dataclass
class Outer:
    inner: Any
    names: tuple = ("a", "b")
    table: Any = None


def helper():
    pass


def test_everything_is_json():
    described = describe(Outer(Inner(), table={1: [Inner, helper, functools.partial(helper), True, None]}))
    assert described == {
        "class": "Outer",
        "inner": {"class": "Inner", "rate": 0.5},
        "names": ["a", "b"],
        "table": {"1": ["Inner", "helper", "partial", True, None]},
    }
    assert json.loads(json.dumps(described)) == described


def test_differences_show():
    assert describe(Outer(Inner(0.1))) != describe(Outer(Inner(0.2)))
    assert describe(Inner()) != describe({"rate": 0.5})
