"""Generated arithmetic: right results, the same problems in every base, nothing of one split in the other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.data import seqio_source
from tasks import arithmetic

seqio = seqio_source.seqio
NAME = "arithmetic_test"


@pytest.fixture
def register():
    names = []

    def add(**options):
        names.append(f"{NAME}_{len(names)}")
        return arithmetic.register_arithmetic(names[-1], **options)

    yield add
    for name in names:
        seqio.TaskRegistry.remove(name)


def read(task, split):
    dataset = task.get_dataset(None, split, shuffle=False)
    return [(row["inputs"].decode(), row["targets"].decode()) for row in dataset.as_numpy_iterator()]


def number(text):
    return int(text.replace(" ", ""))


@given(value=st.integers(0, 10**40), base=st.sampled_from([10, 100, 1000]))
def test_digits_are_positional(value, base):
    chunks = arithmetic.digits(value, base).split(" ")
    assert {len(chunk) for chunk in chunks} == {len(str(base)) - 1}
    total = 0
    for chunk in chunks:
        total = total * base + int(chunk)
    assert total == value
    assert len(chunks) == 1 or int(chunks[0]) > 0


def test_digits_as_documented():
    assert [arithmetic.digits(1234567, base) for base in (10, 100, 1000)] == [
        "1 2 3 4 5 6 7",
        "01 23 45 67",
        "001 234 567",
    ]
    assert [arithmetic.digits(0, base) for base in (10, 100, 1000)] == ["0", "00", "000"]


@settings(max_examples=50)
@given(index=st.integers(0, 10**9), split=st.sampled_from(["train", "validation"]), figures=st.integers(2, 60))
def test_problem_is_right_and_belongs_to_its_split(index, split, figures):
    first, operation, second, result = arithmetic.problem(split, index, max_figures=figures)
    assert {"+": first + second, "-": first - second, "*": first * second}[operation] == result >= 0
    assert max(first, second) < 10**figures
    assert arithmetic.split_of(first, second) == arithmetic.split_of(second, first) == split
    assert arithmetic.problem(split, index, max_figures=figures) == (first, operation, second, result)


def test_problems_are_frozen():
    """Another order or another split would train on what an older run was measured on."""
    assert [arithmetic.problem("train", index) for index in range(3)] == [
        (1700, "*", 9, 15300),
        (25, "-", 19, 6),
        (25006, "-", 72, 24934),
    ]
    assert [arithmetic.problem("validation", index) for index in range(2)] == [
        (4503, "*", 8834, 39779502),
        (123877, "-", 2928, 120949),
    ]
    held_out = [arithmetic.split_of(first, 7) for first in range(1000)].count("validation")
    assert held_out == 98


def test_the_same_questions_in_every_base(register):
    examples = {"train": 200, "validation": 50}
    tasks = [register(base=base, examples=examples, max_figures=5) for base in (10, 100, 1000)]
    for split in examples:
        readings = [read(task, split) for task in tasks]
        assert [len(rows) for rows in readings] == [examples[split]] * 3
        plain = [[(inputs.replace(" ", ""), targets) for inputs, targets in rows] for rows in readings]
        numbers = [[number(targets) for _, targets in rows] for rows in plain]
        assert numbers[0] == numbers[1] == numbers[2]
        for inputs, targets in readings[1]:
            question, operation, second, sign = split_question(inputs)
            assert (sign, targets[0]) == ("=", " ")
            expected = {"+": question + second, "-": question - second, "*": question * second}[operation]
            assert number(targets) == expected
    assert not {inputs for inputs, _ in read(tasks[0], "train")} & {
        inputs for inputs, _ in read(tasks[0], "validation")
    }
    assert read(tasks[0], "train") == read(tasks[0], "train")


def split_question(inputs):
    operation = next(sign for sign in "+-*" if f" {sign} " in inputs)
    first, rest = inputs.split(f" {operation} ")
    second, sign = rest.rsplit(" ", 1)
    return number(first), operation, number(second), sign


def test_only_the_operations_asked_for(register):
    rows = read(register(operations=["-"], examples={"train": 100}, max_figures=3), "train")
    assert all(" - " in inputs for inputs, _ in rows)
    assert len({len(inputs) for inputs, _ in rows}) >= 5


def test_counts_are_known_to_mixtures():
    assert seqio.mixing_rate_num_examples(seqio.TaskRegistry.get("arithmetic_base100")) == 100_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": 2}, "base must be one of 10, 100, 1000"),
        ({"operations": ["/"]}, r"operations must be some of \+, -, \*"),
        ({"operations": []}, "operations must be some of"),
        ({"examples": {"test": 5}}, "splits are train and validation"),
        ({"max_figures": 0}, "max_figures is 1 to 60"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        arithmetic.register_arithmetic(NAME, **options)
    assert NAME not in seqio.TaskRegistry.names()
