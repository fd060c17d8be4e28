"""Supervised tasks: inputs and targets as text, instructions in several phrasings, GSM8K, and their metrics."""

import collections
import decimal
import json

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data import seqio_source
from t5x_scale.data.seqio_source import iterate_documents
from t5x_scale.data.vocabulary import load_vocabulary
from tasks.common import add_supervised_task
from tasks.gsm8k import register_gsm8k
from tasks.instructions import register_instructions
from tasks.json_lines import Policy
from tasks.metrics import exact_match, exact_match_number, final_number
from tasks.mixtures import register_proportional_mixture

seqio, tf = seqio_source.seqio, seqio_source.tf
BYTES = load_vocabulary("bytes")
NAME = "supervised_test_task"
MIXTURE = "supervised_test_mixture"


@pytest.fixture(autouse=True)
def forget():
    yield
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        for name in [name for name in registry.names() if name.startswith("supervised_test")]:
            registry.remove(name)


def write_lines(path, objects):
    path.write_text("".join(json.dumps(value) + "\n" for value in objects))
    return str(path)


def read(name, split="train"):
    dataset = seqio.TaskRegistry.get(name).get_dataset(None, split, shuffle=False)
    return [(row["inputs"].decode(), row["targets"].decode()) for row in dataset.as_numpy_iterator()]


def function_source(rows, **options):
    def make(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices(rows)

    return seqio.FunctionDataSource(make, splits=["train"], **options)


def test_text_features_are_tokenised_by_the_runs_vocabulary():
    source = function_source({"country": ["Chile", "Peru"], "capital": [" Santiago", " Lima"]})
    add_supervised_task(NAME, source, inputs_key="country", targets_key="capital")
    assert read(NAME) == [("Chile", " Santiago"), ("Peru", " Lima")]
    documents = [BYTES.decode(ids) for ids in iterate_documents(NAME, "train", BYTES)]
    assert documents == ["Chile Santiago", "Peru Lima"]


def test_a_task_that_tokenises_itself_still_works():
    vocabulary = seqio_source.SeqioVocabulary(load_vocabulary("stdlib_8k"))
    seqio.TaskRegistry.add(
        NAME,
        source=function_source({"inputs": ["def f("], "targets": ["x): return x"]}),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={
            "inputs": seqio.Feature(vocabulary, add_eos=False),
            "targets": seqio.Feature(vocabulary, add_eos=True),
        },
    )
    (ids,) = iterate_documents(NAME, "train", load_vocabulary("stdlib_8k"))
    wrapped = load_vocabulary("stdlib_8k")
    np.testing.assert_array_equal(ids, [*wrapped.encode("def f("), *wrapped.encode("x): return x")])


class TestInstructions:
    TEMPLATES = (
        ("{premise} So {hypothesis}?", " {label}"),
        ("Given {{this}}: {premise}. {hypothesis}?", " Answer: {label}"),
        ("{hypothesis} if {premise}?", " {label}"),
    )

    def rows(self, count=300):
        return [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": i % 2, "other": None} for i in range(count)]

    def register(self, tmp_path, rows, **options):
        options = {"choices": {"label": ["yes", "no"]}} | options
        return register_instructions(NAME, write_lines(tmp_path / "nli.jsonl", rows), self.TEMPLATES, **options)

    def phrasing(self, inputs, targets, row):
        word = ["yes", "no"][row["label"]]
        p, h = row["premise"], row["hypothesis"]
        expected = [
            (f"{p} So {h}?", f" {word}"),
            (f"Given {{this}}: {p}. {h}?", f" Answer: {word}"),
            (f"{h} if {p}?", f" {word}"),
        ]
        return expected.index((inputs, targets))

    def test_every_example_in_one_of_the_phrasings(self, tmp_path):
        rows = self.rows()
        self.register(tmp_path, rows)
        picked = [self.phrasing(*read_row, row) for read_row, row in zip(read(NAME), rows, strict=True)]
        assert all(60 < count < 140 for count in collections.Counter(picked).values())
        assert len(set(picked)) == 3

    def test_the_phrasing_follows_the_example_not_its_place(self, tmp_path):
        rows = self.rows(40)
        self.register(tmp_path, rows)
        forwards = read(NAME)
        write_lines(tmp_path / "nli.jsonl", rows[::-1])
        assert read(NAME) == forwards[::-1]
        # Other words for the labels pick no other template.
        seqio.TaskRegistry.remove(NAME)
        self.register(tmp_path, rows, choices={"label": {"0": "ja", "1": "nein"}})
        words = [(a, b.replace("nein", "no").replace("ja", "yes")) for a, b in read(NAME)]
        assert words == forwards

    def test_any_seqio_source(self):
        source = function_source({"text": ["good", "bad"], "label": np.array([1, 0])}, num_input_examples={"train": 2})
        register_instructions(NAME, source, [("{text}:", " {label}")], choices={"label": ("minus", "plus")})
        assert read(NAME) == [("good:", " plus"), ("bad:", " minus")]
        (metric,) = seqio.TaskRegistry.get(NAME).metric_fns
        assert metric(["a", "b"], ["a ", "c"]) == {"exact_match": 50.0}

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"premise": "p", "hypothesis": "h"}, "nli.jsonl, line 2: no text in field 'label'"),
            ({"premise": "p", "hypothesis": "h", "label": 2}, "no choice for this value of the field label:"),
        ],
    )
    def test_bad_row(self, tmp_path, row, message):
        self.register(tmp_path, [*self.rows(1), row])
        with pytest.raises(UserError, match=message) as caught:
            list(iterate_documents(NAME, "train", BYTES))
        assert "\n" not in str(caught.value)

    def test_bad_row_may_be_left_out(self, tmp_path, caplog):
        self.register(tmp_path, [*self.rows(1), {"premise": "p"}], policy=Policy(bad_line="skip"))
        assert len(read(NAME)) == 1
        assert "1 documents taken, left out: 1 lines without text in 'hypothesis'" in caplog.text
        assert "nli.jsonl, line 2" in caplog.text

    def test_source_without_the_field(self):
        register_instructions(NAME, function_source({"text": ["x"]}), [("{body}", "")])
        with pytest.raises(UserError, match=r"the templates need the field 'body'; the source has \['text'\]"):
            next(iterate_documents(NAME, "train", BYTES))

    @pytest.mark.parametrize(
        ("templates", "options", "message"),
        [
            ([], {}, "at least one template"),
            ([("{a!r}", "")], {}, "names of fields in braces and no more"),
            ([("{}", "")], {}, "names of fields in braces and no more"),
            ([("{a}", "")], {"choices": {"b": ["x"]}}, "choices for 'b', which no template mentions"),
        ],
    )
    def test_bad_templates(self, templates, options, message):
        with pytest.raises(ValueError, match=message):
            register_instructions(NAME, "x.jsonl", templates, **options)


