"""Configurations as plain JSON values, for records that outlive the process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

SIMPLE = (bool, int, float, str, type(None))


def describe(value: Any) -> Any:
    """What `value` was configured with, as JSON values.

    A dataclass becomes a dict of its fields with the name of its class under "class"; sequences and mappings are
    described item by item; of anything else (a function, a class) only the name is kept.
    """
    if isinstance(value, SIMPLE):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [describe(item) for item in value]
    return getattr(value, "__name__", type(value).__name__)


def digest(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value; the order of keys changes nothing."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
