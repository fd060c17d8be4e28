"""Reads the gin files of the repository as `t5x_scale train` does, strictly, without running anything."""

from __future__ import annotations

import functools
import pathlib
import re

from t5x_scale.commands import COMMANDS
from t5x_scale.config.load import Loaded, Setting, load, make_arguments
from t5x_scale.models.interface import DecoderModel
from t5x_scale.program import Program

ROOT = pathlib.Path(__file__).resolve().parents[2]
PRETRAIN = "gin/runs/pretrain.gin"

# What a run file leaves to the user, as gin text.
_USERS = {
    "BATCH_SIZE": "8",
    "INITIAL_CHECKPOINT_PATH": "'a_checkpoint'",
    "MIXTURE_OR_TASK_NAME": "'a_task'",
    "MIXTURE_RATES": "{'new': 0.75, 'old': 0.25}",
    "MODEL_DIR": "'a_directory'",
    "TRAIN_STEPS": "100000",
    "VOCABULARY": "'bytes'",
}


def names(folder: str) -> list[str]:
    """The files below gin/<folder>, as `gin/…` paths."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "gin" / folder).rglob("*.gin"))


def is_family(name: str) -> bool:
    """Whether a model file is one that sizes include: it is called like its folder."""
    path = pathlib.Path(name)
    return path.stem == path.parent.name


def text_of(name: str) -> str:
    """The file with everything it includes."""
    text = (ROOT / name).read_text()
    return "".join(text_of(included) for included in re.findall(r'^include "(.+)"', text, re.MULTILINE)) + text


def commands_of(name: str) -> list[str]:
    """The commands whose parameters a run file binds."""
    targets = {command: target.rsplit(".", 1)[1].replace(":", ".") for command, target in COMMANDS.items()}
    return [command for command, target in targets.items() if re.search(rf"^{target}\b", text_of(name), re.MULTILINE)]


def load_files(command: str, files: tuple[str, ...], **settings: object) -> Loaded:
    """Reads and checks `files` for a command; `settings` are further macros or `class_name__field`."""
    required = re.findall(r"^(\w+) = %gin.REQUIRED", "".join(map(text_of, files)), re.MULTILINE)
    values = {name: _USERS[name] for name in required}
    values |= {name.replace("__", "."): repr(value) for name, value in settings.items()}
    flags = [Setting(name, value, f"--gin.{name}") for name, value in values.items()]
    return load(command, COMMANDS, files=files, settings=flags, search_paths=[str(ROOT)])


def load_program(
    model: str,
    *,
    optimizer: str = "gin/optim/palm_adafactor.gin",
    hardware: str = "gin/hardware/cpu_1.gin",
    more: tuple[str, ...] = (),
    **settings: object,
) -> Program:
    """The program that these files make for `train`. It is good until the next one is read: gin holds one at a time."""
    loaded = load_files("train", (model, optimizer, PRETRAIN, hardware, *more), **settings)
    return make_arguments(loaded)["program"]


@functools.cache
def load_model(name: str) -> DecoderModel:
    """The model of a file, for its shapes and axes only, which are worked out here, once."""
    # On a machine that sets no dtype.
    model = load_program(name, hardware="gin/hardware/v4_64.gin").model
    model.abstract_params()
    return model
