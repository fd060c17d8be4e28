"""Published rates become times of steps, and errors of predictions are printed as they are."""

import pathlib

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.roofline.calibration import PUBLISHED, Published, compare, to_table

GIN = pathlib.Path(__file__).parents[2] / "gin" / "calibration"


def prediction(seconds, chips=64, tokens=384 * 2048, full=1.0):
    return {"seconds": seconds, "num_chips": chips, "model": {"tokens": tokens, "full": full, "causal": full / 2}}


def test_a_rate_in_flops():
    row = Published("x", "x", flops_per_second=300e12)
    assert row.step_seconds(tokens=1, full_flops=300e12 * 64 * 5, num_chips=64) == 5


def test_a_rate_in_tokens():
    # PaLM 540B: 2048 x 2048 tokens at 238.3 thousand a second.
    made = compare("palm_540b_v4_2x3072", prediction(19.36, chips=6144, tokens=2048 * 2048))
    assert made.measured == pytest.approx(17.60, abs=0.01)
    assert made.error == pytest.approx(0.1, abs=1e-3)


def test_the_table_has_every_error_and_says_which_were_in_sight():
    rows = [compare(name, prediction(10.0, full=328e12 * 64 * 8)) for name in PUBLISHED]
    lines = to_table(rows).splitlines()
    assert len(lines) == 2 + len(PUBLISHED)
    fitted = [line for line in lines if line.endswith("| in sight |")]
    assert len(fitted) == sum(row.is_fitted for row in PUBLISHED.values())
    assert "| MaxText 32B, 64 v5p | 8.00 s | 10.00 s | +25 % | in sight |" in lines


def test_every_row_has_one_rate_a_source_and_a_gin_file():
    for row in PUBLISHED.values():
        assert (row.flops_per_second is None) != (row.tokens_per_second is None)
        assert row.source
        assert (GIN / f"{row.name}.gin").exists()


def test_some_rows_are_kept_unseen():
    assert any(row.is_fitted for row in PUBLISHED.values())
    assert any(not row.is_fitted for row in PUBLISHED.values())


def test_an_unknown_row():
    with pytest.raises(UserError, match="did you mean 'palm_540b_v4_2x3072'"):
        compare("palm_540b_v4_2x307", prediction(1.0))


def test_a_report_without_the_models_flops():
    with pytest.raises(UserError, match="without the FLOPs"):
        compare("palm_540b_v4_2x3072", prediction(1.0) | {"model": None})
