"""The configuration written beside a run is a gin file that says the same."""

from conftest import BASE


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
    one = "from sample_one import rates\nimport sample_parts\nsample_parts.Adam.learning_rate = @rates.rate()\n"
    two = "from sample_two import rates as other\nother.rate.value = 0.5\n"
    two += "import sample_parts\nsample_parts.Adam.learning_rate = @other.rate()\n"
    text = _record(cli, files={"one.gin": one, "two.gin": two})
    assert "from sample_two import rates" in text
    assert "sample_one" not in text
    both = one + "rates.rate.value = 0.25\nsample_parts.Lion.learning_rate = @other.rate()\n"
    both = "from sample_two import rates as other\nother.rate.value = 0.5\n" + both
    both += "import sample_commands\nsample_commands.train.optimizer = @sample_parts.Adam()\n"
    both += "sample_parts.Adam.groups = {'a': @other.rate}\n".replace("{'a': @other.rate}", "None")
    both += "sample_commands.evaluate.sampler = @sample_parts.Lion\n"
    text = _record(cli, files={"both.gin": both})
    assert "from sample_two import rates" in text
    assert "from sample_one import rates as rates_2" in text or "from sample_one import rates\n" in text
    after = cli("train", files={"config.gin": text}, base=False)
    assert after.code == 0, after.err
    assert after.calls[0][1]["optimizer"].learning_rate(0) == 0.25


def test_required_of_other_commands_stays_required(cli):
    text = BASE.replace('split = "validation"', "split = %gin.REQUIRED")
    result = cli("train", files={"other.gin": text}, base=False)
    recorded = result.calls[0][1]["config_text"]
    assert "sample_commands.evaluate.split = %gin.REQUIRED" in recorded
    assert "is required by t5x_scale eval" in cli("eval", files={"config.gin": recorded}, base=False).err


def test_command_line(cli):
    arguments = cli("train", "--gin.train.model_dir='a b'").calls[0][1]
    assert arguments["command_line"] == """t5x_scale train --gin_file=base.gin '--gin.train.model_dir='"'"'a b'"'"''"""
