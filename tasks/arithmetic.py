"""Addition, subtraction and multiplication, made up as they are read, with digits in base 10, 100 or 1000.

A digit is one chunk of the text between blanks: 1234567 is `1 2 3 4 5 6 7`, `01 23 45 67` or `001 234 567`, so a
vocabulary with pieces of two or three figures can give each digit one id. The problems do not depend on the base:
tasks of several bases ask the same questions.

    arithmetic_base10       1 7 + 5 =      ->  2 2
    arithmetic_base100      17 + 05 =      ->  22
    arithmetic_base1000     017 + 005 =    ->  022
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import seqio
import tensorflow as tf

from tasks.common import add_supervised_task, make_dataset
from tasks.metrics import exact_match

OPERATIONS = ("+", "-", "*")
HELD_OUT_ONE_IN = 10
_WIDTHS = {10: 1, 100: 2, 1000: 3}
# Tries before a split counts as empty: with one-figure numbers few pairs of operands are held out.
_TRIES = 10_000
# What 256 random bits are enough for.
_MAX_FIGURES = 60


def register_arithmetic(
    name: str,
    *,
    base: Literal[10, 100, 1000] = 10,
    operations: Sequence[str] = OPERATIONS,
    max_figures: int = 6,
    examples: Mapping[str, int] | None = None,
    seed: int = 0,
) -> seqio.Task:
    """Registers a supervised task of problems, each a function of (seed, split, index).

        register_arithmetic("long_sums", base=1000, operations=["+"], max_figures=12)

    A pair of operands, in whatever order, belongs to `train` or to `validation`, one in ten to the latter: no problem
    of one stands in the other. Within a split, pairs repeat once there are more examples than pairs. How many figures
    an operand has is uniform from 1 to `max_figures`, then its value is uniform among those. The difference is that
    of the larger and the smaller.

    Args:
      name: the task's name.
      base: of the digits.
      operations: of `+`, `-`, `*`; each as often as the others.
      max_figures: decimal figures of the longest operand.
      examples: {split: how many}; 100,000 to train on and 1,000 for validation when None.
      seed: another one gives other problems, with the same pairs held out.

    Raises:
      ValueError: another base, operation or split, or more than 60 figures.
    """
    examples = dict(examples or {"train": 100_000, "validation": 1_000})
    if base not in _WIDTHS:
        raise ValueError(f"base must be one of {', '.join(map(str, _WIDTHS))}, not {base}")
    if not operations or not set(operations) <= set(OPERATIONS):
        raise ValueError(f"operations must be some of {', '.join(OPERATIONS)}, not {list(operations)}")
    if not examples.keys() <= {"train", "validation"} or not 1 <= max_figures <= _MAX_FIGURES:
        raise ValueError(
            f"splits are train and validation, and max_figures is 1 to {_MAX_FIGURES}: {examples}, {max_figures}"
        )
    make = functools.partial(
        _make, base=base, operations=tuple(operations), max_figures=max_figures, examples=examples, problem_seed=seed
    )
    source = seqio.FunctionDataSource(make, splits=tuple(examples), num_input_examples=examples)
    return add_supervised_task(name, source, metric_fns=[exact_match])


def digits(number: int, base: int) -> str:
    """A number that is not negative, as digits of the base between blanks: 12345 -> `01 23 45` in base 100."""
    width = _WIDTHS[base]
    figures = str(number)
    figures = figures.zfill(-(-len(figures) // width) * width)
    return " ".join(figures[start : start + width] for start in range(0, len(figures), width))


def split_of(first: int, second: int) -> str:
    """The split a pair of operands belongs to, in whatever order and for every operation."""
    pair = f"{min(first, second)} {max(first, second)}"
    return "validation" if _draw(pair) % HELD_OUT_ONE_IN == 0 else "train"


def problem(
    split: str, index: int, *, operations: Sequence[str] = OPERATIONS, max_figures: int = 6, seed: int = 0
) -> tuple[int, str, int, int]:
    """The problem at an index of a split: (first operand, operation, second operand, result).

    Raises:
      ValueError: the split holds no pair of operands of that size.
    """
    operation = operations[_draw(f"{seed} {split} {index}") % len(operations)]
    for attempt in range(_TRIES):
        first, second = (
            _operand(_draw(f"{seed} {split} {index} {attempt} {side}"), max_figures) for side in ("first", "second")
        )
        if split_of(first, second) == split:
            break
    else:
        raise ValueError(f"no pair of operands of up to {max_figures} figures belongs to '{split}'")
    if operation == "-":
        first, second = max(first, second), min(first, second)
    result = {"+": first + second, "-": first - second, "*": first * second}[operation]
    return first, operation, second, result


def _draw(key: str) -> int:
    """256 bits that are the same on every machine and in every version of Python."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=32).digest(), "big")


def _operand(draw: int, max_figures: int) -> int:
    figures = draw % max_figures + 1
    lowest = 0 if figures == 1 else 10 ** (figures - 1)
    return lowest + (draw // max_figures) % (10**figures - lowest)


def _make(
    split: str,
    shuffle_files: bool,
    seed: int | None = None,
    *,
    base: int,
    operations: Sequence[str],
    max_figures: int,
    examples: Mapping[str, int],
    problem_seed: int,
) -> tf.data.Dataset:
    del shuffle_files, seed  # Order is the reader's business.

    def generate() -> Iterator[tuple[bytes, bytes]]:
        for index in range(examples[split]):
            first, operation, second, result = problem(
                split, index, operations=operations, max_figures=max_figures, seed=problem_seed
            )
            question = f"{digits(first, base)} {operation} {digits(second, base)} ="
            # The blank makes the first digit of an answer look like the others.
            yield question.encode(), f" {digits(result, base)}".encode()

    return make_dataset(generate, ["inputs", "targets"])


for _base in _WIDTHS:
    register_arithmetic(f"arithmetic_base{_base}", base=_base)
