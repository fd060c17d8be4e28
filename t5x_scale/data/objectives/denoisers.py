"""Denoisers: descriptions of how one text becomes inputs and targets, and the code that does it.

A denoiser turns texts of one length into joined sequences of one length (see `layout` for what follows):

  span     [mode] inputs targets end      inputs:  text <s0> text <s1> …      targets: <s0> noise <s1> noise …
  prefix   [mode] text                    the split between inputs and targets is drawn, nothing is moved

The text of a span denoiser begins with at least one token that stays, and ends with noise (as in T5). `<s0>`, `<s1>`,
… are the sentinels `<extra_id_0>`, `<extra_id_1>`, …, and the end is the token that ends documents.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives.layout import Sequences
from t5x_scale.data.objectives.noise_lengths import Lengths, halved_lengths, joined_lengths, noise_counts
from t5x_scale.data.objectives.prefix_lm import uniform_split
from t5x_scale.data.objectives.randomness import draw_words, random_subsets
from t5x_scale.data.objectives.spans import lay_spans
from t5x_scale.data.vocabulary import Vocabulary

# Below this a text is not worth a span: two tokens leave one on each side.
FEWEST_TOKENS = 3
# For what is asked of every document.
_remember = functools.lru_cache(maxsize=65536)


@dataclasses.dataclass(frozen=True)
class Controls:
    """What a denoiser puts around text, as `spans.lay_spans` takes it: ids (`mode` may be None), and the form."""

    mode: int | None
    end: int
    sentinels: np.ndarray
    in_place: bool = False


@dataclasses.dataclass(frozen=True)
class Denoiser(abc.ABC):
    """What a denoiser has to say and do."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """A short name for tables."""

    @abc.abstractmethod
    def window_lengths(self, length: int, mode: int, inputs_length: int | None = None) -> Lengths:
        """Lengths of a row.

        Args:
          length: L, positions of the row.
          mode: 1 if a mode token stands first, otherwise 0.
          inputs_length: T5's budget, see `noise_lengths.halved_lengths`; None fills the row.

        Raises:
          UserError: the row is too short.
        """

    @abc.abstractmethod
    def text_lengths(self, num_tokens: int, mode: int) -> Lengths:
        """Lengths for a text of `num_tokens`, at least `FEWEST_TOKENS`."""

    @abc.abstractmethod
    def sequences(
        self, texts: np.ndarray, lengths: Lengths, generators: Sequence[np.random.Generator], controls: Controls
    ) -> Sequences:
        """Turns texts, int32 [R, lengths.raw], into joined sequences of lengths.positions + 1 tokens."""


@dataclasses.dataclass(frozen=True)
class SpanDenoiser(Denoiser):
    """Random spans move to the targets; a sentinel stands for each (Raffel et al. 2020, section 3.1.4).

    Attributes:
      mean_span: mean length of a span, in tokens, at least 1.
      noise_density: share of the text that moves.
      mode: the mode token.
    """

    mean_span: float = 3.0
    noise_density: float = 0.15
    mode: str = "[NLU]"

    def __post_init__(self):
        if not self.mean_span >= 1:
            raise UserError(f"mean_span is {self.mean_span}: a span has at least 1 token")
        if not 0 < self.noise_density < 1:
            raise UserError(f"noise_density is {self.noise_density}: give a share between 0 and 1")

    @property
    def label(self) -> str:
        return f"spans({self.mean_span:.9g}, {self.noise_density:.9g})"

    def window_lengths(self, length: int, mode: int, inputs_length: int | None = None) -> Lengths:
        if inputs_length is None:
            return joined_lengths(length, self.noise_density, self.mean_span, mode)
        return halved_lengths(inputs_length, length, self.noise_density, self.mean_span, mode)

    @_remember
    def text_lengths(self, num_tokens: int, mode: int) -> Lengths:
        return Lengths(num_tokens, *noise_counts(num_tokens, self.noise_density, self.mean_span), mode)

    def sequences(
        self, texts: np.ndarray, lengths: Lengths, generators: Sequence[np.random.Generator], controls: Controls
    ) -> Sequences:
        noise, spans = int(lengths.noise), lengths.spans
        kept = lengths.raw - noise
        # One 32-bit word for each place where noise, or what is kept, may be cut.
        words = draw_words(generators, (noise + kept - 1) // 2).astype("<u8", copy=False).view("<u4")
        kept_ends = _random_ends(words[:, : kept - 1], kept, spans)
        noise_ends = _random_ends(words[:, kept - 1 : kept + noise - 2], noise, spans)
        noise_starts = np.concatenate([np.zeros_like(noise_ends[:, :1]), noise_ends[:, :-1]], axis=1)
        starts, ends = kept_ends + noise_starts, kept_ends + noise_ends
        around = vars(controls) | {"mode": controls.mode if lengths.mode else None}
        return lay_spans(texts, starts, ends, **around)


def _random_ends(words: np.ndarray, length: int, parts: int) -> np.ndarray:
    """Where the parts of a uniformly random division of `length` into non-empty parts end.

    Args:
      words: uint32 [R, length - 1].

    Returns:
      int64 [R, parts], ascending; the last is `length`.
    """
    last = np.full((len(words), 1), length)
    return np.concatenate([random_subsets(words, parts - 1) + 1, last], axis=1)


@dataclasses.dataclass(frozen=True)
class PrefixDenoiser(Denoiser):
    """The end of the text is the target: prefix language modelling, UL2's S.

    Of n tokens, the number that is given is uniform on the integers from max(1, round((1 - 2 density) (n - 1))) to
    n - 1, as in T5's `random_prefix_noise_mask`: a share of about `noise_density` is learnt.

    Attributes:
      noise_density: mean share that is learnt, in (0, 0.5]; 0.5 is the uniform split.
      mode: the mode token.
    """

    noise_density: float = 0.25
    mode: str = "[S2S]"

    def __post_init__(self):
        if not 0 < self.noise_density <= 0.5:
            raise UserError(f"a prefix denoiser's noise_density is {self.noise_density}: more than 0, at most 0.5")

    @property
    def label(self) -> str:
        return f"prefix({self.noise_density:.9g})"

    def window_lengths(self, length: int, mode: int, inputs_length: int | None = None) -> Lengths:
        del inputs_length  # Nothing is added to the text, so that there is nothing to budget.
        if length < 2:
            raise UserError(f"a row of {length} positions is too short for a prefix and a target")
        # Without a mode token the first token of the window is the one that only feeds the next.
        return Lengths(length + 1 - mode, self._mean_learnt(length), 0, mode, end=0)

    @_remember
    def text_lengths(self, num_tokens: int, mode: int) -> Lengths:
        return Lengths(num_tokens, self._mean_learnt(num_tokens), 0, mode, end=0)

    def sequences(
        self, texts: np.ndarray, lengths: Lengths, generators: Sequence[np.random.Generator], controls: Controls
    ) -> Sequences:
        if lengths.mode:
            texts = np.concatenate([np.full_like(texts[:, :1], controls.mode), texts], axis=1)
        predictions = np.full(len(texts), lengths.positions)
        words = draw_words(generators, 1)[:, 0]
        return Sequences(texts, uniform_split(self._fewest_given(predictions), predictions - 1, words))

    def _fewest_given(self, predictions: np.ndarray | int) -> np.ndarray:
        most = np.asarray(predictions) - 1
        given = np.round((1 - 2 * self.noise_density) * most).astype(np.int64)
        return np.minimum(np.maximum(given, 1), most)

    def _mean_learnt(self, predictions: int) -> float:
        return predictions - (float(self._fewest_given(predictions)) + predictions - 1) / 2


@functools.lru_cache(maxsize=64)
def sentinel_ids(vocabulary: Vocabulary) -> np.ndarray:
    """All sentinels of a vocabulary, int32 [n], `<extra_id_0>` first."""
    return np.array([vocabulary.sentinel_id(index) for index in range(vocabulary.num_sentinels)], np.int32)
