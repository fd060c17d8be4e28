import re

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data.inspection import OBJECTIVES, describe_examples, make_objective
from t5x_scale.data.vocabulary import load_vocabulary

BYTES = load_vocabulary("bytes")


def rows_of(text):
    """[{label: value}] of each row of the output."""
    rows = []
    for block in text.split("\n\n"):
        head, *lines = block.splitlines()
        pairs = (re.fullmatch(r"  (\S+(?: on| \d of \d+)?) *(?:  |$)\|?(.*?)\|?", line).groups() for line in lines)
        rows.append({"head": head, **dict(pairs)})
    return rows


def describe(store, name, count=4, length=64, **options):
    return rows_of(describe_examples(store, make_objective(name, BYTES), length, count, **options))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_shows_something(name, words, sums):
    store = sums if name == "supervised" else words
    for row in describe(store, name):
        assert row["head"].startswith("row ")
        assert row["targets"]
        assert ("denoiser" in row) == (name in ("span_corruption", "ul2", "ul2r"))


def test_the_denoiser_named_is_the_one_used(words):
    objective = make_objective("ul2", BYTES)
    lengths = {row["denoiser"]: row for row in objective.denoiser_lengths(128)}
    rows = describe(words, "ul2", count=60, length=128)
    assert len({row["denoiser"] for row in rows}) == 7
    for row in rows:
        expected = lengths[row["denoiser"]]
        assert row["inputs"].startswith(expected["mode"])
        sentinels = len(re.findall(r"<extra_id_\d+>", row["inputs"]))
        assert sentinels == expected["spans"] == len(re.findall(r"<extra_id_\d+>", row["targets"]))
        if sentinels:
            assert f"prefix {expected['inputs']}" in row["positions"]
            assert f"({expected['targets']} targets)" in row["loss on"]


def test_examples_of_a_divided_row_have_denoisers_of_their_own(words):
    objective = make_objective("ul2r", BYTES)
    divided = type(objective)(examples_per_row=2).with_vocabulary(BYTES)
    text = describe_examples(words, divided, 128, 30)
    labels = dict.fromkeys(re.findall(r"denoiser +(.*)", text))
    assert len(labels) == 4
    for block in re.split(r"  example \d of 2\n", text)[1:]:
        lengths = {row["denoiser"]: row for row in objective.denoiser_lengths(64)}
        label = re.search(r"denoiser +(.*)", block)[1]
        assert f"inputs     |{lengths[label]['mode']}" in block


def test_text_before_and_after_is_the_stores(words):
    for row in describe(words, "prefix_lm", count=6):
        document, first, last = map(int, re.search(r"document (\d+) \(tokens (\d+)-(\d+) of", row["head"]).groups())
        start, stop = words.document_span(document)
        joined = row["inputs"] + row["targets"]
        text = f"Document {document}." + " word" * (document % 80)
        assert joined.startswith(text[first : min(last + 1, stop - start - 1)])


def test_masked_diffusion_says_where(words):
    for row in describe(words, "masked_diffusion", count=3):
        masked = row["inputs"].count("<extra_id") + sum(int(n) - 1 for n in re.findall(r">×(\d+)", row["inputs"]))
        assert f"({masked} targets" in row["loss on"]


def test_supervised_examples_are_whole_documents(sums):
    text = describe_examples(sums, make_objective("supervised", BYTES), 64, 1)
    found = re.findall(r"inputs +\|(\S+)\|\n  targets +\|(\d+)\[eod\]\|", text)
    assert len(found) > 5
    for inputs, targets in found:
        number = int(inputs.removeprefix("[eod]").split("+")[0])
        assert inputs.endswith(f"{number}+{number}=")
        assert int(targets) == 2 * number


def test_packed_documents(words):
    text = describe_examples(words, make_objective("causal_lm", BYTES), 512, 1, packing="documents")
    documents = re.findall(r"Document (\d+)\.", text)
    assert len(documents) > 1
    assert len(np.unique(documents)) == text.count("  example ")


def test_what_does_not_suit(words):
    with pytest.raises(UserError, match=r"no objective 'ul2rr' \(did you mean 'ul2r'"):
        make_objective("ul2rr", BYTES)
    with pytest.raises(UserError, match=r"no packing 'window' \(did you mean 'windows'"):
        describe(words, "causal_lm", packing="window")
    with pytest.raises(UserError, match="holds plain documents"):
        describe(words, "supervised")
