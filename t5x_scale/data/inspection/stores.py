"""What a token store holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.inspection.text import quoted, table, visible
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import Vocabulary, load_vocabulary, shipped_names

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
# Lengths of more documents than this are judged by a sample.
_MOST_DOCUMENTS = 4_000_000
_BLOCK = 2**20


def find_vocabulary(store: TokenStore, spec: str | None = None) -> Vocabulary:
    """The vocabulary of a store: the one named, the one that its manifest names, or one that ships with the package.

    Raises:
      UserError: the named vocabulary is not the store's, or no name is known for it.
    """
    recorded = store.manifest.source.get("vocabulary")
    names = [spec] if spec else [*([recorded] if isinstance(recorded, str) else []), "bytes", *shipped_names()]
    for name in names:
        try:
            vocabulary = load_vocabulary(name)
        except UserError:
            if name == spec:
                raise
            continue
        if vocabulary.fingerprint == store.manifest.vocabulary_fingerprint:
            return vocabulary
    fingerprint = store.manifest.vocabulary_fingerprint[:12]
    if spec:
        raise UserError(f"the token store {store.directory} was built with the vocabulary {fingerprint}, not '{spec}'")
    raise UserError(f"name the vocabulary of the token store {store.directory} (fingerprint {fingerprint})")


def describe_store(store: TokenStore, vocabulary: Vocabulary | None = None, top: int = 12) -> str:
    """Statistics of a store. Reads all of it once, for the frequencies of ids.

    Args:
      store: to be described.
      vocabulary: for names of ids; numbers when None.
      top: how many of the most frequent ids to show.
    """
    manifest = store.manifest
    counts = store.unigram_counts()
    rows = [
        ("store", str(store.directory)),
        ("source", _source_text(manifest.source)),
        ("licence", manifest.licence or "not recorded"),
        ("vocabulary", _vocabulary_text(store, vocabulary)),
        ("fingerprint", manifest.fingerprint),
        ("tokens", f"{store.num_tokens:,} ({manifest.dtype}), separators included"),
        ("documents", f"{store.num_documents:,}, {store.num_tokens / store.num_documents:,.1f} tokens in the mean"),
        ("document lengths", _lengths_text(document_lengths(store))),
        *_supervised_row(store),
        ("documents without a token", f"{manifest.empty_documents:,}, left out"),
        *((f"report: {name}", _value_text(value)) for name, value in manifest.report.items()),
        ("ids that occur", f"{int((counts > 0).sum()):,} of {manifest.vocabulary_size:,}"),
        ("unigram entropy", f"{_entropy(counts):.4f} nats a token"),
        ("most frequent ids", _top_text(counts, vocabulary, top)),
    ]
    return table(rows)


def document_lengths(store: TokenStore) -> np.ndarray:
    """Lengths of documents with their separators, int64 [n]: of all, or of evenly spaced blocks of a large store."""
    blocks = -(-store.num_documents // _BLOCK)
    step = max(1, blocks * _BLOCK // _MOST_DOCUMENTS)
    lengths = []
    for first in range(0, store.num_documents, _BLOCK * step):
        stop = min(first + _BLOCK, store.num_documents)
        end = store.document_span(stop - 1)[1]
        lengths.append(np.diff(store.document_starts(first, stop), append=end))
    return np.concatenate(lengths)


def describe_document(store: TokenStore, index: int, vocabulary: Vocabulary, limit: int | None = 2000) -> str:
    """A document, decoded.

    Args:
      store: that holds it.
      index: which document.
      vocabulary: of the store.
      limit: characters shown; None is all.

    Raises:
      UserError: there is no such document.
    """
    if not 0 <= index < store.num_documents:
        raise UserError(f"there is no document {index}: {store.directory} has {store.num_documents}, counted from 0")
    start, stop = store.document_span(index)
    tokens = store.tokens(start, stop)
    head = f"document {index}: tokens {start:,} to {stop:,} ({stop - start:,})"
    if not store.is_supervised:
        return f"{head}\n{visible(tokens, vocabulary, limit)}"
    border = int(store.target_starts(index, index + 1)[0])
    parts = [
        ("inputs", quoted(tokens[:border], vocabulary, limit)),
        ("targets", quoted(tokens[border:], vocabulary, limit)),
    ]
    return f"{head}, {border:,} of them inputs\n{table(parts, indent='  ')}"


def _source_text(source: Mapping[str, Any]) -> str:
    split = f", split '{source['split']}'" if "split" in source else ""
    return f"{source.get('task', 'unnamed')}{split}"


def _vocabulary_text(store: TokenStore, vocabulary: Vocabulary | None) -> str:
    name = f"{vocabulary.spec}, " if vocabulary else ""
    return f"{name}{store.manifest.vocabulary_size:,} ids, fingerprint {store.manifest.vocabulary_fingerprint[:12]}"


def _lengths_text(lengths: np.ndarray) -> str:
    values = np.quantile(lengths, QUANTILES, method="nearest")
    return ", ".join(f"{100 * q:g}%: {value:,}" for q, value in zip(QUANTILES, values.tolist(), strict=True))


def _supervised_row(store: TokenStore) -> list[tuple[str, str]]:
    if not store.is_supervised:
        return []
    stops = range(0, store.num_documents, _BLOCK)
    total = sum(int(store.target_starts(i, min(i + _BLOCK, store.num_documents)).sum()) for i in stops)
    return [("supervised", f"{total / store.num_documents:,.1f} tokens of a document are inputs, in the mean")]


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value_text(part)}" for name, part in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def _top_text(counts: np.ndarray, vocabulary: Vocabulary | None, top: int) -> str:
    best = np.argsort(-counts, kind="stable")[:top]
    names = [repr(visible([i], vocabulary)) if vocabulary else str(i) for i in best.tolist()]
    shares = (counts[best] / counts.sum()).tolist()
    return ", ".join(f"{name} {share:.1%}" for name, share in zip(names, shares, strict=True) if share > 0)
