"""Hints at the nearest right name."""

import pytest

from t5x_scale.core.errors import UserError, check_choice, did_you_mean


def test_nearest_names():
    assert did_you_mean("embd", ["vocab", "embed", "heads"]) == " (did you mean 'embed'?)"
    assert did_you_mean("wi", ["wi_0", "wi_1", "wo"], limit=2) == " (did you mean 'wi_1' or 'wi_0'?)"


def test_silence_when_nothing_is_near():
    assert did_you_mean("zzz", ["vocab", "embed"]) == ""
    assert did_you_mean("zzz", []) == ""


def test_nobody_means_what_he_said():
    assert did_you_mean("loop", ["loop"]) == ""


def test_any_iterable():
    assert did_you_mean("dat", iter({"data": 1})) == " (did you mean 'data'?)"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nearst", "mode is 'nearst' (did you mean 'nearest'?)"),
        ("zzz", "mode is 'zzz'; known are None, nearest, 8"),
        (["nearest"], "mode is ['nearest'] (did you mean 'nearest'?)"),
    ],
)
def test_one_of_a_few_values(value, message):
    for choice in (None, "nearest", 8):
        check_choice("mode", choice, (None, "nearest", 8))
    with pytest.raises(UserError) as error:
        check_choice("mode", value, (None, "nearest", 8))
    assert str(error.value) == message
