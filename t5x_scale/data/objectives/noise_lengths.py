"""How many tokens span corruption masks, and how long its inputs and targets become: T5's arithmetic.

Source: google-research/text-to-text-transfer-transformer, `t5/data/preprocessors.py`. Roundings are to the nearest
integer, halves to the even one.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from t5x_scale.core.errors import UserError


def noise_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Tokens to mask and spans to mask them in, for a text of `length` tokens.

    At least one token is masked and one is not; there is at least one span. Where T5 would ask for more spans than
    there are tokens left unmasked to stand before them, there are as many as those.

    Raises:
      ValueError: fewer than two tokens cannot be divided.
    """
    if length < 2:
        raise ValueError(f"a text of {length} tokens has no room for noise: at least 2")
    noise, spans = noise_count_arrays(np.array([length]), density, mean_span)
    return int(noise[0]), int(spans[0])


def noise_count_arrays(lengths: np.ndarray, density: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """`noise_counts` of many lengths at once, int64 [n] each; lengths below 2 count as 2."""
    lengths = np.maximum(np.asarray(lengths, np.int64), 2)
    noise = np.clip(np.round(lengths * density).astype(np.int64), 1, lengths - 1)
    spans = np.maximum(np.round(noise / mean_span).astype(np.int64), 1)
    return noise, np.minimum(spans, lengths - noise)


def raw_length_for(inputs_length: int, density: float, mean_span: float) -> tuple[int, int, int]:
    """The most raw tokens whose corrupted inputs fit, with T5's lengths of both sides.

    The inputs are raw - noise + spans + 1 tokens long, the targets noise + spans + 1; in T5 the 1 ends either side.
    At a density of exactly one half the targets may come out longer than the inputs; T5 then takes one raw token less
    and calls the targets one shorter.

    Returns:
      (raw tokens, inputs length, targets length).

    Raises:
      UserError: not even two raw tokens fit.
    """
    raw = np.arange(2, max(4, int(4 * inputs_length / (1 - density))))
    noise, spans = noise_count_arrays(raw, density, mean_span)
    inputs = raw - noise + spans + 1
    fits = np.flatnonzero(inputs <= inputs_length)
    if not len(fits):
        raise UserError(f"inputs_length is {inputs_length}: too short for span corruption, which needs at least 3")
    last = fits[-1]
    lengths = int(raw[last]), int(inputs[last]), int(noise[last] + spans[last] + 1)
    if density == 0.5 and lengths[2] > lengths[1]:
        return lengths[0] - 1, lengths[1], lengths[2] - 1
    return lengths


@dataclasses.dataclass(frozen=True)
class Lengths:
    """What a denoiser makes of one row, in tokens.

    Attributes:
      raw: tokens of text.
      noise: those that move to the targets. For a prefix denoiser their mean.
      spans: sentinels on each side.
      mode: 1 if a mode token stands first, otherwise 0.
      end: 1 if an end token closes the targets, otherwise 0.
    """

    raw: int
    noise: float
    spans: int
    mode: int
    end: int = 1

    @property
    def inputs(self) -> float:
        """Tokens before the first target, mode token and sentinels included."""
        return self.mode + self.raw - self.noise + self.spans

    @property
    def targets(self) -> float:
        """Tokens that are predicted, sentinels and end included."""
        return self.noise + self.spans + self.end

    @property
    def positions(self) -> int:
        """Positions of a decoder: one less than the joined tokens, for the last is predicted but never fed."""
        return self.mode + self.raw + 2 * self.spans + self.end - 1


@functools.lru_cache(maxsize=1024)
def joined_lengths(length: int, density: float, mean_span: float, mode: int) -> Lengths:
    """Lengths whose joined inputs and targets fill exactly `length` positions.

    The joined sequence is [mode] inputs targets [end] of mode + raw + 2 spans + 1 tokens. The last is never fed, so
    that it fills mode + raw + 2 spans positions: the 1 in the usual "raw + 2 spans + 1 = length" is the mode token.
    One raw token more may bring a span more, which fills three positions at once; where that jumps over `length`,
    the row takes the one or two raw tokens more without the span.

    Raises:
      UserError: not even two raw tokens fit.
    """
    raw = np.arange(2, length + 1)
    spans = noise_count_arrays(raw, density, mean_span)[1]
    fits = np.flatnonzero(mode + raw + 2 * spans <= length)
    if not len(fits):
        raise UserError(f"a row of {length} positions is too short for span corruption, which needs at least 5")
    chosen = int(spans[fits[-1]])
    filled = length - mode - 2 * chosen
    return Lengths(filled, int(noise_count_arrays(np.array([filled]), density, mean_span)[0][0]), chosen, mode)


@functools.lru_cache(maxsize=1024)
def halved_lengths(inputs_length: int, length: int, density: float, mean_span: float, mode: int) -> Lengths:
    """Lengths by T5's table: raw tokens are those whose inputs fit `inputs_length`, and the rest of a row stays empty.

    T5 ends its inputs with a token that a decoder does not need: the mode token takes its place.

    Raises:
      UserError: inputs and targets together do not fit `length` positions.
    """
    raw, inputs, targets = raw_length_for(inputs_length, density, mean_span)
    if inputs + targets > length:
        raise UserError(
            f"inputs_length {inputs_length} with noise density {density:g} and mean span {mean_span:g} makes "
            f"{inputs} + {targets} tokens, more than a row of {length}: lower inputs_length, or leave it None"
        )
    return Lengths(raw, *noise_counts(raw, density, mean_span), mode)
