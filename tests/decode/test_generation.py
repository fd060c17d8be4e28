"""Completions through the cache are those of whole sequences, whatever shares the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.decode import generation
from t5x_scale.decode.generation import Generator, generate
from t5x_scale.decode.sampling import SamplingConfig
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.rules import fsdp_model
from t5x_scale.partitioning.shardings import make_sharding

CONTEXT = 40
GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=12)
PROMPTS = [[5, 9, 3], [7], list(range(35)), [1, 2, 3, 4, 5, 6, 7, 8]]


@pytest.fixture(scope="module")
def greedy(tiny_model):
    """Compiled once for all tests that feed it `PROMPTS`, and what it then gives."""
    model, params = tiny_model
    generator = Generator(model, GREEDY, context_length=CONTEXT)
    return generator, list(generator.generate(params, PROMPTS))


def _collect(pieces, count=4):
    """Tokens, log-probability and reason of every prompt."""
    tokens, scores, finishes = [[] for _ in range(count)], [0.0] * count, [None] * count
    for piece in pieces:
        assert finishes[piece.row] is None
        tokens[piece.row] += piece.tokens
        scores[piece.row] += piece.log_probability
        finishes[piece.row] = piece.finish
    assert None not in finishes
    return tokens, scores, finishes


def _assert_equal_to_uncached(full_logits, model, params, pieces, prefix_lm=False):
    """Against greedy completion from the forward pass over the whole sequence, once a token."""
    completions, scores, _ = _collect(pieces)
    for prompt, completion, score in zip(PROMPTS, completions, scores, strict=True):
        tokens, expected_score = list(prompt), 0.0
        for _ in range(min(GREEDY.max_new_tokens, CONTEXT - len(prompt))):
            logits = full_logits(model, params, tokens, len(prompt) if prefix_lm else 0)[-1]
            tokens.append(int(np.argmax(logits)))
            expected_score += float(logits[tokens[-1]] - np.log(np.sum(np.exp(logits))))
        assert completion == tokens[len(prompt) :]
        assert score == pytest.approx(expected_score, abs=1e-4)


def test_equal_to_the_uncached_forward_pass(tiny_model, greedy, full_logits):
    _assert_equal_to_uncached(full_logits, *tiny_model, greedy[1])


def test_prefix_lm_is_equal_to_the_uncached_forward_pass(relative_model, full_logits):
    model, params = relative_model
    pieces = list(generate(model, params, PROMPTS, GREEDY, context_length=CONTEXT, prefix_lm=True))
    _assert_equal_to_uncached(full_logits, model, params, pieces, prefix_lm=True)
    # The prefix makes a difference, or nothing is shown.
    causal, bidirectional = (full_logits(model, params, PROMPTS[2], prefix)[-1] for prefix in (0, 35))
    assert np.abs(causal - bidirectional).max() > 0.1


def test_logits_are_equal_along_the_way(any_model, full_logits):
    """Prompts of several lengths in one batch, then token by token, against whole sequences."""
    model, params = any_model
    sequences = np.asarray(jax.random.randint(jax.random.key(2), (3, 20), 0, 50))
    expected = [full_logits(model, params, list(row)) for row in sequences]
    # As many columns in every call, most of them padding, so that one compiled program serves all.
    extend = jax.jit(lambda *args: _with_logits(model, params, *args))
    cache = jax.tree.map(np.asarray, model.make_cache(3, CONTEXT))
    first, last = np.zeros(3, int), np.array([1, 9, 14])
    for _ in range(6):
        positions = first[:, None] + np.arange(14)
        positions = np.where(positions < last[:, None], positions, -1)
        logits, cache = extend(np.take_along_axis(sequences, np.maximum(positions, 0), axis=1), positions, cache)
        for row in range(3):
            found = logits[row, : last[row] - first[row]]
            np.testing.assert_allclose(found, expected[row][first[row] : last[row]], atol=1e-5, rtol=1e-5)
        first, last = last, last + 1


def _with_logits(model, params, tokens, positions, cache):
    hidden, cache = model.extend(params, tokens, positions, cache)
    return model.head(params).logits(hidden), cache


SAMPLING = SamplingConfig(temperature=0.9, top_k=18, top_p=0.95, max_new_tokens=9, seed=3)


@pytest.fixture(scope="module")
def sampling(tiny_model):
    """Generators by batch size, compiled once for all examples."""
    options = {"context_length": 24, "steps_per_call": 4, "num_tokens": 20}
    return {size: Generator(tiny_model[0], SAMPLING, batch_size=size, **options) for size in (1, 3)}


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 16), min_size=3, max_size=6), seed=st.integers(0, 99))
def test_a_completion_does_not_depend_on_its_batch(tiny_model, sampling, lengths, seed):
    _, params = tiny_model
    random = np.random.default_rng(seed)
    prompts = [random.integers(0, 50, length).tolist() for length in lengths]
    alone, together = (_collect(sampling[size].generate(params, prompts), len(prompts)) for size in (1, 3))
    assert (alone[0], alone[2]) == (together[0], together[2])
    np.testing.assert_allclose(alone[1], together[1], atol=1e-3)
    # Other prompts, of other lengths, in the places of all but the last.
    others = [random.integers(0, 50, random.integers(1, 17)).tolist() for _ in prompts[:-1]] + prompts[-1:]
    assert _collect(sampling[3].generate(params, others), len(prompts))[0][-1] == together[0][-1]


def test_equal_prompts_get_draws_of_their_own(tiny_model, sampling):
    tokens, _, _ = _collect(sampling[3].generate(tiny_model[1], [[3, 4]] * 3), 3)
    assert len({tuple(row) for row in tokens}) == 3


def test_ids_beyond_the_vocabulary_are_never_chosen(tiny_model, sampling):
    prompts = [[i, i + 1] for i in range(30)]
    tokens, scores, _ = _collect(sampling[3].generate(tiny_model[1], prompts), 30)
    assert max(token for row in tokens for token in row) < 20
    assert all(np.isfinite(scores))


def test_reasons_to_stop(tiny_model, greedy):
    model, params = tiny_model
    tokens, scores, finishes = _collect(greedy[1])
    assert finishes == ["max_new_tokens", "max_new_tokens", "context_full", "max_new_tokens"]
    assert list(map(len, tokens)) == [12, 12, 5, 12]
    # A token that the model chooses anyway now ends the text: it is not part of it, but of its probability.
    end = tokens[0][2]
    at = tokens[0].index(end)
    generator = Generator(model, GREEDY, context_length=CONTEXT, eos_ids=[49 - end, end])
    calls = _count_calls(generator, "_decode")
    ended, ended_scores, finishes = _collect(generator.generate(params, PROMPTS[:1]), 1)
    assert (ended, finishes) == ([tokens[0][:at]], ["end_of_text"])
    assert scores[0] < ended_scores[0] < 0
    # Of the two calls that twelve tokens take, the second is not made.
    assert len(calls) == 1


def _count_calls(generator, name):
    calls, function = [], getattr(generator, name)
    setattr(generator, name, lambda *args: calls.append(name) or function(*args))
    return calls


def test_new_tokens_come_in_small_pieces(greedy):
    pieces = [piece for piece in greedy[1] if piece.row == 0]
    assert [len(piece.tokens) for piece in pieces] == [1, 8, 3]
    assert [piece.finish for piece in pieces] == [None, None, "max_new_tokens"]


def test_sharded_parameters_give_the_same_completions(tiny_model, greedy):
    model, params = tiny_model
    mesh, rules = MeshConfig(data=2, fsdp=2, model=2).make_mesh(), fsdp_model()
    placed = jax.tree.map(
        lambda leaf, axes: jax.device_put(leaf, make_sharding(mesh, rules, axes, leaf.shape)), params, model.axes()
    )
    found = _collect(generate(model, placed, PROMPTS, GREEDY, context_length=CONTEXT, mesh=mesh, rules=rules))
    expected = _collect(greedy[1])
    assert (found[0], found[2]) == (expected[0], expected[2])
    np.testing.assert_allclose(found[1], expected[1], atol=1e-3)


def test_buckets_are_few():
    assert {generation._bucket(length, 100) for length in range(1, 101)} == {16, 32, 64, 100}
    assert all(generation._bucket(length, 100) >= length for length in range(1, 101))


@pytest.mark.parametrize(
    ("prompts", "part"),
    [
        ([[1], [2] * 40], "prompt 2 has 40 tokens and the context 40.*at most 39"),
        ([[1], []], "prompt 2 has no tokens"),
        ([[1, 50]], "prompt 1 holds the id 50, and the model knows 50"),
        ([[-1]], "prompt 1 holds the id -1"),
    ],
)
def test_prompts_that_cannot_be_completed(tiny_model, prompts, part):
    model, params = tiny_model
    with pytest.raises(UserError, match=part):
        # Before the first token is asked for.
        generate(model, params, prompts, GREEDY, context_length=CONTEXT)


def test_a_longer_context_than_there_are_positions(learned_model):
    with pytest.raises(UserError, match="context_length is 41, and the model has 40 learned positions"):
        generate(*learned_model, [[1]], GREEDY, context_length=41)


def test_damaged_parameters_are_noticed(tiny_model, greedy):
    damaged = jax.tree.map(lambda leaf: leaf.at[..., 0].set(jnp.nan), tiny_model[1])
    with pytest.raises(UserError, match="prompt 1: the model's logits are not finite"):
        next(greedy[0].generate(damaged, PROMPTS))
