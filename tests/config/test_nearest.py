"""The nearest right name."""

import pytest

from t5x_scale.config.nearest import hint, nearest

_MACROS = ["MODEL", "OPTIMIZER", "TRAIN_STEPS", "BATCH_SIZE", "MODEL_DIR", "MIXTURE_OR_TASK_NAME", "TASK_MODULES"]


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("STESP", "TRAIN_STEPS"),
        ("STEPS", "TRAIN_STEPS"),
        ("TRAIN_STEP", "TRAIN_STEPS"),
        ("MODLE", "MODEL"),
        ("model_dir", "MODEL_DIR"),
        ("BACH", "BATCH_SIZE"),
        ("MIXTURE_NAME", "MIXTURE_OR_TASK_NAME"),
    ],
)
def test_macros(name, choice):
    assert nearest(name, _MACROS)[0] == choice


def test_nothing_near():
    assert hint("ZEBRA", _MACROS) == ""
    assert hint("parts.Lion", ["parts.Model", "parts.Layer"]) == ""


def test_text():
    assert hint("trian", ["train", "eval"]) == " (did you mean 'train'?)"
