"""One class for each way in which plain gin says nothing, with a file that is wrong in that way."""

import re

import pytest
from conftest import BASE
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st


def check_error(result, *parts):
    """One line on stderr that holds all the parts; nothing ran."""
    assert result.code == 1
    assert not result.calls
    assert result.err.startswith("t5x_scale: error: ")
    assert result.err.count("\n") == 1
    for part in parts:
        assert part in result.err, result.err


def test_right_file_runs(cli):
    result = cli("train")
    assert (result.code, result.err) == (0, "")
    arguments = result.calls[0][1]
    assert arguments["train_steps"] == 10
    assert arguments["data"].batch_size == 32
    assert arguments["eval_data"].batch_size == 4
    assert arguments["optimizer"].learning_rate.value == 0.5


class TestMistypedMacro:
    def test_flag(self, cli):
        check_error(cli("train", "--gin.STESP=7"), "--gin.STESP", "'TRAIN_STEPS'")

    def test_file(self, cli):
        check_error(cli("train", files={"run.gin": "\nTRIAN_STEPS = 7\n"}), "TRIAN_STEPS (run.gin:2)", "'TRAIN_STEPS'")

    def test_never_used(self, cli):
        check_error(cli("train", "--gin.ZEBRA=7"), "--gin.ZEBRA is used by no command: nothing uses %ZEBRA")

    def test_what_used_it_is_set_to_something_else(self, cli):
        file = "import sample_parts\nsample_parts.Model.scale = %SCALE\nSCALE = 3.0\n"
        given = {"run.gin": file, "over.gin": "import sample_parts\nsample_parts.Model.scale = 2.0\n"}
        said = (
            "used by no command: sample_parts.Model.scale took it until over.gin:2 set that; bind sample_parts.Model."
        )
        check_error(cli("train", "--gin.SCALE=4.0", files=given), f"--gin.SCALE is {said}scale instead")
        # Before it was overridden it led somewhere: no mistake.
        assert cli("train", files=given).code == 0

    def test_used_where_nothing_defines_it(self, cli):
        text = "import sample_parts\nsample_parts.Model.scale = %SCALE\nSCLAE = 3.0\n"
        check_error(
            cli("train", files={"run.gin": text}), "%SCALE", "run.gin:2", "SCLAE (run.gin:3)", "was 'SCALE' meant"
        )

    def test_undefined_and_nothing_near(self, cli):
        text = "import sample_parts\nsample_parts.Model.scale = %QUUX\n"
        check_error(cli("train", files={"run.gin": text}), "%QUUX, used by sample_parts.Model.scale (run.gin:2)")


class TestMistypedScope:
    def test_flag(self, cli):
        check_error(cli("train", "--gin.train_evl/Data.batch_size=3"), "train_evl/", "'train_eval/sample_parts.Data")

    def test_file(self, cli):
        text = "import sample_parts\ntrain_evl/sample_parts.Data.batch_size = 3\n"
        check_error(cli("train", files={"run.gin": text}), "(run.gin:2)", "'train_eval/sample_parts.Data.batch_size'")

    def test_scope_that_an_uncalled_reference_does_not_carry(self, cli):
        result = cli("train", "--gin.MODEL/Layer.width=3")
        check_error(result, "outside any scope", "write @MODEL/sample_parts.Layer")

    def test_that_reference_with_the_scope(self, cli):
        result = cli("train", "--gin.wide/Layer.width=3", "--gin.Model.layer=@wide/sample_parts.Layer")
        assert result.calls[0][1]["model"].make_layer().width == 3

    def test_scope_does_not_pass_through_a_macro(self, cli):
        # gin runs a macro's value in the macro's own scope, not in that of whoever uses the macro.
        text = "import sample_parts\nOPTIMIZER = @fast/sample_parts.Adam()\nRATE = @sample_parts.Constant()\n"
        text += "sample_parts.Adam.learning_rate = %RATE\nfast/sample_parts.Constant.value = 3.0\n"
        check_error(cli("train", files={"run.gin": text}), "fast/sample_parts.Constant.value (run.gin:5)", "called in")


