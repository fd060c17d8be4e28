"""Shows what a checkpoint of any kind holds: its tensors, their sizes and norms, its model and its recipe.

    python tools/inspect_checkpoint.py PATH                   # tree, shapes, dtypes; reads no tensor
    python tools/inspect_checkpoint.py PATH --norms           # and reads all: RMS, largest, not finite, fingerprint
    python tools/inspect_checkpoint.py PATH --norms --layers --only='.*/mlp/wo/.*'     # layer by layer

PATH is a run of ours or one step of it, what `import` and `reshape` wrote, or a Hugging Face directory, local or gs://.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from typing import Any

from t5x_scale.conversion.sources import Source, open_source
from t5x_scale.conversion.statistics import describe_tensor
from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.core.files import write_json
from t5x_scale.core.leaves import Leaf
from t5x_scale.models.records import architecture_to_json
from t5x_scale.surgery.optimizer_state import join_state

HEADER = ("tensor", "shape", "dtype", "rms", "mean", "max", "not finite", "fingerprint")


def find_leaves(source: Source, pattern: str, with_state: bool, by_layer: bool) -> dict[str, Leaf]:
    """The tensors asked for; with `by_layer` those of a stack one by one."""
    weights = source.weights
    leaves = dict(weights.leaves) | (join_state(weights.moments, weights.counters) if with_state else {})
    found: dict[str, Leaf] = {}
    for path, leaf in leaves.items():
        if not re.fullmatch(pattern, path):
            continue
        if by_layer and leaf.axes[:1] == ("layers",):
            for layer in range(leaf.shape[0]):
                found[f"{path}[{layer}]"] = Leaf(lazy.select(leaf.array, 0, layer), leaf.axes[1:], leaf.origin)
        else:
            found[path] = leaf
    if not found:
        raise UserError(f"no tensor of {source.place} is called {pattern!r}")
    return found


def describe_leaf(leaf: Leaf, norms: bool) -> dict[str, Any]:
    """What the table says of one tensor."""
    facts: dict[str, Any] = {"shape": list(leaf.shape), "dtype": str(leaf.array.dtype), "axes": list(leaf.axes)}
    return facts | (dataclasses.asdict(describe_tensor(leaf.array)) if norms else {})


def print_table(rows: dict[str, dict[str, Any]], norms: bool) -> None:
    """One line a tensor, and a line of totals."""
    cells = [HEADER if norms else HEADER[:3]]
    for path, facts in rows.items():
        cell = [path, "x".join(map(str, facts["shape"])) or "scalar", facts["dtype"]]
        if norms:
            cell += [f"{facts[name]:.4g}" for name in ("rms", "mean", "max_abs")]
            cell += [str(facts["not_finite"]), facts["fingerprint"]]
        cells.append(tuple(cell))
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--norms", action="store_true", help="read every tensor: norms and fingerprints")
    parser.add_argument("--layers", action="store_true", help="the layers of a stack one by one")
    parser.add_argument("--state", action="store_true", help="the state of the optimiser too")
    parser.add_argument("--only", default=".*", metavar="REGEX", help="tensors whose whole path matches")
    parser.add_argument("--output", metavar="FILE", help="all of it as JSON")
    arguments = parser.parse_args()
    try:
        source = open_source(arguments.path, verify=False)
        leaves = find_leaves(source, arguments.only, arguments.state, arguments.layers)
        rows = {path: describe_leaf(leaf, arguments.norms) for path, leaf in leaves.items()}
        weights = source.weights
        model = None if weights.architecture is None else architecture_to_json(weights.architecture)
        print(f"{source.place} ({source.kind})")
        print_table(rows, arguments.norms)
        print(f"{len(leaves)} tensors, {sum(leaf.array.size for leaf in leaves.values()):,} elements")
        print(f"model: {json.dumps(model)}\ntokenizer: {', '.join(weights.tokenizer) or 'none'}")
        print("recipe:", *(f"\n  {json.dumps(step)}" for step in weights.recipe))
        if arguments.output:
            facts = {"place": source.place, "kind": source.kind, "model": model, "recipe": list(weights.recipe)}
            write_json(arguments.output, {**facts, "tensors": rows})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
