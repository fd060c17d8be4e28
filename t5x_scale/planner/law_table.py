"""The laws that a plan asks: the published ones, or those fitted to runs of one's own in their place.

A file of fitted laws holds one object or a list of them, `{"law": name, "constants": {name: value}, …}`; beside these
`domain` ({quantity: [low, high]}) says where the data lay, `unit` and `source` what they were, `held_out_error` (of the
logarithm) how far off the law is. `tools/fit_laws.py` writes such files.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.laws import LAWS, Domain, Law, find_law

Laws = Mapping[str, Law]

# A usual run, and a larger one.
_USUAL = {
    "params": (1e8, 1e9),
    "tokens": (2e9, 2e10),
    "flops": (1e18, 1e20),
    "steps": (1e3, 1e4),
    "batch_tokens": (1e5, 1e6),
    "unique_tokens": (2e9, 2e10),
    "vocab_size": (32e3, 32e3),
}
# Of a logarithm: beyond it a loss is anything.
_LARGEST_ERROR = 1.0


def load_laws(path: str | None) -> Laws:
    """All laws by name, those of a file in place of the published.

    Raises:
      UserError: there is no such file, or it holds no fitted laws.
    """
    if path is None:
        return LAWS
    try:
        record = json.loads(files.read_bounded(path))
    except OSError as error:
        raise UserError(f"--laws: cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"--laws: {path} is not JSON: {error}") from error
    entries = record if isinstance(record, list) else [record]
    if not entries:
        raise UserError(f"--laws: {path} holds no law")
    return {**LAWS, **{law.name: law for law in (_make(entry, path) for entry in entries)}}


def _make(entry: Any, path: str) -> Law:
    where = f"--laws: {path}"
    if not isinstance(entry, dict) or not isinstance(entry.get("constants"), dict) or "law" not in entry:
        raise UserError(f"{where}: expected objects with 'law' and 'constants'")
    law = find_law(str(entry["law"]))
    for name, value in entry["constants"].items():
        if name not in law.published():
            raise UserError(
                f"{where}: the law {law.name} has no constant {name!r}{did_you_mean(name, law.published())}"
            )
        if not _is_number(value):
            raise UserError(f"{where}: {law.name}.{name} is {value!r}; expected a number")
    about: dict[str, Any] = {"source": str(entry.get("source") or f"fitted, {path}")}
    if entry.get("domain") is not None:
        about["domain"] = _domain(entry["domain"], where)
    if "unit" in entry:
        about["unit"] = str(entry["unit"])
    error = entry.get("held_out_error")
    if error is not None:
        if not _is_number(error) or not 0 <= error < _LARGEST_ERROR:
            raise UserError(f"{where}: held_out_error is {error!r}; expected a share of the loss, such as 0.01")
        about["held_out_error"] = float(error)
    # A law's domain belongs to its class.
    fitted = type(type(law).__name__, (type(law),), about)
    constants = {name: float(value) for name, value in entry["constants"].items()}
    made = fitted(**{**{name: getattr(law, name) for name in law.published()}, **constants})
    _check_sense(made, where)
    return made


def _is_number(value: Any) -> bool:
    """Whether it is one that is finite as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def _domain(ranges: Any, where: str) -> Domain:
    expected = f'{where}: domain is {ranges!r}; expected {{"params": [1e6, 1e9], …}}'
    if not isinstance(ranges, dict):
        raise UserError(expected)
    for ends in ranges.values():
        if not isinstance(ends, list) or len(ends) != 2 or not all(map(_is_number, ends)):
            raise UserError(expected)
    return Domain(**{name: (float(low), float(high)) for name, (low, high) in ranges.items()})


def _check_sense(law: Law, where: str) -> None:
    """Checks that a law says numbers of usual runs, and that larger runs reach a lower loss.

    Raises:
      UserError: its constants make it none.
    """
    constants = ", ".join(f"{name}={getattr(law, name):g}" for name in law.published())
    if any(math.isnan(getattr(law, name)) for name in law.published()):
        raise UserError(f"{where}: {law.name} needs a number for each of its constants; got {constants}")
    if not set(law.required) <= _USUAL.keys():
        return
    small, large = ({name: _USUAL[name][size] for name in law.required} for size in (0, 1))
    try:
        with np.errstate(all="ignore"):
            said = [law.predict(**small), law.predict(**large)]
            best = law.optimum(flops=_USUAL["flops"][0])
        values = [*said, *(best.values.values() if best is not None else ())]
        is_sound = all(np.isreal(value) and np.isfinite(value) and value > 0 for value in values)
    except (ArithmeticError, ValueError, TypeError, UserError):
        is_sound = False
    if not is_sound or (law.predicts == "loss" and said[1] > said[0]):
        raise UserError(f"{where}: {law.name} is no law with {constants}")


def is_fitted(law: Law) -> bool:
    """Whether its constants come from somebody's own runs."""
    return any(constant.confidence == "fitted" for constant in law.constants.values())


def present(laws: Laws, names: Sequence[str]) -> Iterator[Law]:
    """The laws of these names, in this order, as far as they are known."""
    return (laws[name] for name in names if name in laws)
