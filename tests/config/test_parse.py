"""What is wrong with a file or a flag, in one line with file and line number; and what flags may name."""

import pytest
from test_strict import check_error


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("TRAIN_STEPS = seven\n", ["run.gin:1", "a string needs quotes"]),
        ("\nTRAIN_STEPS = /tmp/x\n", ["run.gin:2", "a string needs quotes"]),
        ("TRAIN_STEPS = (1,\n", ["run.gin:2"]),
        ("TRAIN_STEPS = 1 2\n", ["run.gin:1", "TRAIN_STEPS = 1 2"]),
        ("TRAIN_STEPS\n", ["run.gin:1"]),
        ("import nowhere\n", ["run.gin:1", "no module 'nowhere'"]),
        ("from t5x_scale import mian\n", ["run.gin:1", "did you mean 't5x_scale.main'"]),
        ("from sample_parts import Layer\n", ["sample_parts is a module", "write sample_parts.Layer"]),
        ("sample_parts.Layer.width = 3\n", ["not imported in this file", "add `import sample_parts`"]),
        ("import sample_parts\nsample_parts.Layr.width = 3\n", ["run.gin:2", "did you mean 'Layer'"]),
        ("import sample_parts\n\nMODEL = @sample_parts.Modl()\n", ["run.gin:3", "did you mean 'Model'"]),
        ("import sample_parts\nMODEL = @sample_parts.Model.make_layer\n", ["run.gin:2", "is a method"]),
        ("import sample_parts\nMODEL = @sample_parts.dataclasses\n", ["run.gin:2", "not a function or class"]),
        ("include 'inc_nowhere.gin'\n", ["run.gin:1", "no gin file 'inc_nowhere.gin'"]),
        ("include 'rnu.gin'\n", ["run.gin:1", "did you mean 'run.gin'"]),
        ("include 'run.gin'\n", ["run.gin:1", "includes itself"]),
    ],
)
def test_bad_file(cli, text, parts):
    check_error(cli("train", files={"run.gin": text}), *parts)


def test_error_inside_an_included_file_is_located_there(cli):
    files = {"run.gin": "\ninclude 'inc.gin'\n", "inc.gin": "\n\nTRAIN_STEPS = oops\n"}
    result = cli("train", files=files)
    check_error(result, "inc.gin:3")
    assert "run.gin" not in result.err


def test_failing_import_keeps_its_traceback(cli, tmp_path, monkeypatch):
    (tmp_path / "sample_broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        cli("train", files={"run.gin": "import sample_broken\n"})


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--gin.MODEL=/tmp/x", ["not a gin value", r"--gin.MODEL=\"/tmp/x\""]),
        ("--gin.MODEL=8b", ["not a gin value", r"--gin.MODEL=\"8b\""]),
        ("--gin.MODEL=gs://bucket/run 1", [r"--gin.MODEL=\"gs://bucket/run 1\""]),
        ("--gin.TRAIN_STEPS=", ["the value is missing"]),
        ("--gin.train.resume=true", ["write --gin.train.resume=True"]),
        ("--gin.TRAIN_STEPS", ["--gin.NAME=value"]),
        ("--gin.TRAIN STEPS=3", ["is not a name"]),
        ("--gin.Modl.scale=3", ["no function or class 'Modl'", "'sample_parts.Model'"]),
        ("--gin.MODEL=@sample_parts.Modl()", ["--gin.MODEL", "'sample_parts.Model'"]),
    ],
)
def test_bad_flag(cli, flag, parts):
    check_error(cli("train", flag), *parts)


@pytest.mark.parametrize(
    "name",
    ["TRAIN_STEPS", "train.train_steps", "sample_commands.train.train_steps"],
)
def test_flag_by_macro_function_or_module(cli, name):
    assert cli("train", f"--gin.{name}=3").calls[0][1]["train_steps"] == 3


@pytest.mark.parametrize("name", ["train/Data.batch_size", "train/sample_parts.Data.batch_size"])
def test_flag_with_scope(cli, name):
    arguments = cli("train", f"--gin.{name}=3").calls[0][1]
    assert (arguments["data"].batch_size, arguments["eval_data"].batch_size) == (3, 4)


def test_flag_without_any_file(cli):
    result = cli("fail", "--gin.sample_commands.fail.kind='user'", base=False)
    check_error(result, "the disk is full")


def test_ambiguous_name(cli, tmp_path, monkeypatch):
    (tmp_path / "sample_other.py").write_text("class Model:\n    def __init__(self, scale=1): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = "import sample_other\nimport sample_commands\nsample_commands.evaluate.model = @sample_other.Model()\n"
    result = cli("train", "--gin.Model.scale=3.0", files={"run.gin": text})
    check_error(result, "sample_other.Model or sample_parts.Model", "write more")


def test_file_included_twice_is_read_once(cli):
    files = {
        "inc.gin": "TRAIN_STEPS = 1\n",
        "run.gin": "include 'inc.gin'\nTRAIN_STEPS = 2\n",
        "more.gin": "include 'inc.gin'\n",
    }
    assert cli("train", files=files).calls[0][1]["train_steps"] == 2


def test_file_named_twice_by_flags_is_read_again(cli):
    result = cli("train", "--gin_file=a.gin", files={"a.gin": "TRAIN_STEPS = 1\n", "b.gin": "TRAIN_STEPS = 2\n"})
    assert result.calls[0][1]["train_steps"] == 1


def test_dynamic_registration_may_be_left_out(cli):
    text = "import sample_parts as parts\nparts.Layer.width = 5\n"
    assert cli("train", files={"run.gin": text}).calls[0][1]["model"].make_layer().width == 5
