"""Reading the fields of a config.json, each with what it may be: what is not understood is refused by name."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from typing import Any

from t5x_scale.core.errors import UserError, did_you_mean

# A mistyped field is told from one that is merely unknown by how near it is to one that is missing.
_MISTYPED = 0.9

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
}
# Our activations as their first name above.
ACTIVATION_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}

DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}

_REQUIRED = object()
_MOST_LAYERS = 10_000


class Fields:
    """The fields of one config.json.

    Attributes:
      config: the fields as they are.
      where: what errors call them.
    """

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self.config = config
        self.where = where

    def __contains__(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.config.get(name) is not None

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value of a field, or the default where it is absent or null.

        Raises:
          UserError: it is absent and has no default; names the field nearest to it.
        """
        value = self.config.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise UserError(f"{self.where} has no field '{name}'{did_you_mean(name, self.config, limit=1)}")
        near = difflib.get_close_matches(name, self.config, n=1, cutoff=_MISTYPED)
        if near and near[0] != name:
            raise UserError(f"{self.where} has a field '{near[0]}' that is not known (did you mean '{name}'?)")
        return default

    def integer(self, name: str, default: Any = _REQUIRED) -> Any:
        """A positive integer, or the default."""
        value = self.get(name, default)
        if value is not default and not _is_positive_integer(value):
            raise self.error(name, value, "it must be a positive integer")
        return value

    def layers(self, name: str) -> int:
        """A number of layers: each is looked for among the tensors by its name, so it must be a sane one."""
        value = self.integer(name)
        if value > _MOST_LAYERS:
            raise self.error(name, value, f"at most {_MOST_LAYERS:,} layers are read")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """A finite number as a float, or the default."""
        value = self.get(name, default)
        if value is default:
            return value
        # A whole number of JSON may be too large to be any other.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise self.error(name, value, "it must be a number")
        return float(value)

    def positive(self, name: str, default: Any = _REQUIRED) -> Any:
        """A number above 0, or the default."""
        value = self.number(name, default)
        if value is not default and not value > 0:
            raise self.error(name, value, "it must be more than 0")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "it must be true or false")
        return value

    def choice(self, name: str, table: Mapping[str, str], default: str) -> str:
        """What `table` makes of a field's value."""
        value = self.get(name, default)
        if not isinstance(value, str) or value not in table:
            near = did_you_mean(str(value), table)
            raise self.error(name, value, f"supported are {', '.join(table)}{near}")
        return table[value]

    def unsupported(self, name: str, *neutral: Any) -> None:
        """Refuses a field that changes what a model computes, unless it is absent or has a neutral value."""
        value = self.config.get(name)
        if value is not None and value not in neutral:
            wanted = " or ".join(repr(item) for item in neutral) or "absent"
            raise self.error(name, value, f"supported is {wanted}")

    def error(self, name: str, value: Any, reason: str) -> UserError:
        """The error of a field that has a value it may not have."""
        return UserError(f"{self.where}: {name} is {value!r}; {reason}")


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
