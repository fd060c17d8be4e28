"""Merges against numpy written from the papers' definitions, layer by layer on plain arrays."""

import dataclasses
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.data.vocabulary import SHIPPED
from t5x_scale.surgery import merge_views
from t5x_scale.surgery.merging import Average, Dare, Ema, Linear, Slerp, TaskArithmetic, Ties

ARCHITECTURE = toy.make_architecture(num_experts=2, num_experts_per_token=1)
EXPERT = "decoder/layers/mlp/experts/wo/kernel"
TABLE = "token_embedder/embedding"


def make_models(count=3, dtype=np.float32):
    return [toy.make_weights(ARCHITECTURE, seed=seed, dtype=dtype) for seed in range(count)]


def matrices(path, arrays):
    """The same tensors one matrix at a time, as a checkpoint that stacks nothing has them."""
    stacked = 2 if "experts" in path else 1 if "layers" in path else 0
    shape = arrays[0].shape[:stacked]
    for index in np.ndindex(shape):
        yield index, [array[index].astype(np.float64) for array in arrays]


def check_against(merge, reference, models, tolerance=1e-6):
    """Each matrix of the merge equals `reference` of the models' matrices."""
    merged = toy.read(merge(models).leaves)
    parts = [toy.read(model.leaves) for model in models]
    for path, result in merged.items():
        for index, blocks in matrices(path, [part[path] for part in parts]):
            np.testing.assert_allclose(result[index], reference(*blocks), rtol=tolerance, atol=tolerance, err_msg=path)


def test_linear_is_the_weighted_mean():
    check_against(Linear([1.0, 2.0, 5.0]), lambda a, b, c: (a + 2 * b + 5 * c) / 8, make_models())
    check_against(Linear([1.0, 2.0, -5.0], normalize=False), lambda a, b, c: a + 2 * b - 5 * c, make_models())


def test_averages_of_checkpoints():
    check_against(Average(), lambda a, b, c: (a + b + c) / 3, make_models())

    def reference(first, *others):
        average = first
        for other in others:
            average = 0.9 * average + 0.1 * other
        return average

    check_against(Ema(0.9), reference, make_models(4))


def test_slerp_is_shoemakes_for_every_matrix():
    def reference(a, b):
        cos = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        angle = np.arccos(cos)
        return (np.sin(0.7 * angle) * a + np.sin(0.3 * angle) * b) / np.sin(angle)

    check_against(Slerp(0.3, nearly=1 - 1e-9), reference, make_models(2), tolerance=2e-6)


@pytest.mark.parametrize("factor", [1.5, -1.0])
def test_slerp_of_parallel_matrices_is_linear(factor):
    first = make_models(1)[0]
    leaves = {path: leaf.changed(lazy.scale(leaf.array, factor), "scaled") for path, leaf in first.leaves.items()}
    models = [first, first.replace(leaves=leaves)]
    check_against(Slerp(0.25), lambda a, b: 0.75 * a + 0.25 * b, models)


def test_slerp_between_a_thing_and_nothing_is_linear():
    first = make_models(1)[0]
    nothing = {
        path: leaf.changed(lazy.full(leaf.shape, "float32"), "initialised") for path, leaf in first.leaves.items()
    }
    check_against(Slerp(0.25), lambda a, b: 0.75 * a, [first, first.replace(leaves=nothing)])


def test_task_arithmetic_adds_differences():
    def reference(base, first, second):
        return base + 0.5 * (first - base) - 0.25 * (second - base)

    check_against(TaskArithmetic(scales=(0.5, -0.25)), reference, make_models())
    models = make_models(2)
    same = toy.read(TaskArithmetic()(models).leaves)
    for path, values in toy.read(models[1].leaves).items():
        np.testing.assert_array_equal(same[path], values)


def ties_reference(density, weights, scale):
    """Algorithm 1 of the paper, one matrix, with a weight for each model."""

    def reference(base, *models):
        kept = []
        for model in models:
            delta = (model.astype(np.float32) - base.astype(np.float32)).astype(np.float64)
            order = np.sort(np.abs(delta).ravel())[::-1]
            smallest = order[max(1, round(density * order.size)) - 1]
            kept.append(np.where(np.abs(delta) >= smallest, delta, 0.0))
        elected = np.sign(sum(weight * delta for weight, delta in zip(weights, kept, strict=True)))
        total, share = np.zeros_like(base), np.zeros_like(base)
        for weight, delta in zip(weights, kept, strict=True):
            agrees = (np.sign(delta) == elected) & (delta != 0)
            total += np.where(agrees, weight * delta, 0.0)
            share += np.where(agrees, weight, 0.0)
        return base + scale * np.where(share > 0, total / np.where(share > 0, share, 1.0), 0.0)

    return reference


