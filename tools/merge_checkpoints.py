"""Merges checkpoints of one architecture into one of ours.

    python tools/merge_checkpoints.py linear A B --output=MERGED --set weights='(0.7, 0.3)'
    python tools/merge_checkpoints.py average RUN/checkpoints/900 RUN/checkpoints/1000 --output=MERGED
    python tools/merge_checkpoints.py ties BASE A B --output=MERGED --set density=0.2

Methods: linear, average, ema, slerp; and, where the first checkpoint is the base of the others, taskarithmetic, ties,
dare. Their settings are the fields of the classes in t5x_scale/surgery/merging.py. Checkpoints are what
`t5x_scale reshape` reads, which merges too, and applies surgeries afterwards (reshape.merge, --merge_with).
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import sys
from collections.abc import Sequence

from t5x_scale.commands.reshape import reshape
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.surgery import merging

METHODS = {
    kind.__name__.lower(): kind
    for kind in (
        merging.Linear,
        merging.Average,
        merging.Ema,
        merging.Slerp,
        merging.TaskArithmetic,
        merging.Ties,
        merging.Dare,
    )
}


def make_merge(method: str, settings: Sequence[str]) -> merging.Merge:
    """A merge by its name and `name=value` settings.

    Raises:
      UserError: an unknown method or setting, a value that is no Python literal, or a setting that is missing.
    """
    if method not in METHODS:
        raise UserError(f"no method {method!r}{did_you_mean(method, METHODS)}; there are {', '.join(METHODS)}")
    kind, values = METHODS[method], {}
    known = {field.name: field for field in dataclasses.fields(kind)}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            raise UserError(
                f"--set {setting}: {method} has {', '.join(known) or 'no settings'}{did_you_mean(name, known)}"
            )
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise UserError(f"--set {setting}: {text!r} is neither a number nor a tuple of numbers") from error
    missing = [name for name, field in known.items() if field.default is dataclasses.MISSING and name not in values]
    if missing:
        raise UserError(f"{method} needs --set {missing[0]}=…")
    return kind(**values)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help="two or more, the base first")
    parser.add_argument("--output", required=True, metavar="DIRECTORY", help="does not exist yet")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the method")
    parser.add_argument("--dtype", help="of the parameters on disk, if another")
    arguments = parser.parse_args()
    try:
        first, *others = arguments.checkpoints
        if not others:
            raise UserError(f"a merge takes two checkpoints or more; {first} is one")
        merge = make_merge(arguments.method.replace("_", ""), arguments.set)
        return reshape(first, arguments.output, merge=merge, others=others, dtype=arguments.dtype)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
