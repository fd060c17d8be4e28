"""Which family a config.json is of: what needs no tensors, and so no backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.interop.families import FAMILIES, Family


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of a config.json, by its `architectures`, or by its `model_type` where it has none.

    Raises:
      UserError: it is not known; names the nearest.
    """
    classes = {name: family for family in FAMILIES.values() for name in family.architectures}
    names, kind = config.get("architectures") or [], config.get("model_type")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"config.json: architectures is {names!r}; it must be a list of names")
    if kind is not None and not isinstance(kind, str):
        raise UserError(f"config.json: model_type is {kind!r}; it must be a name")
    if names:
        family = find_named("architectures", names[0], classes)
        if kind in FAMILIES and kind != family.name:
            raise UserError(
                f"config.json: architectures is {names[0]!r}, of the family {family.name}, and model_type {kind!r}; "
                "which of them is the model's cannot be told"
            )
        return family
    if kind:
        return find_named("model_type", kind, FAMILIES)
    raise UserError("config.json has neither 'architectures' nor 'model_type': it is not that of a model")


def find_named(what: str, name: Any, table: Mapping[str, Family]) -> Family:
    """The family that `table` has under a name.

    Raises:
      UserError: it has none; says `what` the name is of, and the nearest.
    """
    if name not in table:
        near = did_you_mean(str(name), table)
        raise UserError(f"{what} is {name!r}; known are {', '.join(table)}{near}")
    return table[name]