@pytest.mark.parametrize(("density", "scales"), [(0.2, 1.0), (0.5, (1.0, 2.0, 0.5)), (1.0, 1.0), (1e-6, 1.0)])
def test_ties_is_the_papers(density, scales):
    weights = scales if isinstance(scales, tuple) else (scales,) * 3
    merge = Ties(scales, density=density, scale=0.7)
    check_against(merge, ties_reference(density, weights, 0.7), make_models(4))


def test_dare_drops_and_rescales():
    models = make_models(3)
    base, first, second = (toy.read(model.leaves) for model in models)
    dropped = toy.read(Dare(drop_rate=0.4, seed=3)(models[:2]).leaves)
    count = zeros = 0
    for path, values in dropped.items():
        delta = first[path] - base[path]
        gone = values == base[path]
        np.testing.assert_allclose(values, np.where(gone, base[path], base[path] + delta / 0.6), rtol=1e-5, atol=1e-6)
        count, zeros = count + gone.size, zeros + gone.sum()
    assert abs(zeros / count - 0.4) < 4 * np.sqrt(0.24 / count)
    both = toy.read(Dare(scales=(1.0, 0.5), drop_rate=0.4, seed=3)(models).leaves)
    again = toy.read(Dare(scales=(1.0, 0.5), drop_rate=0.4, seed=3)(models).leaves)
    other = toy.read(Dare(scales=(1.0, 0.5), drop_rate=0.4, seed=4)(models).leaves)
    # What is dropped of the first model is what was dropped of it alone; of the second, something else.
    rest = (both[TABLE] - dropped[TABLE]) / 0.5
    kept = ~np.isclose(rest, 0, atol=1e-6)
    np.testing.assert_allclose(rest[kept], (second[TABLE] - base[TABLE])[kept] / 0.6, rtol=1e-3, atol=1e-5)
    assert (kept != (dropped[TABLE] != base[TABLE])).any()
    np.testing.assert_array_equal(both[TABLE], again[TABLE])
    assert (both[TABLE] != other[TABLE]).any()


def test_dare_can_elect_signs():
    models = make_models(3)
    nothing_dropped = toy.read(Dare(drop_rate=0.0, elect_signs=True)(models).leaves)
    for path, values in toy.read(Ties(density=1.0)(models).leaves).items():
        np.testing.assert_array_equal(nothing_dropped[path], values)


MERGES = [
    Linear([0.3, 0.7]),
    Slerp(0.4),
    TaskArithmetic(0.6),
    Ties(density=0.3),
    Dare(drop_rate=0.5),
    Average(),
    Ema(0.5),
]


@pytest.mark.parametrize("merge", MERGES, ids=lambda merge: type(merge).__name__)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_blocks_change_nothing(merge, dtype, monkeypatch):
    models = make_models(2, dtype)
    array = merge(models).leaves[EXPERT].array
    whole = array.read()
    assert whole.dtype == dtype
    for name, value in (("BLOCK_BYTES", 64), ("RANKED_ELEMENTS", 0)):
        monkeypatch.setattr(merge_views, name, value)
    again = merge(models).leaves[EXPERT].array
    for region in lazy.blocks(again, 100):
        np.testing.assert_array_equal(again.read(region), whole[region])


@pytest.mark.parametrize("merge", MERGES, ids=lambda merge: type(merge).__name__)
def test_a_model_merged_with_itself_is_itself(merge):
    model = make_models(1)[0]
    merged = toy.read(merge([model, model]).leaves)
    for path, values in toy.read(model.leaves).items():
        np.testing.assert_array_equal(merged[path], values)


@pytest.mark.parametrize("in_memory", [0, 2**24])
@given(values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=60), data=st.data())
def test_quantiles_are_exact(in_memory, values, data):
    count = data.draw(st.integers(1, len(values)))
    array = np.array(values, np.float32)
    with mock.patch.object(merge_views, "RANKED_ELEMENTS", in_memory):
        found = merge_views.largest_magnitude(lazy.from_array(array), count)
    assert found == np.sort(np.abs(array))[::-1][count - 1]


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    parts=st.integers(1, 20),
)
def test_parts_are_the_whole(shape, parts):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    array = merge_views.in_parts(lazy.from_array(values), parts)
    np.testing.assert_array_equal(array.read(), values)
    index = (slice(shape[0] // 2, None),)
    np.testing.assert_array_equal(array.read(index), values[index])


@settings(deadline=None)
@given(probability=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]), seed=st.integers(0, 100))
def test_coins_are_fair_and_unrelated(probability, seed):
    first, second = (merge_views.coins((60, 70), probability, seed, name).read() for name in "ab")
    for block in (first, second, first & ~second):
        expected = probability * (1 - probability) if block is not first and block is not second else probability
        assert abs(block.mean() - expected) <= 5 * np.sqrt(expected * (1 - expected) / block.size)
    # Neighbours are not related either, along no dimension.
    for left, right in ((first[1:], first[:-1]), (first[:, 1:], first[:, :-1])):
        both = probability**2
        assert abs((left & right).mean() - both) <= 6 * np.sqrt(both * (1 - both) / left.size)