class TestNeverReferenced:
    def test_flag(self, cli):
        check_error(cli("train", "--gin.sample_parts.Lion.beta=0.5"), "nothing refers to @sample_parts.Lion")

    def test_file(self, cli):
        text = "import sample_parts\nsample_parts.Lion.beta = 0.5\n"
        check_error(cli("train", files={"run.gin": text}), "sample_parts.Lion.beta (run.gin:2)", "no command")

    def test_python_default(self, cli):
        base = "import sample_commands\nimport sample_parts\nsample_commands.train.train_steps = 1\n"
        text = base + "sample_commands.train.model = @sample_parts.Model()\nsample_parts.Layer.width = 3\n"
        result = cli("train", files={"run.gin": text}, base=False)
        check_error(result, "Python default of sample_parts.Model.layer")

    def test_overridden_reference_leaves_its_bindings_unused_but_right(self, cli):
        result = cli(
            "train", "--gin.OPTIMIZER=@sample_parts.Lion()", "--gin.Lion.learning_rate=@sample_parts.Constant()"
        )
        assert result.code == 0
        assert type(result.calls[0][1]["optimizer"]).__name__ == "Lion"

    def test_binding_of_what_was_already_overridden(self, cli):
        text = "import sample_parts\nOPTIMIZER = @sample_parts.Lion()\nsample_parts.Adam.betas = (0.5, 0.5)\n"
        text += "sample_parts.Lion.learning_rate = @sample_parts.Constant()\n"
        check_error(cli("train", files={"run.gin": text}), "sample_parts.Adam.betas (run.gin:3)")
        flags = ["--gin.Adam.betas=(0.5, 0.5)", "--gin.OPTIMIZER=None"]
        check_error(cli("train", *flags), "--gin.Adam.betas")
        check_error(cli("train", *reversed(flags)), "--gin.Adam.betas")

    def test_overridden_before_the_root_that_uses_it_is_read(self, cli):
        head, tail = BASE.split("sample_commands.train:", 1)
        head = head.replace("OPTIMIZER = @sample_parts.Adam()\n", "").replace("LEARNING_RATE = 0.5\n", "")
        tail = "".join(line for line in tail.splitlines(True) if "Adam" not in line and "Constant" not in line)
        files = {
            "adam.gin": "import sample_parts\nOPTIMIZER = @sample_parts.Adam()\nsample_parts.Adam.betas = (0.5, 0.5)\n",
            "none.gin": "OPTIMIZER = None\n",
            "root.gin": f"{head}sample_commands.train:{tail}",
        }
        result = cli("train", files=files, base=False)
        assert (result.code, result.err) == (0, "")

    def test_binding_of_another_command(self, cli):
        assert cli("eval").code == 0
        assert cli("train", "--gin.greedy.temperature=1").code == 0


class TestUnknownParameter:
    @pytest.mark.parametrize(
        ("flag", "parts"),
        [
            ("--gin.Data.bach_size=3", ["sample_parts.Data", "'bach_size'", "'batch_size'"]),
            ("--gin.greedy.temprature=3", ["'temprature'", "'temperature'"]),  # it takes **extra
            ("--gin.sample_commands.train.train_stesp=3", ["'train_stesp'", "'train_steps'"]),
            ("--gin.train.config_text='a'", ["config_text is set by the program"]),
        ],
    )
    def test_flag(self, cli, flag, parts):
        check_error(cli("train", flag), *parts)

    def test_file(self, cli):
        text = "import sample_parts\nsample_parts.Model:\n  scale = 1.0\n  nmae = 'x'\n"
        check_error(cli("train", files={"run.gin": text}), "run.gin:4", "'nmae'", "'name'")


class TestWrongType:
    @pytest.mark.parametrize(
        ("flag", "parts"),
        [
            ("--gin.TRAIN_STEPS='many'", ["train_steps (base.gin:13), from --gin.TRAIN_STEPS", "expected int"]),
            ("--gin.TRAIN_STEPS=1e3", ["write 1000"]),
            ("--gin.train/Data.batch_size=True", ["expected int, got True"]),
            ("--gin.train.model_dir=7", ["expected str", r"--gin.train.model_dir=\"7\""]),
            ("--gin.TASK_MODULES='tasks'", ["write ('tasks',)"]),
            ("--gin.Layer.kind='gatd'", ["'gated' or 'plain'", "did you mean 'gated'"]),
            ("--gin.MODEL=@sample_parts.Model", ["write @sample_parts.Model()"]),
            ("--gin.Model.layer=@sample_parts.Layer()", ["without ()"]),
            ("--gin.MODEL=%OPTIMIZER", ["expected sample_parts.Model, got a sample_parts.Adam"]),
            ("--gin.eval_data=None", ["nothing uses %eval_data"]),
        ],
    )
    def test_flag(self, cli, flag, parts):
        check_error(cli("train", flag), *parts)


