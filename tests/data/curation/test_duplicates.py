import itertools
import json
import pickle
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.curation.exact_duplicates import ExactDeduplicator, ExactSigner
from t5x_scale.data.curation.grouping import connect, find_later
from t5x_scale.data.curation.minhash import MinHashSigner
from t5x_scale.data.curation.near_duplicates import NearDeduplicator, choose_bands
from t5x_scale.data.curation.words import ngrams, split_normalised

WORDS = [f"word{number}" for number in range(5000)]
SIGNER = MinHashSigner()


def sign(signer, texts, cuts=()):
    """The signatures of texts, in parts that begin at `cuts`, as a build gives them."""
    parts = []
    edges = [0, *sorted(cuts), len(texts)]
    for first, stop in itertools.pairwise(edges):
        signed = [signer(text) for text in texts[first:stop]]
        parts.append(
            {
                name: np.array([one[name] for one in signed], dtype).reshape(-1, *shape)
                for name, (dtype, shape) in signer.arrays.items()
            }
        )
    return lambda: iter(parts)


def joined(keep):
    assert all(part.dtype == bool for part in keep)
    return np.concatenate([np.zeros(0, bool), *keep]).tolist()


def random_text(generator, words=200):
    return " ".join(generator.choice(WORDS) for _ in range(words))


def change(generator, text, share):
    return " ".join(generator.choice(WORDS) if generator.random() < share else word for word in text.split())


def jaccard(left, right):
    left, right = (set(ngrams(split_normalised(text).hashes, 5).tolist()) for text in (left, right))
    return len(left & right) / len(left | right)


@given(st.lists(st.sampled_from("abcdef"), max_size=40), st.lists(st.integers(0, 40), max_size=5), st.integers(1, 9))
@settings(max_examples=50)
def test_the_first_of_equal_texts_stays_however_the_corpus_is_cut(texts, cuts, bucket):
    cuts = [min(cut, len(texts)) for cut in cuts]
    keep = ExactDeduplicator(bucket_documents=bucket)(sign(ExactSigner(), texts, cuts))
    assert len(keep) == len(cuts) + 1
    assert joined(keep) == [text not in texts[:index] for index, text in enumerate(texts)]


def test_what_makes_texts_equal():
    texts = ["Ein  Wort\n", "Ein Wort", "ein wort", "E\u0301t", "\u00c9t"]
    assert joined(ExactDeduplicator()(sign(ExactSigner(), texts))) == [True, False, True, True, False]
    strict = ExactSigner(ignore_space=False)
    assert joined(ExactDeduplicator()(sign(strict, texts))) == [True] * 5
    loose = ExactSigner(ignore_case=True)
    assert joined(ExactDeduplicator()(sign(loose, texts))) == [True, False, False, True, False]


def test_both_halves_of_a_hash_count():
    part = {"text_hash": np.array([[1, 1], [1, 2], [2, 1], [1, 2]], np.uint64) << np.uint64(32)}
    assert joined(ExactDeduplicator()(lambda: [part])) == [True, True, True, False]


def test_agreement_estimates_jaccard():
    generator = random.Random(0)
    errors, deviations = [], []
    for _ in range(200):
        text = random_text(generator)
        other = change(generator, text, generator.choice([0.01, 0.03, 0.06, 0.15]))
        truth = jaccard(text, other)
        estimate = np.mean(SIGNER(text)["minhash"] == SIGNER(other)["minhash"])
        errors.append(estimate - truth)
        deviations.append(np.sqrt(truth * (1 - truth) / 128))
    # Unbiased, and as exact as theory says: the mean of 200 errors, and their size.
    assert abs(np.mean(errors)) < 3 * np.sqrt(np.mean(np.square(deviations)) / len(errors))
    assert 0.8 < np.sqrt(np.mean(np.square(errors)) / np.mean(np.square(deviations))) < 1.2


def test_planted_copies_go_and_strangers_stay():
    generator = random.Random(1)
    originals = [random_text(generator) for _ in range(300)]
    copies = [change(generator, text, 0.01) for text in originals[:100]]
    cousins = [change(generator, text, 0.15) for text in originals[100:200]]
    similar = [jaccard(text, copy) >= 0.85 for text, copy in zip(originals, copies, strict=False)]
    assert max(map(jaccard, originals[100:200], cousins)) < 0.7
    keep = joined(NearDeduplicator()(sign(SIGNER, originals + copies + cousins, cuts=[50, 333])))
    assert all(keep[:300])
    assert all(keep[400:])
    found = [not kept for kept, near in zip(keep[300:400], similar, strict=True) if near]
    assert len(found) > 80
    assert np.mean(found) > 0.95


