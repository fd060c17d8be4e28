"""What a command receives."""

import pathlib
import sys

import pytest
import sample_parts
from test_strict import check_error

from t5x_scale.config.load import load, make_arguments
from t5x_scale.main import main

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_instances_are_of_the_very_classes(cli):
    arguments = cli("train").calls[0][1]
    assert type(arguments["model"]) is sample_parts.Model
    assert isinstance(arguments["optimizer"], sample_parts.Adam)
    layer = arguments["model"].make_layer()
    assert type(layer) is sample_parts.Layer
    assert layer == sample_parts.Layer(width=16)
    assert issubclass(arguments["model"].layer, sample_parts.Layer)


def test_scoped_reference_makes_the_very_class(cli):
    result = cli("train", "--gin.Model.layer=@a/sample_parts.Layer", "--gin.a/Layer.width=3")
    assert type(result.calls[0][1]["model"].make_layer()) is sample_parts.Layer


def test_flags_of_a_command(cli):
    result = cli("train", "--prompt=Once upon", "--prompt", "a 'time'", "--steps=75", "--directory=gs://x/y z")
    arguments = result.calls[0][1]
    assert arguments["prompts"] == ("Once upon", "a 'time'")
    assert arguments["model_dir"] == "gs://x/y z"
    assert result.code == 75


def test_user_error_while_building(cli):
    check_error(cli("train", "--gin.Model.scale=-1"), "t5x_scale: error: scale must not be negative\n")


def test_user_error_of_the_command(cli):
    result = cli("fail", base=False)
    assert (result.code, result.err) == (1, "t5x_scale: error: the disk is full\n")


def test_user_error_while_the_command_builds(cli):
    # gin adds lines of its own to whatever passes through a reference.
    text = "import sample_commands\nimport sample_parts\nsample_commands.build.make = @sample_parts.Model\n"
    result = cli("build", "--gin.Model.scale=-1", files={"a.gin": text}, base=False)
    assert (result.code, result.err) == (1, "t5x_scale: error: scale must not be negative\n")


def test_unexpected_errors_pass_through(cli):
    with pytest.raises(RuntimeError, match="unexpected"):
        cli("fail", "--gin.sample_commands.fail.kind='bug'", base=False)


class TestModuleImport:
    def test_appended(self, cli):
        result = cli("train", "--module_import=my_tasks", "--module_import=more.tasks")
        assert result.calls[0][1]["data"].modules == ("builtin_tasks", "my_tasks", "more.tasks")
        assert "my_tasks" not in sys.modules

    def test_after_overrides(self, cli):
        result = cli("train", "--module_import=my_tasks", "--gin.TASK_MODULES=('other',)")
        assert result.calls[0][1]["data"].modules == ("other", "my_tasks")

    def test_where_the_macro_is_used_but_not_defined(self, cli):
        text = "import sample_commands\nimport sample_parts\nsample_commands.train:\n  model = @sample_parts.Model()\n"
        text += "  train_steps = 1\n  data = @sample_parts.Data()\nsample_parts.Data:\n  task = 'a'\n"
        result = cli("train", "--module_import=mine", files={"a.gin": text + "  modules = %TASK_MODULES\n"}, base=False)
        assert result.calls[0][1]["data"].modules == ("mine",)
        result = cli("train", "--module_import=mine", files={"a.gin": text}, base=False)
        check_error(result, "TASK_MODULES (--module_import=mine)", "nothing uses %TASK_MODULES")


def test_singleton(cli):
    text = "import sample_commands\nimport sample_parts\nsample_parts.Data.task = 'x'\n"
    text += "sample_commands.train.data = @shared/gin.singleton()\n"
    text += "sample_commands.train.eval_data = @shared/gin.singleton()\n"
    text += "shared/gin.singleton.constructor = @sample_parts.Data\nshared/sample_parts.Data.batch_size = 2\n"
    arguments = cli("train", files={"a.gin": text}).calls[0][1]
    assert arguments["data"] is arguments["eval_data"]
    assert arguments["data"].batch_size == 2


_PACKAGE = """
import dataclasses
@dataclasses.dataclass(frozen=True)
class Program:
    seed: int = 0
def train(program: Program, train_steps: int, model_dir: str = ""):
    assert type(program) is Program
    return train_steps
"""


