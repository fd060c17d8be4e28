"""Trees of nested dicts and the slash-separated paths that name their leaves.

A path such as `decoder/layers/mlp/wi_0/kernel` is the one name of a parameter everywhere: in reports,
in regex groups of the optimiser, in checkpoints and in mappings to other formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from t5x_scale.core.errors import UserError, did_you_mean


def flatten(tree: Mapping[str, Any], is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Returns `{"a/b/c": leaf}` of nested dicts, in the order of the dicts.

    Args:
      tree: nested mappings with string keys. Anything that is not a mapping is a leaf.
      is_leaf: optional predicate that makes a mapping a leaf.
    """
    flat: dict[str, Any] = {}

    def visit(node: Any, prefix: str) -> None:
        if isinstance(node, Mapping) and not (is_leaf and is_leaf(node)):
            for key, value in node.items():
                visit(value, f"{prefix}/{key}" if prefix else str(key))
        else:
            flat[prefix] = node

    visit(tree, "")
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`: nested dicts from `{"a/b/c": leaf}`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def map_with_path(function: Callable[..., Any], tree: Mapping[str, Any], *rest: Mapping[str, Any]) -> dict[str, Any]:
    """Maps `function(path, leaf, *other_leaves)` over nested dicts of the same structure."""
    others = [flatten(other) for other in rest]
    return unflatten(
        {path: function(path, leaf, *(other[path] for other in others)) for path, leaf in flatten(tree).items()}
    )


def check_shapes(
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    where: str,
    *,
    leaf: str = "parameter",
    user: str = "the model",
    hint: str = "",
) -> None:
    """Compares what is there with what is needed, by path and shape; no values are looked at.

    Args:
      found: by path, anything with a shape.
      wanted: likewise.
      where: what `found` is, for the message.
      leaf: what the message calls a leaf.
      user: what needs the leaves, for the message.
      hint: what ends the message.

    Raises:
      UserError: naming the first leaf that is missing, unexpected or of another shape.
    """
    for path, needed in wanted.items():
        if path not in found:
            near = did_you_mean(path, found.keys() - wanted.keys())
            raise UserError(f"{where} has no {leaf} '{path}', which {user} needs{near}{hint}")
        shapes = list(found[path].shape), list(needed.shape)
        if shapes[0] != shapes[1]:
            raise UserError(f"'{path}' has the shape {shapes[0]} in {where}, {user} needs {shapes[1]}{hint}")
    for path in found:
        if path not in wanted:
            near = did_you_mean(path, wanted.keys() - found.keys())
            raise UserError(f"{where} has the {leaf} '{path}', which {user} does not know{near}{hint}")
