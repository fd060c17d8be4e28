"""Amounts are read as people write them, and written as they read them."""

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.planner.amounts import bytes_text, count_text, counted, days_text, parse_amount, parse_whole


@pytest.mark.parametrize(
    ("text", "value"),
    [("8e9", 8e9), ("8b", 8e9), ("1.4T", 1.4e12), ("30_000", 3e4), ("1,000", 1e3), ("2.5k", 2500), (".5", 0.5), (7, 7)],
)
def test_amounts(text, value):
    assert parse_amount("params", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "b", "8x", "-1", "0", "inf", "nan", "1e999", "8 b b", True, "--", "1e", "e9"])
def test_what_is_no_amount(text):
    with pytest.raises(UserError, match=r"--params is .*expected a positive number"):
        parse_amount("params", text)


@pytest.mark.parametrize("value", ["1e-308", "1e308", 5e-324, "1e35t"])
def test_what_is_the_amount_of_nothing(value):
    with pytest.raises(UserError, match=f"--days is .*{value}.*; expected one from 1e-09 to 1e\\+45"):
        parse_amount("days", value)
    assert parse_amount("days", "1e-9") == 1e-9
    with pytest.raises(UserError, match="--length is 1e13; expected no more tokens than 1e\\+12"):
        parse_whole("length", "1e13")


def test_texts():
    assert [count_text(x) for x in (8.03e9, 999.7e6, 1.4e12, 12, 0.5)] == ["8.03 B", "1.00 B", "1.40 T", "12", "0.5"]
    assert [bytes_text(x) for x in (3 * 2**30, 2**20, 512)] == ["3.00 GiB", "1.00 MiB", "0.5 KiB"]
    assert [days_text(x) for x in (800, 14, 0.1, 0.01, 1e-6)] == [
        "2.19 years",
        "14.0 days",
        "2.40 hours",
        "14.4 minutes",
        "0.086 seconds",
    ]


def test_one_of_a_thing():
    assert (counted(1, "row"), counted(1024, "row")) == ("1 row", "1,024 rows")


@pytest.mark.parametrize("value", ["much", 1, 2.5, True, "nan", "1e400"])
def test_what_is_no_whole_number(value):
    assert parse_whole("length", "4_096") == 4096
    with pytest.raises(UserError, match=f"--length is {value}"):
        parse_whole("length", value)
