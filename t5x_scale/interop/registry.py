"""From another system's configuration and tensors to weights of ours and back, whatever the family."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.core.lazy import LazyArray
from t5x_scale.core.leaves import Leaves, Origin
from t5x_scale.interop.carrying import canonical, name_refused
from t5x_scale.interop.families import FAMILIES, Family
from t5x_scale.interop.families.finding import find_family, find_named
from t5x_scale.interop.mapping import read_rows, write_rows
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.assembly import axes_of, shapes_of
from t5x_scale.models.weights import Weights

Tensors = Mapping[str, LazyArray]

# Two tables that should be one are compared in pieces of this size.
_COMPARED_BYTES = 64 * 2**20


def family_for(architecture: Architecture, name: str | None = None) -> Family:
    """The family called `name`, or the first that can carry the architecture.

    Raises:
      UserError: that family, or every one, lacks a feature of the architecture; names it.
    """
    if name is not None:
        family = find_named("family", name, FAMILIES)
        check_carries(family, architecture)
        return family
    refused = {family.name: name_refused(family, architecture) for family in FAMILIES.values()}
    for family, reasons in refused.items():
        if not reasons:
            return FAMILIES[family]
    nearest = min(refused, key=lambda family: len(refused[family]))
    raise UserError(f"no family can carry this model; nearest is {nearest}, which lacks {'; '.join(refused[nearest])}")


def check_carries(family: Family, architecture: Architecture) -> None:
    """Checks that a family's configuration can say what the architecture computes.

    Raises:
      UserError: naming every feature that it cannot.
    """
    reasons = name_refused(family, architecture)
    if reasons:
        raise UserError(f"{family.name} cannot carry this model: it lacks {'; '.join(reasons)}")


def to_config(family: Family, architecture: Architecture, dtype: str | None = None) -> dict[str, Any]:
    """The config.json of an architecture, for tensors of `dtype` (that of the parameters by default)."""
    check_carries(family, architecture)
    return {
        "architectures": [family.architectures[0]],
        "model_type": family.name,
        **family.write_config(canonical(architecture)),
        "torch_dtype": dtype or architecture.config.param_dtype,
    }


def read_weights(config: Mapping[str, Any], tensors: Tensors) -> Weights:
    """Weights of ours as views of their tensors.

    Raises:
      UserError: the family or a field of the config.json is not supported, or a tensor does not fit it.
    """
    family = find_family(config)
    architecture = family.to_architecture(config)
    tensors = _without_aliases(family, tensors)
    dropped: dict[str, Origin] = {}
    for name in tensors:
        if any(re.fullmatch(pattern, name) for pattern in family.ignored):
            dropped[name] = Origin("dropped", name, "worked out anew")
    kept = {name: array for name, array in tensors.items() if name not in dropped}
    if architecture.tied:
        kept = _tie(family, architecture, kept, dropped)
    leaves = read_rows(family.rows(architecture), kept, shapes_of(architecture), axes_of(architecture))
    return Weights(leaves, architecture, dropped=dropped)


def write_weights(weights: Weights, name: str | None = None) -> tuple[dict[str, Any], dict[str, LazyArray]]:
    """A config.json and tensors, in the family called `name` or the first that can carry the weights.

    Raises:
      UserError: no family can carry them, or a leaf is missing, left over, or of another shape than the
        architecture's.
    """
    architecture = weights.architecture
    if architecture is None:
        raise UserError("this checkpoint does not say what its model computes, so no config.json can be written")
    family = family_for(architecture, name)
    _check_shapes(weights.leaves, architecture)
    tensors = write_rows(family.rows(architecture), weights.leaves)
    dtype = weights.leaves["token_embedder/embedding"].array.dtype.name
    return to_config(family, architecture, dtype), tensors


def _without_aliases(family: Family, tensors: Tensors) -> dict[str, LazyArray]:
    named: dict[str, LazyArray] = {}
    for name, array in tensors.items():
        usual = name
        for pattern, replacement in family.aliases:
            usual = re.sub(pattern, replacement, usual)
        if usual in named:
            raise UserError(f"tensor '{name}' is there twice: it is also called '{usual}'")
        named[usual] = array
    return named


def _tie(family: Family, architecture: Architecture, tensors: Tensors, dropped: dict[str, Origin]) -> Tensors:
    """Leaves out an output table that is also there, if it is the token table as the configuration says."""
    untied = dataclasses.replace(architecture, tied=False)
    names = {one.ours[0]: one.theirs for one in family.rows(untied) if not one.stacked}
    table, head = names["token_embedder/embedding"], names["logits/kernel"]
    if head not in tensors:
        return tensors
    rest = {name: array for name, array in tensors.items() if name != head}
    if table not in tensors:
        return {**rest, table: tensors[head]}
    if not _are_equal(tensors[head], tensors[table]):
        raise UserError(
            f"config.json: tie_word_embeddings is true, but tensor '{head}' differs from '{table}'; it must be false"
        )
    dropped[head] = Origin("dropped", head, f"equal to {table}")
    return rest


def _are_equal(left: LazyArray, right: LazyArray) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    regions = lazy.blocks(left, _COMPARED_BYTES)
    return all(left.read(region).tobytes() == right.read(region).tobytes() for region in regions)


def _check_shapes(leaves: Leaves, architecture: Architecture) -> None:
    for path, shape in shapes_of(architecture).items():
        if path in leaves and leaves[path].shape != shape:
            raise UserError(
                f"the parameter '{path}' is {list(leaves[path].shape)} where its architecture makes it {list(shape)}"
            )