@pytest.mark.parametrize("name", ["train", "train.train", "commands.train.train", "sample_house.commands.train.train"])
def test_function_and_module_of_one_name(tmp_path, monkeypatch, name):
    house = tmp_path / "sample_house" / "commands"
    house.mkdir(parents=True)
    (tmp_path / "sample_house" / "__init__.py").write_text("")
    (house / "__init__.py").write_text("")
    (house / "train.py").write_text(_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = "from sample_house.commands import train\ntrain.train.program = @train.Program()\ntrain.Program.seed = 1\n"
    (tmp_path / "a.gin").write_text(f"{text}train.train.train_steps = 1\n")
    words = ["train", "--gin_file=a.gin", f"--gin.{name}.train_steps=7"]
    assert main(words, {"train": "sample_house.commands.train:train"}, {}, {}) == 7
    words.append("--gin.train.train.model_dir=None")
    assert main(words, {"train": "sample_house.commands.train:train"}, {}, {}) == 1


@pytest.mark.parametrize("path", sorted(ROOT.glob("gin/optim/*.gin")), ids=lambda path: path.stem)
def test_optimisers_of_the_repository(tmp_path, monkeypatch, path):
    (tmp_path / "sample_optim.py").write_text(
        "def run(optimizer, train_steps: int):\n    return optimizer.learning_rate"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = "import sample_optim\nsample_optim.run.optimizer = %OPTIMIZER\nsample_optim.run.train_steps = %TRAIN_STEPS\n"
    (tmp_path / "a.gin").write_text(f"{text}TRAIN_STEPS = 20000\n")
    loaded = load("run", {"run": "sample_optim:run"}, [str(tmp_path / "a.gin"), str(path)])
    assert callable(make_arguments(loaded)["optimizer"].learning_rate)


def test_what_is_not_asked_for_is_not_made(tmp_path, monkeypatch):
    (tmp_path / "sample_heavy.py").write_text(
        "def make_model():\n    raise RuntimeError('made')\n\ndef run(model, name: str):\n    return name"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = "import sample_heavy\nsample_heavy.run.model = @sample_heavy.make_model()\nsample_heavy.run.name = 'a'\n"
    (tmp_path / "a.gin").write_text(text)
    loaded = load("run", {"run": "sample_heavy:run"}, [str(tmp_path / "a.gin")])
    assert make_arguments(loaded, lambda name: None) == {"name": "a"}
    with pytest.raises(RuntimeError, match="made"):
        make_arguments(loaded)


def test_linen_modules_through_scan(cli, tmp_path, monkeypatch):
    (tmp_path / "sample_linen.py").write_text(
        """
from collections.abc import Callable
import flax.linen as nn
import jax.numpy as jnp

class Attention(nn.Module):
    heads: int = 1
    @nn.compact
    def __call__(self, x):
        return x + self.param("w", nn.initializers.ones, (self.heads,)).sum()

class Block(nn.Module):
    attention: Callable[..., nn.Module] = Attention
    @nn.compact
    def __call__(self, x, _):
        return self.attention(name="attention")(x), None

class Stack(nn.Module):
    block: type[nn.Module] = Block
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(self.block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return scan(name="layers")(x, None)[0]

def run(stack: nn.Module):
    import jax
    variables = stack.init(jax.random.key(0), jnp.ones(2))
    assert type(stack) is Stack
    assert variables["params"]["layers"]["attention"]["w"].shape == (3, 5), jax.tree.map(jnp.shape, variables)
    return 75
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gin").write_text(
        "import sample_linen\nsample_linen.run.stack = @sample_linen.Stack()\n"
        "sample_linen.Stack.block = @sample_linen.Block\nsample_linen.Block.attention = @sample_linen.Attention\n"
        "sample_linen.Attention.heads = 5\n"
    )
    assert main(["run", "--gin_file=a.gin"], {"run": "sample_linen:run"}, {}, {}) == 75
    assert main(["run", "--gin_file=a.gin", "--gin.Attention.parent=5"], {"run": "sample_linen:run"}, {}, {}) == 1