class TestRequired:
    def test_of_this_command(self, cli):
        result = cli("train", "--gin.TRAIN_STEPS=%gin.REQUIRED", "--gin.train.model_dir=%gin.REQUIRED")
        names = "TRAIN_STEPS and sample_commands.train.model_dir"
        check_error(result, f"{names} are required by t5x_scale train: --gin.TRAIN_STEPS=… --gin.sample_commands.train")

    def test_of_another_command(self, cli):
        assert cli("eval", "--gin.TRAIN_STEPS=%gin.REQUIRED").code == 0
        assert cli("eval", "--gin.OPTIMIZER=%NOWHERE").code == 0

    def test_given_later(self, cli):
        result = cli("train", "--gin.TRAIN_STEPS=%gin.REQUIRED", "--gin.TRAIN_STEPS=3")
        assert result.calls[0][1]["train_steps"] == 3

    def test_parameters_without_default_and_binding(self, cli):
        result = cli("train", base=False)
        check_error(result, "needs sample_commands.train.model and sample_commands.train.train_steps", "--gin_file=")

    def test_in_one_scope_only(self, cli):
        text = BASE.replace("sample_parts.Data.task", "train/sample_parts.Data.task")
        check_error(cli("train", files={"base2.gin": text}, base=False), "needs train_eval/sample_parts.Data.task")


class TestDoubleBinding:
    def test_in_one_file(self, cli):
        text = "import sample_parts\nsample_parts.Layer.width = 3\nsample_parts.Layer:\n  width = 4\n"
        check_error(cli("train", files={"run.gin": text}), "run.gin:4", "bound twice", "line 2")

    def test_macro(self, cli):
        check_error(cli("train", files={"run.gin": "TRAIN_STEPS = 1\nTRAIN_STEPS = 1\n"}), "TRAIN_STEPS is bound twice")

    def test_later_file_and_flag_override(self, cli):
        result = cli("train", files={"one.gin": "TRAIN_STEPS = 1\n", "two.gin": "TRAIN_STEPS = 2\n"})
        assert result.calls[0][1]["train_steps"] == 2
        result = cli("train", "--gin.TRAIN_STEPS=3", files={"two.gin": "TRAIN_STEPS = 2\n"})
        assert result.calls[0][1]["train_steps"] == 3


class TestMadeFromItself:
    def test_macros(self, cli):
        check_error(cli("train", "--gin.TRAIN_STEPS=%A", "--gin.A=%TRAIN_STEPS"), "%TRAIN_STEPS -> %A -> %TRAIN_STEPS")

    def test_reference(self, cli):
        check_error(cli("train", "--gin.Constant.value=@sample_parts.Constant()"), "made from itself")


# What may be bound, each with a value that is right for it.
_RIGHT = {
    "TRAIN_STEPS": "3",
    "LEARNING_RATE": "0.25",
    "TASK_MODULES": "('a',)",
    "MODEL": "@sample_parts.Model()",
    "sample_commands.train.model_dir": "'x'",
    "train/sample_parts.Data.batch_size": "3",
    "train_eval/sample_parts.Data.batch_size": "3",
    "sample_parts.Adam.betas": "(0.5, 0.5)",
    "sample_commands.evaluate.split": "'x'",
}


@pytest.mark.parametrize("name", _RIGHT)
def test_the_right_names_are_right(cli, name):
    assert cli("train", f"--gin.{name}={_RIGHT[name]}").code == 0


@st.composite
def _typos(draw):
    """A name with one letter left out, doubled, changed, or exchanged with the next; and the name's value."""
    name = draw(st.sampled_from(sorted(_RIGHT)))
    places = [match.start() for match in re.finditer(r"\w", name)]
    place = draw(st.sampled_from(places))
    kind = draw(st.sampled_from(["drop", "double", "change", "swap"]))
    if kind == "swap":
        return name[:place] + name[place : place + 2][::-1] + name[place + 2 :], _RIGHT[name]
    letter = {"drop": "", "double": name[place] * 2, "change": draw(st.sampled_from("abzXQ"))}[kind]
    return name[:place] + letter + name[place + 1 :], _RIGHT[name]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(typo=_typos())
def test_every_typo_is_an_error(cli, typo):
    name, value = typo
    assume(name not in _RIGHT)
    result = cli("train", f"--gin.{name}={value}")
    assert result.code == 1, name
    assert not result.calls
    assert result.err.count("\n") == 1
