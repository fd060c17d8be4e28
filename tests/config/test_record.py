"""The configuration written beside a run is a gin file that says the same."""

import gin
from conftest import BASE
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.config.values import to_text


def _dry(cli, command, **given):
    result = cli(command, "--dry_run", **given)
    assert result.code == 0, result.err
    return result.out.split("# Not used")[0]


def _record(cli, *words, files=None):
    result = cli("train", *words, files=files)
    assert result.code == 0, result.err
    return result.calls[0][1]["config_text"]


def test_round_trip(cli):
    text = _record(cli)
    for command in ("train", "eval"):
        before, after = _dry(cli, command), _dry(cli, command, files={"config.gin": text}, base=False)
        assert before == after
    result = cli("train", files={"config.gin": text}, base=False)
    assert result.calls[0][1]["config_text"] == text


def test_overrides_are_recorded_and_what_they_replaced_is_not(cli):
    words = [
        "--gin.OPTIMIZER=@sample_parts.Lion()",
        "--gin.Lion.learning_rate=@slow/sample_parts.Constant()",
        "--gin.slow/Constant.value=1e-3",
        "--gin.train.model_dir='it''s'",
    ]
    text = _record(cli, *words)
    assert "Adam" not in text
    assert "slow/sample_parts.Constant.value = 0.001" in text
    after = cli("train", files={"config.gin": text}, base=False)
    assert after.code == 0, after.err
    assert after.calls[0][1]["optimizer"].learning_rate.value == 1e-3
    assert after.calls[0][1]["model_dir"] == "its"


def test_order_inside_a_dict_is_kept(cli):
    text = _record(cli)
    result = cli("train", files={"config.gin": text}, base=False)
    assert list(result.calls[0][1]["eval_data"].lengths) == ["b", "a"]


def test_modules_of_one_name_get_two(cli, tmp_path, monkeypatch):
    for package in ("sample_one", "sample_two"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "rates.py").write_text("def rate(value: float = 0.0):\n    return lambda step: value\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = """
from sample_one import rates
from sample_two import rates as other
import sample_commands
import sample_parts
sample_parts.Adam.learning_rate = @rates.rate()
rates.rate.value = 0.25
sample_commands.evaluate.sampler = @other.rate
other.rate.value = 0.5
"""
    recorded = _record(cli, files={"both.gin": text})
    assert "from sample_one import rates\n" in recorded
    assert "from sample_two import rates as rates_2\n" in recorded
    after = cli("train", files={"config.gin": recorded}, base=False)
    assert (after.code, after.err) == (0, "")
    assert after.calls[0][1]["optimizer"].learning_rate(0) == 0.25
    after = cli("eval", files={"config.gin": recorded}, base=False)
    assert after.calls[0][1]["sampler"]()(0) == 0.5


_LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(value=_LITERALS)
def test_any_literal_reads_back_as_itself(value):
    read = gin.config.parse_value(to_text(value))
    assert read == value
    assert repr(read) == repr(value)


def test_required_of_other_commands_stays_required(cli):
    text = BASE.replace('split = "validation"', "split = %gin.REQUIRED")
    result = cli("train", files={"other.gin": text}, base=False)
    recorded = result.calls[0][1]["config_text"]
    assert "sample_commands.evaluate.split = %gin.REQUIRED" in recorded
    assert "is required by t5x_scale eval" in cli("eval", files={"config.gin": recorded}, base=False).err


def test_command_line(cli):
    arguments = cli("train", "--gin.train.model_dir='a b'").calls[0][1]
    assert arguments["command_line"] == """t5x_scale train --gin_file=base.gin '--gin.train.model_dir='"'"'a b'"'"''"""
