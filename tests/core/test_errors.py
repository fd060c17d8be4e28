"""Hints at the nearest right name."""

from t5x_scale.core.errors import did_you_mean


def test_nearest_names():
    assert did_you_mean("embd", ["vocab", "embed", "heads"]) == " (did you mean 'embed'?)"
    assert did_you_mean("wi", ["wi_0", "wi_1", "wo"], limit=2) == " (did you mean 'wi_1' or 'wi_0'?)"


def test_silence_when_nothing_is_near():
    assert did_you_mean("zzz", ["vocab", "embed"]) == ""
    assert did_you_mean("zzz", []) == ""


def test_any_iterable():
    assert did_you_mean("dat", iter({"data": 1})) == " (did you mean 'data'?)"