def test_the_report_names_every_source():
    models = make_models(2)
    merged = Linear([1, 3])(models, names=["base", "math"])
    assert merged.leaves[TABLE].origin.render() == f"merged from params/{TABLE} of base, math (Linear)"
    assert merged.recipe == (
        {"merge": "Linear", "weights": [1, 3], "normalize": True, "models": {"base": [], "math": []}},
    )
    assert TaskArithmetic()(models).leaves[TABLE].origin.source.endswith("of base, model 1")


def test_the_optimiser_is_left_behind():
    models = [toy.make_weights(ARCHITECTURE, seed=seed, moments=["opt_state/0/mu"]) for seed in range(2)]
    merged = Average()(models)
    assert (merged.moments, merged.counters) == ({}, {})


def with_tokenizer(model, **files):
    return model.replace(tokenizer={name.replace("_", ".", 1): content for name, content in files.items()})


def test_vocabularies_must_agree(tmp_path):
    import sentencepiece

    (tmp_path / "text").write_text("a b c d e f g h " * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=14, model_type="char"
    )
    ours = (SHIPPED / "stdlib_8k" / "tokenizer.model").read_bytes()
    theirs = (tmp_path / "m.model").read_bytes()
    first, second = make_models(2)
    Average()([with_tokenizer(first, tokenizer_model=ours), second])
    Average()([with_tokenizer(first, tokenizer_model=ours), with_tokenizer(second, tokenizer_model=ours, x=b"")])
    with pytest.raises(UserError, match=r"id 0 is '<pad>' in 'model 0' and '<unk>' in 'model 1'; RemapVocabulary"):
        Average()([with_tokenizer(first, tokenizer_model=ours), with_tokenizer(second, tokenizer_model=theirs)])


@pytest.mark.parametrize(
    ("merge", "count", "message"),
    [
        (Average(), 1, "Average merges two models or more, not 1"),
        (Slerp(0.5), 3, "cannot merge 3; Linear can"),
        (Linear([1, 2]), 3, "Linear.weights has 2 numbers; there must be 3, one a model"),
        (Linear([1, -1]), 2, "sum to 0"),
        (TaskArithmetic([1, 2]), 2, "there must be 1, one a model and none for the base"),
    ],
)
def test_settings_that_do_not_fit_are_refused(merge, count, message):
    with pytest.raises(UserError, match=message):
        merge(make_models(count))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ema(1.5), "Ema.decay is 1.5; expected a number from 0 to 1"),
        (lambda: Slerp(-0.1), "Slerp.t is -0.1"),
        (lambda: Ties(density=0.0), "Ties.density is 0.0"),
        (lambda: Ties(scales=[1, -1]), "no weight can be negative"),
        (lambda: Dare(drop_rate=1.0), "Dare.drop_rate is 1.0"),
        (lambda: Dare(-1.0, elect_signs=True), "no weight can be negative"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_models_that_differ_are_refused_by_name():
    first, second = make_models(2)

    def merged(**changes):
        return Average()([first, second.replace(**changes)], names=["ours", "theirs"])

    base = dataclasses.replace(ARCHITECTURE, rope_base=5e5)
    with pytest.raises(UserError, match=r"'ours' and 'theirs' are different decoders .*rope_base: 10000.0 -> 500000.0"):
        merged(architecture=base)
    without = {path: leaf for path, leaf in second.leaves.items() if path != EXPERT}
    with pytest.raises(UserError, match=f"the latter has no {EXPERT}"):
        merged(leaves=without)
    with pytest.raises(UserError, match="'theirs' and 'ours' cannot be merged: the latter has no logits/bias"):
        merged(leaves={**second.leaves, "logits/bias": second.leaves[TABLE]})
    odd = dataclasses.replace(second.leaves[TABLE], array=lazy.full((21, 8), "float32"))
    with pytest.raises(UserError, match=rf"{TABLE} has the shapes \[20, 8\] and \[21, 8\]"):
        merged(leaves={**second.leaves, TABLE: odd})
