"""Which documents a step saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from t5x_scale.data.batch_source import BatchSource
from t5x_scale.data.inspection.text import visible
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class DocumentPart:
    """A part of a document.

    Attributes:
      document: its number in the store.
      first, stop: the part's tokens, counted from the document's beginning.
      size: tokens of the whole document, its separator included.
      position: of the part's first token in the store.
    """

    document: int
    first: int
    stop: int
    size: int
    position: int


@dataclasses.dataclass(frozen=True)
class RowOrigin:
    """Where a row came from.

    Attributes:
      row: in its batch.
      global_row: in the run.
      source: its name.
      epoch: how often the source had been gone through before.
      index: of the source's rows.
      parts: of documents, in the row's order.
    """

    row: int
    global_row: int
    source: str
    epoch: int
    index: int
    parts: tuple[DocumentPart, ...]


def step_documents(source: BatchSource, step: int, rows: Sequence[int] | None = None) -> Iterator[RowOrigin]:
    """What each row of a step is made from.

    Args:
      source: of the run.
      step: counted from 0.
      rows: of the batch; all when None.
    """
    places = source.global_rows(step)
    rows = range(len(places)) if rows is None else rows
    found = source.locate(places[list(rows)])
    for number, row in enumerate(rows):
        name, index = source.names[found.sources[number]], int(found.indices[number])
        parts = span_documents(source.stores[name], source.delivery.spans(name, index))
        yield RowOrigin(row, int(found.rows[number]), name, int(found.epochs[number]), index, parts)


def span_documents(store: TokenStore, spans: Sequence[tuple[int, int]]) -> tuple[DocumentPart, ...]:
    """The documents, or parts of them, in token ranges [first, stop) of a store."""
    return tuple(part for first, stop in spans for part in _span_documents(store, first, stop))


def _span_documents(store: TokenStore, first: int, stop: int) -> Iterator[DocumentPart]:
    begin, end = store.documents_of(np.array([first, stop - 1])).tolist()
    starts = store.document_starts(begin, end + 1).tolist()
    bounds = [*starts, store.document_span(end)[1]]
    for number in range(len(starts)):
        start, after = bounds[number], bounds[number + 1]
        low, high = max(first, start), min(stop, after)
        yield DocumentPart(begin + number, low - start, high - start, after - start, low)


def describe_spans(store: TokenStore, spans: Sequence[tuple[int, int]]) -> str:
    """`documents 3-5, tokens 100 to 612`: what a row is made from, in one line."""
    parts = span_documents(store, spans)
    pieces = [
        f"document {p.document}"
        + ("" if p.stop - p.first == p.size else f" (tokens {p.first}-{p.stop - 1} of {p.size})")
        for p in parts[:4]
    ]
    return ", ".join(pieces) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")


def describe_step(source: BatchSource, step: int, vocabulary: Vocabulary, show: int = 16, characters: int = 60) -> str:
    """The documents of a step, row by row, with their beginnings.

    Args:
      source, step: as `step_documents` takes them.
      vocabulary: of the run.
      show: rows shown.
      characters: shown of each document's part.
    """
    size = len(source.global_rows(step))
    lines = [f"step {step}: {size} rows of {source.length} positions"]
    for origin in step_documents(source, step, range(min(show, size))):
        lines.append(
            f"row {origin.row} (global row {origin.global_row:,}): {origin.source}, epoch {origin.epoch}, row "
            f"{origin.index:,} of {source.rows_per_epoch[origin.source]:,}, {source.stores[origin.source].directory}"
        )
        for part in origin.parts:
            tokens = source.stores[origin.source].tokens(part.position, part.position + min(part.stop - part.first, 64))
            text = visible(tokens, vocabulary)
            lines.append(
                f"  document {part.document}, tokens {part.first:,} to {part.stop:,} of {part.size:,}: "
                f"{text[:characters]}{'…' if len(text) > characters or part.stop - part.first > 64 else ''}"
            )
    if size > show:
        lines.append(f"{size - show} more rows (--show {size} shows them all)")
    return "\n".join(lines)
