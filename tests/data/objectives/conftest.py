"""Vocabularies with as many sentinels and modes as a test wants, and the mask a batch describes."""

import numpy as np
import pytest

from t5x_scale.data.vocabulary import Vocabulary
from t5x_scale.data.vocabulary_codecs import MODES, BytesCodec


class SmallCodec(BytesCodec):
    """The byte vocabulary with another number of sentinels, with or without modes, and more control tokens."""

    def __init__(self, sentinels, modes, more):
        self.NUM_SENTINELS = sentinels
        super().__init__()
        self._names += more
        self._controls |= {name: self.size + i for i, name in enumerate(more)}
        self.size += len(more)
        if not modes:
            self._controls = {name: i for name, i in self._controls.items() if name not in MODES}


def _make_vocabulary(sentinels=300, *, modes=True, more=()):
    return Vocabulary(SmallCodec(sentinels, modes, list(more)), "small", f"{sentinels} {modes} {more}")


@pytest.fixture(scope="session")
def make_vocabulary():
    return _make_vocabulary


@pytest.fixture(scope="session")
def vocabulary():
    return _make_vocabulary()


@pytest.fixture(scope="session")
def visible():
    return _visible


def _visible(fields, row):
    """bool [L, L]: which key (column) each query (row) sees, by the rule of `layers.masks`, written plainly."""
    length = fields["decoder_input_tokens"].shape[1]
    segments = fields.get("decoder_segment_ids", np.ones((row + 1, length)))[row]
    prefix = fields.get("decoder_causal_attention", np.zeros((row + 1, length)))[row]
    allowed = np.zeros((length, length), bool)
    for query in range(length):
        own = [key for key in range(length) if segments[key] == segments[query]]
        last = max([query, *[key for key in own if prefix[key]]])
        allowed[query, [key for key in own if key <= last]] = True
    return allowed
