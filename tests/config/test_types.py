"""Values against annotations."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing
from typing import Any, Literal

import pytest
import sample_parts

from t5x_scale.config.signature import MISSING, Parameter, parameters
from t5x_scale.config.types import UNKNOWN, mismatch

Steps = typing.NewType("Steps", int)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (3, int),
        (3, float),
        (3.5, float),
        (True, bool),
        ("a", str),
        (None, int | None),
        (None, typing.Optional[int]),  # noqa: UP045
        (3, typing.Union[int, str]),  # noqa: UP007
        ("a", Literal["a", "b"]),
        ((1, 2), tuple[int, ...]),
        ((1, "a"), tuple[int, str]),
        ((1, 2), tuple),
        ([1], list[int]),
        ([1], collections.abc.Sequence[int]),
        ((1,), collections.abc.Sequence[int]),
        (("a",), typing.Sequence[str]),
        ({"a": 1}, dict[str, float]),
        ({"a": (1, 2)}, collections.abc.Mapping[str, tuple[int, ...]]),
        ({"a": 1}, dict),
        (3, Steps),
        (3, typing.Annotated[int, "steps"]),
        ("bfloat16", __import__("numpy").dtype),
        (object(), Any),
        (UNKNOWN, int),
        ((1, UNKNOWN), tuple[int, int]),
        ("a", MISSING),
        ("a", typing.TypeVar("T")),
    ],
)
def test_fits(value, annotation):
    assert mismatch(value, Parameter("x", annotation, MISSING)) is None


@pytest.mark.parametrize(
    ("value", "annotation", "words"),
    [
        (3.5, int, "expected int, got the float 3.5"),
        (1e6, int, "write 1000000"),
        (True, int, "expected int, got True"),
        (True, float, "expected float, got True"),
        (1, bool, "expected bool, got the int 1"),
        (7, str, "expected str, got the int 7"),
        ("7", int, "expected int, got the string '7'"),
        (None, int, "expected int, got None"),
        ("a", int | None, "expected int, got the string 'a'"),
        ("a", int | float, "expected int or float, got the string 'a'"),
        ("fulll", Literal["none", "full"], "did you mean 'full'"),
        (1, Literal[True], "expected True, got the int 1"),
        ([1], tuple[int, ...], "expected tuple[int, ...], got the list [1]"),
        ((1,), list[int], "got the tuple"),
        ((1, "a"), tuple[int, ...], "expected int, got the string 'a' in the tuple (1, 'a')"),
        ((1,), tuple[int, int], "got 1 values"),
        ("ab", collections.abc.Sequence[str], "write ('ab',)"),
        ({"a": "b"}, dict[str, int], "expected int, got the string 'b'"),
        ({1: 1}, dict[str, int], "expected str, got the int 1"),
        ("relu", collections.abc.Callable[..., Any], "refer to @module.name"),
        ("a", type[int], "refer to @module.name"),
        ("a", type, "refer to @module.name"),
        ("small", sample_parts.Model, "refer to @sample_parts.Model()"),
        ("7", Steps, "expected int"),
    ],
)
def test_does_not_fit(value, annotation, words):
    assert words in mismatch(value, Parameter("x", annotation, MISSING))


def test_none_fits_where_it_is_the_default():
    assert mismatch(None, Parameter("x", int, None)) is None


def test_annotations_of_inherited_fields_are_read_where_they_were_written():
    @dataclasses.dataclass(frozen=True)
    class Wide(sample_parts.Deep):
        factor: float = 2.0

    found = parameters(Wide)
    assert found["kind"].annotation == Literal["gated", "plain"]
    assert found["factor"].annotation is float


def test_annotation_that_cannot_be_evaluated_accepts_all():
    def function(x: NotImported, y: int):  # noqa: F821
        return x, y

    found = parameters(function)
    assert found["x"].annotation is MISSING
    assert found["y"].annotation is int


def test_linen_fields_of_flax_itself_are_not_parameters():
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        width: int = 3

    assert list(parameters(Block)) == ["width"]
