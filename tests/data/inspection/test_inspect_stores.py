import math

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data.inspection import describe_document, describe_store, find_vocabulary, stores
from t5x_scale.data.vocabulary import load_vocabulary

BYTES = load_vocabulary("bytes")


def test_statistics(words):
    text = describe_store(words, BYTES)
    lines = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in text.splitlines()}
    assert lines["source"] == "words, split 'train'"
    assert lines["licence"] == "CC0"
    assert lines["tokens"].startswith(f"{words.num_tokens:,} (uint16)")
    assert lines["documents"].startswith("200, ")
    lengths = sorted(len(f"Document {i}.") + 5 * (i % 80) + 1 for i in range(200))
    assert lines["document lengths"].startswith(f"0%: {lengths[0]}, ")
    assert lines["document lengths"].endswith(f"100%: {lengths[-1]}")
    assert lines["report: dropped"] == "too short 1"
    entropy = math.fsum(-n / words.num_tokens * math.log(n / words.num_tokens) for n in words.unigram_counts() if n)
    assert lines["unigram entropy"].startswith(f"{entropy:.4f} nats")
    # "word" and the blank before it are most of the text.
    assert set(lines["most frequent ids"].split("'")[1::2][:5]) == {" ", "w", "o", "r", "d"}
    assert words.fingerprint in text


def test_a_large_store_is_judged_by_a_sample(words, monkeypatch):
    whole = stores.document_lengths(words)
    assert whole.sum() == words.num_tokens
    monkeypatch.setattr(stores, "_BLOCK", 10)
    np.testing.assert_array_equal(stores.document_lengths(words), whole)
    monkeypatch.setattr(stores, "_MOST_DOCUMENTS", 50)
    sample = stores.document_lengths(words)
    np.testing.assert_array_equal(sample, np.concatenate([whole[first : first + 10] for first in range(0, 200, 40)]))


def test_documents(words, sums):
    start, stop = words.document_span(2)
    assert describe_document(words, 2, BYTES) == (
        f"document 2: tokens {start} to {stop} ({stop - start})\nDocument 2. word word[eod]"
    )
    assert describe_document(sums, 12, BYTES).splitlines()[1:] == ["  inputs   |12+12=|", "  targets  |24[eod]|"]
    assert "6 of them inputs" in describe_document(sums, 12, BYTES)
    with pytest.raises(UserError, match=r"no document 200: .* has 200, counted from 0"):
        describe_document(words, 200, BYTES)


def test_a_supervised_store_says_so(sums):
    mean = sum(len(f"{i}+{i}=") for i in range(40)) / 40
    assert f"{mean:,.1f} tokens of a document are inputs" in describe_store(sums)


def test_the_vocabulary_is_found(words, make_words_store, tmp_path):
    assert find_vocabulary(words).spec == "bytes"
    assert find_vocabulary(make_words_store(tmp_path / "a", ["def x"], "stdlib_8k")).spec == "stdlib_8k"
    with pytest.raises(UserError, match=r"was built with the vocabulary .*, not 'stdlib_8k'"):
        find_vocabulary(words, "stdlib_8k")
    with pytest.raises(UserError, match="unknown vocabulary 'bites'"):
        find_vocabulary(words, "bites")


def test_the_vocabulary_may_be_on_record(make_words_store, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "shipped_names", list)
    options = {"vocabulary": "stdlib_8k"}
    unknown = make_words_store(tmp_path / "unknown", ["def x"], **options)
    with pytest.raises(UserError, match="name the vocabulary of the token store"):
        find_vocabulary(unknown)
    options["source"] = {"task": "x", "vocabulary": "stdlib_8k"}
    assert find_vocabulary(make_words_store(tmp_path / "known", ["def x"], **options)).spec == "stdlib_8k"
