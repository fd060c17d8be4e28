"""Stores of readable bytes, plain and supervised."""

import pytest

from t5x_scale.data.token_store import TokenStore, TokenStoreWriter
from t5x_scale.data.vocabulary import load_vocabulary

WORDS = [f"Document {i}." + " word" * (i % 80) for i in range(200)]


def write_store(directory, documents, vocabulary="bytes", **options):
    """Documents are texts, or pairs (inputs, targets)."""
    found = load_vocabulary(vocabulary)
    supervised = not isinstance(documents[0], str)
    settings = {"source": {"task": "words", "split": "train"}, "supervised": supervised, **options}
    with TokenStoreWriter(
        directory,
        vocabulary_fingerprint=found.fingerprint,
        vocabulary_size=found.size,
        separator_id=found.eod_id,
        **settings,
    ) as writer:
        for document in documents:
            inputs, targets = document if supervised else ("", document)
            writer.add(found.encode(inputs + targets), len(found.encode(inputs)))
        writer.report.update({"read": len(documents) + 1, "dropped": {"too short": 1}})
    return TokenStore.open(directory)


@pytest.fixture(scope="session")
def make_words_store():
    return write_store


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """Two hundred documents of 12 to 409 bytes."""
    return write_store(tmp_path_factory.mktemp("words") / "store", WORDS, licence="CC0")


@pytest.fixture(scope="session")
def sums(tmp_path_factory):
    """Forty supervised documents."""
    return write_store(tmp_path_factory.mktemp("sums") / "store", [(f"{i}+{i}=", f"{2 * i}") for i in range(40)])
