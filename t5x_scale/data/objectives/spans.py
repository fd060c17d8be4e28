"""Texts with holes: sentinels where spans were, and behind the text each sentinel with its span.

  [mode] text <s0> text <s1> …   <s0> span <s1> span … end

Such a sequence is fed as it is written, at positions 0, 1, 2, …, as T5 and UL2 have it, or *in place*: every token at
the position that it has in the text, and instead of a sentinel of the targets, where a span begins, once more the token
before the hole. A model of whole texts then predicts a span from what it was trained to predict it from, the tokens
before it at their distances, and has the text behind the hole besides; written out, it would have to learn first to
look up which token stood before a sentinel. What is predicted, and how long a sequence is, is the same in both forms.
Positions that are the text's also tell how long a hole is; sliding windows go by the row, not by them; and generation,
which continues texts, knows no holes in either form. (GLM, Du et al. 2021, arXiv 2103.10360, section 2.2, has a
second kind of position for this, and tells no lengths.)
"""

from __future__ import annotations

import numpy as np

from t5x_scale.data.objectives.layout import Sequences


def lay_spans(
    texts: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    *,
    sentinels: np.ndarray,
    mode: int | None,
    end: int,
    in_place: bool = False,
) -> Sequences:
    """Takes spans out of texts and puts them behind.

    In place, the text's positions begin with 0 at the mode token, or at the first token where there is none, and a
    sentinel of the inputs stands where its span begins.

    Args:
      texts: int32 [R, n].
      starts, ends: int64 [R, spans], ascending; spans of a row do not touch, and a token stands before the first. All
        rows lose equally many tokens.
      sentinels: int32 [spans or more], in their order.
      mode, end: ids of the token in front of the text, None for none, and of that behind the last span.
      in_place: whether the sequence is fed in place.
    """
    count, raw = texts.shape
    rows, order, modes = np.arange(count)[:, None], np.arange(starts.shape[1]), int(mode is not None)
    lengths = ends - starts
    before = np.cumsum(lengths, axis=1) - lengths
    moved = int(lengths[0].sum())
    first_target = modes + raw - moved + len(order)
    controls = (rows, modes + starts - before + order), (rows, first_target + before + order)
    is_moved = _spans_to_mask(starts, ends, raw)
    is_text = np.ones((count, first_target + len(order) + moved + 1), bool)
    is_text[:, :modes] = is_text[:, -1] = False
    for places in controls:
        is_text[places] = False

    def lay(text: np.ndarray, at_mode: int, at_sentinels: tuple[np.ndarray, ...], at_end: int) -> np.ndarray:
        laid = np.empty(is_text.shape, np.int32)
        laid[:, :modes], laid[:, -1] = at_mode, at_end
        for places, values in zip(controls, at_sentinels, strict=True):
            laid[places] = values
        laid[:, :first_target][is_text[:, :first_target]] = text[~is_moved]
        laid[:, first_target:][is_text[:, first_target:]] = text[is_moved]
        return laid

    own = sentinels[: len(order)]
    tokens = lay(texts, 0 if mode is None else mode, (own, own), end)
    made = Sequences(tokens, np.array([first_target - 1]))
    if not in_place:
        return made
    fed = tokens[:, :-1].copy()
    fed[controls[1]] = texts[rows, starts - 1]
    of_text = np.broadcast_to(np.arange(modes, modes + raw, dtype=np.int32), texts.shape)
    positions = lay(of_text, 0, (modes + starts, modes + starts - 1), raw + modes)
    return made._replace(fed=fed, positions=positions[:, :-1])


def _spans_to_mask(starts: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """Bool [R, length], True inside the ranges [start, end), int64 [R, spans] each."""
    steps = np.zeros((len(starts), length + 1), np.int8)
    rows = np.arange(len(starts))[:, None]
    steps[rows, starts] = 1
    steps[rows, ends] = -1
    return np.cumsum(steps[:, :-1], axis=1, dtype=np.int8).view(bool)
