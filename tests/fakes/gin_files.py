"""Reads the gin files of the repository as `t5x_scale train` does, strictly, without running anything."""

from __future__ import annotations

import pathlib
import re

from t5x_scale.commands import COMMANDS
from t5x_scale.config.load import Setting, load, make_arguments
from t5x_scale.program import Program

ROOT = pathlib.Path(__file__).resolve().parents[2]

# What a run file leaves to the user, as gin text.
_USERS = {
    "BATCH_SIZE": "8",
    "MIXTURE_OR_TASK_NAME": "'a_task'",
    "MODEL_DIR": "'a_directory'",
    "TRAIN_STEPS": "100",
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


def load_program(
    model: str,
    *,
    optimizer: str = "gin/optim/palm_adafactor.gin",
    run: str = "gin/runs/pretrain.gin",
    hardware: str = "gin/hardware/cpu_1.gin",
    more: tuple[str, ...] = (),
    **settings: object,
) -> Program:
    """The program of these files, each in its usual place; `settings` are further macros or `class_name__field`."""
    files = [model, optimizer, run, hardware, *more]
    required = re.findall(r"^(\w+) = %gin.REQUIRED", text_of(run), re.MULTILINE)
    values = {name: _USERS[name] for name in required}
    values |= {name.replace("__", "."): repr(value) for name, value in settings.items()}
    flags = [Setting(name, value, f"--gin.{name}") for name, value in values.items()]
    return make_arguments(load("train", COMMANDS, files=files, settings=flags, search_paths=[str(ROOT)]))["program"]
