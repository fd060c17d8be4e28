"""Trees of nested dicts and the slash-separated paths that name their leaves.

A path such as `decoder/layers/mlp/wi_0/kernel` is the one name of a parameter everywhere: in reports,
in regex groups of the optimiser, in checkpoints and in mappings to other formats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Tree = Any


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