@given(st.lists(st.integers(0, 12), max_size=12), st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_parts_and_buckets_change_nothing(cuts, bucket):
    generator = random.Random(2)
    texts = [random_text(generator, 30) for _ in range(5)]
    texts += [change(generator, text, 0.02) for text in texts] + ["", "...", ""]
    expected = joined(NearDeduplicator()(sign(SIGNER, texts)))
    keep = NearDeduplicator(bucket_documents=bucket)(sign(SIGNER, texts, cuts))
    assert joined(keep) == expected
    assert not all(expected)


def test_texts_without_a_word_are_no_copies_of_one_another():
    assert joined(NearDeduplicator()(sign(SIGNER, ["", "!!!", "", "a", "a", "A."]))) == [True] * 4 + [False] * 2


def test_scripts_without_spaces_and_case():
    text = "委员会在一个寒冷的早晨开会讨论了自洪水以来一直关闭的桥梁有人希望在冬天之前修好它" * 3
    assert joined(NearDeduplicator()(sign(SIGNER, [text, text[1:] + "好", "另一些人则认为渡船就够了"]))) == [
        True,
        False,
        True,
    ]


def test_a_chain_is_one_group_and_crowds_are_compared():
    # Signatures made by hand: 0 agrees with 1, 1 with 2, but not 0 with 2.
    base = np.arange(128, dtype=np.uint32)
    chain = np.stack([base, base, base])
    chain[1, 108:] += 1000
    chain[2, 88:] += 1000
    part = {"minhash": chain}
    assert joined(NearDeduplicator()(lambda: [part])) == [True, False, False]
    # All share a band, nothing else; each has a twin.
    crowd = np.random.default_rng(0).integers(0, 2**31, (20, 128)).astype(np.uint32)
    crowd[:, :8] = 7
    part = {"minhash": np.repeat(crowd, 2, axis=0)}
    assert joined(NearDeduplicator()(lambda: [part])) == [True, False] * 20


@pytest.mark.parametrize(("threshold", "recall"), [(0.8, 0.95), (0.5, 0.95), (0.9, 0.99), (1.0, 0.95), (0.05, 0.999)])
def test_bands(threshold, recall):
    bands, rows = choose_bands(128, threshold, recall)
    assert bands * rows <= 128
    probability = 1 - (1 - threshold**rows) ** bands
    assert probability >= recall or rows == 1
    if rows < 128:
        assert 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < recall


@given(st.integers(1, 30), st.data())
def test_groups_are_connected_components(size, data):
    links = data.draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=40))
    half = len(links) // 2
    found = np.arange(size)
    for some in (links[:half], links[half:]):
        found = connect(found, np.array(some, np.int64).reshape(-1, 2))
    expected = list(range(size))
    for _ in range(size):
        for left, right in links:
            expected[left] = expected[right] = min(expected[left], expected[right])
    assert found.tolist() == expected
    later = find_later(np.array(links, np.int64).reshape(-1, 2))
    assert later.tolist() == [element for element in range(size) if expected[element] != element]


def test_nothing_is_no_problem():
    for deduplicator in (ExactDeduplicator(), NearDeduplicator()):
        assert deduplicator(list) == []
    empty = {"minhash": np.zeros((0, 128), np.uint32), "text_hash": np.zeros((0, 2), np.uint64)}
    for deduplicator in (ExactDeduplicator(), NearDeduplicator()):
        assert [part.tolist() for part in deduplicator(lambda: [empty, empty])] == [[], []]


def test_settings():
    with pytest.raises(UserError, match="between 0 and 1"):
        NearDeduplicator(threshold=80)
    with pytest.raises(UserError, match="needs n-grams"):
        MinHashSigner(ngram=0)
    for one in (SIGNER, ExactSigner(), ExactDeduplicator(), NearDeduplicator()):
        assert pickle.loads(pickle.dumps(one)) == one
        assert json.loads(json.dumps(one.describe())) == one.describe()
