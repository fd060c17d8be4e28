"""Ids as text that a person can check."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from t5x_scale.data.vocabulary import Vocabulary


def visible(ids: Iterable[int], vocabulary: Vocabulary, limit: int | None = None) -> str:
    """The text of ids in one line. Control tokens stand by name (`[eod]×9` is nine of them), line ends are escaped.

    Args:
      ids: int [n].
      vocabulary: of the ids.
      limit: the middle of a longer text is left out, and the number of characters said.
    """
    ids = np.asarray(list(ids), np.int64).tolist()
    controls = {i: name for i in set(ids) if vocabulary.control_id(name := vocabulary.piece(i)) == i}
    parts = []
    for control, run in itertools.groupby(ids, key=lambda i: controls.get(i)):
        run = list(run)
        parts.append(_repeated(control, len(run)) if control else _escape(vocabulary.decode(run)))
    return shorten("".join(parts), limit)


def quoted(ids: Iterable[int], vocabulary: Vocabulary, limit: int | None = None) -> str:
    """As `visible`, between two bars, so that white space at the ends is seen."""
    return f"|{visible(ids, vocabulary, limit)}|"


def shorten(text: str, limit: int | None) -> str:
    """`text`, without its middle if it is longer than `limit` characters."""
    if limit is None or len(text) <= limit:
        return text
    left = limit * 2 // 3
    return f"{text[:left]} […{len(text) - limit:,} characters…] {text[len(text) - (limit - left) :]}"


def table(rows: list[tuple[str, str]], indent: str = "") -> str:
    """Two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{indent}{name:{width}}  {value}" for name, value in rows)


def ranges(places: np.ndarray, limit: int = 6) -> str:
    """Ascending whole numbers, int [n], as ranges: `3-9, 12, 20-21`; what lies beyond `limit` ranges is counted."""
    places = np.asarray(places)
    if not len(places):
        return "none"
    cuts = np.flatnonzero(np.diff(places) > 1) + 1
    runs = [(run[0], run[-1]) for run in np.split(places, cuts)]
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs[:limit]]
    more = f" and {len(runs) - limit} more ranges" if len(runs) > limit else ""
    return ", ".join(shown) + more


def _repeated(name: str, count: int) -> str:
    return name * count if count < 4 else f"{name}×{count}"


def _escape(text: str) -> str:
    escaped = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "".join(escaped.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)
