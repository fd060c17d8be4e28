"""Objectives and packings as gin files: each makes what its name says, in a run that knows nothing of it."""

import pathlib
import re
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from gin_files import PRETRAIN, load_files, names

from t5x_scale.config.load import make_arguments
from t5x_scale.data.objectives import CausalLm, SpanFromBothSides, SpanFromLeft, Supervised, Ul2r
from t5x_scale.data.rows.delivery import Windows
from t5x_scale.data.rows.packed_delivery import PackDocuments
from t5x_scale.data.vocabulary import load_vocabulary

BASE = ("gin/models/palm/tiny.gin", "gin/optim/adamw.gin", PRETRAIN, "gin/hardware/cpu_1.gin")


def load_data(*files):
    return make_arguments(load_files("train", (*BASE, *files)))["data"]


# They only ask: OBJECTIVE stays what it is.
HELD_OUT_SPANS = "gin/objectives/held_out_spans.gin"
HELD_OUT_SPANS_IN_PLACE = "gin/objectives/held_out_spans_in_place.gin"


@pytest.mark.parametrize(
    "name", [name for name in names("objectives") if name not in (HELD_OUT_SPANS, HELD_OUT_SPANS_IN_PLACE)]
)
def test_objective(name):
    data = load_data(name)
    kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(data.objective).__name__).lower()
    stem = pathlib.Path(name).stem
    assert kind == {"fim": "fill_in_the_middle"}.get(stem, stem.removesuffix("_in_place"))
    assert data.objective.has_positions == stem.endswith("_in_place")
    objective = data.objective.with_vocabulary(load_vocabulary("stdlib_8k"))
    # Serves the sequence length that pretrain.gin has, with the vocabulary that ships.
    if isinstance(data.packing, PackDocuments):
        assert objective.longest_piece(data.sequence_length) > 0
    else:
        assert objective.raw_length(data.sequence_length) <= data.sequence_length + 1
    assert isinstance(data.packing, PackDocuments) == isinstance(data.objective, Supervised)


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        ("documents", PackDocuments()),
        ("windows", Windows()),
        ("windows_apart", Windows(attend_across_documents=False)),
    ],
)
def test_packing(name, packing):
    assert load_data(f"gin/packing/{name}.gin").packing == packing
    assert load_data("gin/packing/windows_apart.gin", f"gin/packing/{name}.gin").packing == packing


def test_every_packing_is_tried():
    assert {pathlib.Path(name).stem for name in names("packing")} == {"documents", "windows", "windows_apart"}


def test_held_out_spans_are_asked_for_in_rows_of_the_same_text():
    data = load_data("gin/objectives/ul2r.gin", HELD_OUT_SPANS)
    assert isinstance(data.objective, Ul2r)
    causal, left, both = (one.with_vocabulary(load_vocabulary("stdlib_8k")) for one in data.eval_objectives)
    assert (type(causal), type(left), type(both)) == (CausalLm, SpanFromLeft, SpanFromBothSides)
    assert (left.span_length, left.spans, left.mode) == (both.span_length, both.spans, both.mode)
    assert left.raw_length(256) == both.raw_length(256)


def test_spans_in_place_are_asked_for_in_place():
    data = load_data("gin/objectives/ul2r_in_place.gin", HELD_OUT_SPANS_IN_PLACE)
    assert [objective.has_positions for objective in (data.objective, *data.eval_objectives)] == [
        True,
        False,
        False,
        True,
    ]


def test_ul2r_logs_the_causal_loss_too():
    data = load_data("gin/objectives/ul2r.gin")
    assert data.eval_objectives == (CausalLm(),)
    data = load_data("gin/objectives/ul2r.gin", "gin/objectives/causal_lm.gin")
    assert (data.objective, data.eval_objectives) == (CausalLm(), ())
