import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives import noise_lengths
from t5x_scale.data.objectives.noise_lengths import noise_counts, raw_length_for

PUBLISHED = {
    (3, 0.15): (568, 512, 114),
    (8, 0.15): (588, 512, 100),
    (3, 0.5): (766, 512, 512),
    (8, 0.5): (908, 512, 512),
    (64, 0.15): (600, 512, 92),
    (64, 0.5): (1006, 512, 512),
    (32, 0.15): (598, 512, 94),
    (32, 0.5): (990, 512, 512),
}
DENOISERS = st.sampled_from(sorted(PUBLISHED))


def plain_counts(length, density, mean_span):
    noise = min(max(round(length * density), 1), length - 1)
    return noise, max(1, round(noise / mean_span))


def plain_raw_length(inputs_length, density, mean_span):
    """T5's search, one token after the other, from the smallest text there is."""

    def lengths(tokens):
        noise, spans = plain_counts(tokens, density, mean_span)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = 2
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
    inputs, targets = lengths(tokens)
    if density == 0.5 and targets > inputs:
        return tokens - 1, inputs, targets - 1
    return tokens, inputs, targets


@pytest.mark.parametrize("denoiser", sorted(PUBLISHED))
def test_lengths_at_512_are_the_published_ones(denoiser):
    mean_span, density = denoiser
    assert raw_length_for(512, density, mean_span) == PUBLISHED[denoiser]


@given(DENOISERS, st.integers(3, 3000))
def test_lengths_are_those_of_a_plain_search(denoiser, inputs_length):
    mean_span, density = denoiser
    assert raw_length_for(inputs_length, density, mean_span) == plain_raw_length(inputs_length, density, mean_span)


@given(st.integers(2, 100_000), st.sampled_from([0.15, 0.3, 0.5]), st.sampled_from([3.0, 8.0, 32.0, 64.0, 2.5]))
def test_counts_are_those_of_plain_arithmetic(length, density, mean_span):
    noise, spans = noise_counts(length, density, mean_span)
    assert (noise, spans) == plain_counts(length, density, mean_span)
    assert 1 <= spans <= min(noise, length - noise)


@given(st.integers(2, 500), st.floats(0.01, 0.99), st.floats(1, 70))
def test_there_is_always_text_before_a_span_and_noise_in_it(length, density, mean_span):
    noise, spans = noise_counts(length, density, mean_span)
    assert 1 <= spans <= min(noise, length - noise)
    assert 1 <= noise <= length - 1


def test_a_single_token_has_no_noise():
    with pytest.raises(ValueError, match="at least 2"):
        noise_counts(1, 0.15, 3)


@pytest.mark.parametrize(("mean_span", "density", "raw"), [(3, 0.15, 1861), (32, 0.15, 2027), (3, 0.5, 1535)])
def test_joined_lengths_at_2048_with_a_mode_token(mean_span, density, raw):
    lengths = noise_lengths.joined_lengths(2048, density, mean_span, 1)
    assert (lengths.raw, lengths.positions) == (raw, 2048)
    # The mode token is fed and never learnt, the end is learnt and never fed.
    assert lengths.raw + 2 * lengths.spans + 1 == 2048
    assert lengths.inputs + lengths.targets == 2049


@given(DENOISERS, st.integers(5, 5000), st.integers(0, 1))
def test_joined_rows_have_no_empty_position(denoiser, length, mode):
    mean_span, density = denoiser
    lengths = noise_lengths.joined_lengths(length, density, mean_span, mode)
    assert lengths.positions == length == mode + lengths.raw + 2 * lengths.spans
    assert 1 <= lengths.spans <= min(lengths.noise, lengths.raw - lengths.noise)
    noise, spans = plain_counts(lengths.raw, density, mean_span)
    # T5's counts, or one span less where one more would jump over the end of the row.
    assert lengths.noise == noise
    assert lengths.spans in (spans, spans - 1)
    if lengths.spans == spans:
        more = plain_counts(lengths.raw + 1, density, mean_span)[1]
        assert mode + lengths.raw + 1 + 2 * more > length


@given(DENOISERS, st.integers(8, 1500))
def test_halved_lengths_fit_both_halves(denoiser, inputs_length):
    mean_span, density = denoiser
    raw, inputs, targets = raw_length_for(inputs_length, density, mean_span)
    lengths = noise_lengths.halved_lengths(inputs_length, inputs + targets, density, mean_span, 1)
    assert lengths.raw == raw
    assert lengths.inputs <= inputs_length
    assert lengths.positions <= inputs + targets
    with pytest.raises(UserError, match="lower inputs_length"):
        noise_lengths.halved_lengths(inputs_length, inputs + targets - 1, density, mean_span, 1)


def test_rows_too_short_for_a_span():
    with pytest.raises(UserError, match="too short for span corruption"):
        noise_lengths.joined_lengths(3, 0.15, 3, 0)
    with pytest.raises(UserError, match="too short for span corruption"):
        raw_length_for(2, 0.15, 3)


def test_arrays_agree_with_single_lengths():
    lengths = np.arange(2, 300)
    noise, spans = noise_lengths.noise_count_arrays(lengths, 0.5, 3)
    assert list(zip(noise.tolist(), spans.tolist(), strict=True)) == [noise_counts(n, 0.5, 3) for n in lengths]
