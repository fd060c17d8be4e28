"""The laws that a plan asks: the published ones, or those fitted to runs of one's own in their place.

A file of fitted laws holds one object or a list of them, `{"law": name, "constants": {name: value}, …}`; beside these
`domain` ({quantity: [low, high]}) says where the data lay, `unit` and `source` what they were, `held_out_error` (of the
logarithm) how far off the law is. `tools/fit_laws.py` writes such files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.laws import LAWS, Domain, Law, find_law

Laws = Mapping[str, Law]


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
    return {**LAWS, **{law.name: law for law in (_make(entry, path) for entry in entries)}}


def _make(entry: Any, path: str) -> Law:
    if not isinstance(entry, dict) or not isinstance(entry.get("constants"), dict) or "law" not in entry:
        raise UserError(f"--laws: {path}: expected objects with 'law' and 'constants'")
    law = find_law(str(entry["law"]))
    for name, value in entry["constants"].items():
        if name not in law.published():
            raise UserError(
                f"--laws: {path}: the law {law.name} has no constant {name!r}{did_you_mean(name, law.published())}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"--laws: {path}: {law.name}.{name} is {value!r}; expected a number")
    about: dict[str, Any] = {"source": entry.get("source") or f"fitted, {path}"}
    if isinstance(entry.get("domain"), dict):
        about["domain"] = Domain(**{name: tuple(ends) for name, ends in entry["domain"].items()})
    if "unit" in entry:
        about["unit"] = str(entry["unit"])
    error = entry.get("held_out_error")
    if isinstance(error, int | float):
        about["held_out_error"] = float(error)
    # A law's domain belongs to its class.
    fitted = type(type(law).__name__, (type(law),), about)
    return fitted(**{**{name: getattr(law, name) for name in law.published()}, **entry["constants"]})


def is_fitted(law: Law) -> bool:
    """Whether its constants come from somebody's own runs."""
    return any(constant.confidence == "fitted" for constant in law.constants.values())


def present(laws: Laws, names: Sequence[str]) -> Iterator[Law]:
    """The laws of these names, in this order, as far as they are known."""
    return (laws[name] for name in names if name in laws)