class TestGsm8k:
    ROWS = (
        {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 24"},
        {"question": "And then?", "answer": "<<1000+500=1500>>\n#### 1,500"},
    )

    def test_question_and_solution(self, tmp_path):
        files = {"train": write_lines(tmp_path / "a.jsonl", self.ROWS[:1])}
        register_gsm8k(NAME, files | {"validation": write_lines(tmp_path / "b.jsonl", self.ROWS[1:])})
        assert read(NAME) == [("Question: How many?\nAnswer:", " 48/2 = 24 clips.\n#### 24")]
        assert read(NAME, "validation") == [("Question: And then?\nAnswer:", " \n#### 1,500")]
        assert seqio.TaskRegistry.get(NAME).metric_fns == [exact_match_number]

    def test_prompt_and_calculator(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", self.ROWS[:1])
        register_gsm8k(NAME, path, prompt="Q {question} A", calculator=True)
        assert read(NAME) == [("Q How many? A", " 48/2 = <<48/2=24>>24 clips.\n#### 24")]
        with pytest.raises(ValueError, match="the prompt must hold"):
            register_gsm8k("supervised_test_other", path, prompt="Q {answer}")

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("7 and 8\n#### 1,234", "1234"),
            ("#### $18.00 in all, of 20", "18"),
            ("#### -5", "-5"),
            ("The answer is 12.", "12"),
            ("from 3 to .5", "0.5"),
            ("7\n#### none", None),
            ("nothing", None),
        ],
    )
    def test_final_number(self, text, value):
        found = final_number(text)
        assert found is None if value is None else found == decimal.Decimal(value)

    def test_metrics(self):
        targets = ["#### 24", "so #### 1,500", "#### 3"]
        assert exact_match_number(targets, ["#### 24.0", "the answer is 1500", "x"]) == {
            "exact_match": pytest.approx(200 / 3)
        }
        with pytest.raises(ValueError, match="the target has no number"):
            exact_match_number(["none"], ["1"])
        assert exact_match(["1 2", "3"], [" 1 2\n", "4"]) == {"exact_match": 50.0}


COUNTS = {"supervised_test_a": 100, "supervised_test_b": 10_000, "supervised_test_c": 1_000_000}


class TestProportionalMixture:
    @pytest.fixture(autouse=True)
    def tasks(self):
        for name, count in COUNTS.items():
            rows = {"inputs": ["x"], "targets": ["y"]}
            add_supervised_task(name, function_source(rows, num_input_examples={"train": count}))

    @pytest.mark.parametrize("counts", [None, COUNTS], ids=["counted", "given"])
    @pytest.mark.parametrize(
        ("options", "rates"),
        [
            ({}, [100, 10_000, 1_000_000]),
            ({"maximum": 3000}, [100, 3000, 3000]),
            ({"temperature": 2}, [10, 100, 1000]),
            ({"maximum": 10_000, "temperature": 2}, [10, 100, 100]),
        ],
    )
    def test_rates(self, options, rates, counts):
        mixture = register_proportional_mixture(MIXTURE, list(COUNTS), counts=counts, **options)
        assert [mixture.get_rate(task) for task in mixture.tasks] == pytest.approx(rates)
        shares = seqio_source.task_or_mixture_names(MIXTURE)
        assert [shares[name] for name in COUNTS] == pytest.approx([rate / sum(rates) for rate in rates])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temperature": 0}, "must be positive"),
            ({"maximum": 0}, "must be positive"),
            ({"counts": {"supervised_test_a": 1}}, "do not name the same: supervised_test_b, supervised_test_c"),
        ],
    )
    def test_bad_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            register_proportional_mixture(MIXTURE, list(COUNTS), **options)
