"""MinHash: a signature whose places agree as often as the n-grams of two texts do.

A place is the least n-gram of words of the text under a random permutation of all n-grams; two texts agree in it with
the probability that is their Jaccard similarity (Broder 1997, "On the resemblance and containment of documents").
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.core.mixing import mix
from t5x_scale.data.curation.words import ngrams, split_normalised

MINHASH = "minhash"
# What every place of a text without n-grams holds.
EMPTY = np.uint32(0xFFFFFFFF)
# N-grams that are permuted at once: numbers of a few MiB, which a cache holds.
_BLOCK = 2048


@dataclasses.dataclass(frozen=True)
class MinHashSigner:
    """Signs a text by MinHash.

    Attributes:
      ngram: words of an n-gram: 5, as in Lee et al. 2022. A text of fewer words is one n-gram.
      permutations: places of the signature, 4 bytes each. The similarity s of two texts is seen with a standard error
        of sqrt(s * (1 - s) / permutations).
    """

    ngram: int = 5
    permutations: int = 128

    def __post_init__(self):
        if self.ngram < 1 or self.permutations < 1:
            raise UserError(f"MinHash needs n-grams and permutations, not {self.ngram} and {self.permutations}")

    @property
    def arrays(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """One array, `minhash`; see `Signer`."""
        return {MINHASH: ("<u4", (self.permutations,))}

    def __call__(self, text: str) -> dict[str, np.ndarray]:
        """`minhash`, uint32 [permutations]; all `EMPTY` for a text without a letter or a number."""
        words = split_normalised(text).hashes
        grams = ngrams(words, min(self.ngram, max(len(words), 1)))
        factors, offsets = _permutations(self.permutations)
        least = np.full(self.permutations, ~np.uint64(0))
        for start in range(0, len(grams), _BLOCK):
            permuted = grams[start : start + _BLOCK] * factors
            permuted += offsets
            np.minimum(least, permuted.min(axis=1), out=least)
        return {MINHASH: (least >> np.uint64(32)).astype(np.uint32)}

    def describe(self) -> dict[str, Any]:
        """Settings, as JSON values."""
        return {"signer": "MinHashSigner", **dataclasses.asdict(self)}


@functools.cache
def _permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors (odd) and offsets, uint64 [count, 1] each: bijections x → x * factor + offset, the same for all time."""
    seeds = mix(np.arange(1, 2 * count + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03))
    return seeds[:count, None] | np.uint64(1), seeds[count:, None]
