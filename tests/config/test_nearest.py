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


@pytest.mark.parametrize(
    ("name", "choice"), [("v5p_63", "v5p_64"), ("v5p_65", "v5p_64"), ("v5p_130", "v5p_128"), ("v5e_255", "v5e_256")]
)
def test_numbers_are_near_as_they_are_in_size(name, choice):
    known = ["v5p_64", "v5p_128", "v5p_512", "v5e_16", "v5e_256", "v4_64", "v4_2x3072"]
    assert nearest(f"gin/hardware/{name}.gin", [f"gin/hardware/{one}.gin" for one in known])[0].count(choice) == 1
    assert nearest("v5p_0", ["v5p_0", "v5p_00"]) == ["v5p_00"]


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("palm/9b", "palm/8b"),
        ("palm/530b", "palm/540b"),
        ("gpt3/340m", "gpt3/350m"),
        ("gpt3/1.2b", "gpt3/1.3b"),
        ("gpt3/12b", "gpt3/13b"),
        ("gpt3/1300m", "gpt3/1.3b"),
        ("gpt2/350m", "gpt2/355m"),
        ("pal/8b", "palm/8b"),
    ],
)
def test_sizes_are_near_as_they_are_in_size(name, choice):
    known = ["palm/palm", "palm/2m", "palm/8b", "palm/62b", "palm/540b", "gemma2/9b", "gpt2/355m", "gpt3/gpt3"]
    known += ["gpt3/350m", "gpt3/1.3b", "gpt3/13b"]
    known = [f"gin/models/{one}.gin" for one in known]
    assert nearest(f"gin/models/{name}.gin", known) == [f"gin/models/{choice}.gin"]
    assert nearest("gin/models/palm/350m.gin", known)[0] == "gin/models/palm/8b.gin"


def test_text():
    assert hint("trian", ["train", "eval"]) == " (did you mean 'train'?)"
