"""The texts of the sweep demonstration: people of known information, and source code of a known size."""

import itertools

import pytest

from tasks import people_text

seqio = pytest.importorskip("seqio")


def test_people_are_sixteen_tokens_of_bytes_and_different():
    texts = list(people_text.iterate_people(500))
    assert {len(text.encode()) + 1 for text in texts} == {people_text.TOKENS_A_PERSON} == {16}
    assert len({text.partition(":")[0] for text in texts}) == 500
    assert texts == list(itertools.islice(people_text.iterate_people(900), 500))
    assert texts != list(people_text.iterate_people(500, seed=1))


def test_the_bits_of_a_person():
    assert len(set(people_text.SYLLABLES)) == 64
    assert people_text.VALUE_BITS == 24
    assert people_text.NAMES == 2**18


def test_little_code_is_the_beginning_of_more_and_has_the_usual_validation():
    from tasks import stdlib, sweep_demo

    little, more = ("".join(sweep_demo.read_first(size)) for size in (12, 50))
    assert 0.95 * 12_000 < len(little.encode()) <= 12_100
    assert more.startswith(little)
    assert next(sweep_demo.read_validation()) == next(
        stdlib.read_code(file) for path, file in stdlib.list_files() if stdlib.split_of(path) == "validation"
    )
    assert {f"stdlib_code_{size}k" for size in sweep_demo.KILOBYTES} <= set(seqio.TaskRegistry.names())
    assert {f"people_{count}" for count in sweep_demo.PEOPLE} <= set(seqio.TaskRegistry.names())
