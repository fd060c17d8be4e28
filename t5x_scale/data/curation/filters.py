"""Filters of a document's quality that assume no language.

A filter is called with the text of a document and gives `None` to keep it, or the reason for leaving it out: a short
name, the same for every document, so that reasons can be counted. Filters are frozen values that can be pickled;
`describe` is what a store's manifest keeps of one.

Most rules are those of MassiveText (Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from
Training Gopher", appendix A.1.1 "Quality filtering" and "Repetition removal", table A1), whose stop-word rule is
left out because it assumes English. Where a rule or a threshold is ours, its docstring says so. Words are those of
`curation.words`.
"""

from __future__ import annotations

from t5x_scale.data.curation.quality import (
    BulletLines,
    EllipsisLines,
    Length,
    LetterShare,
    MeanWordLength,
    SymbolsPerWord,
    TokenLength,
)
from t5x_scale.data.curation.repetition import (
    CompressedSize,
    RepeatedLines,
    RepeatedNgrams,
    RepeatedParagraphs,
    TopNgrams,
)
from t5x_scale.data.curation.text_filter import TextFilter

__all__ = [
    "BulletLines",
    "CompressedSize",
    "EllipsisLines",
    "Length",
    "LetterShare",
    "MeanWordLength",
    "RepeatedLines",
    "RepeatedNgrams",
    "RepeatedParagraphs",
    "SymbolsPerWord",
    "TextFilter",
    "TokenLength",
    "TopNgrams",
    "gopher_filters",
]


def gopher_filters() -> tuple[TextFilter, ...]:
    """MassiveText's rules as far as they assume no language, the quick ones first."""
    quality = (Length(), MeanWordLength(), SymbolsPerWord(), EllipsisLines(), BulletLines(), LetterShare())
    return (*quality, RepeatedLines(), RepeatedParagraphs(), TopNgrams(), RepeatedNgrams())
