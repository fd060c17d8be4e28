"""Depth: layer lists, published sizes, and functions that are unchanged."""

import dataclasses
import math

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.core.leaves import Leaf, Origin
from t5x_scale.surgery.depth import (
    DepthUpscale,
    ExpandBlocks,
    Interleave,
    SelectLayers,
    Stack,
    choose_windows,
    find_new_layers,
    render_layers,
)

STACKED = "decoder/layers/mlp/wo/kernel"


def count_parameters(weights):
    return sum(leaf.array.size for leaf in weights.leaves.values())


MISTRAL = toy.make_architecture(
    num_layers=32, embed_dim=4096, mlp_dim=14336, num_heads=32, num_kv_heads=8, head_dim=128, vocab_size=32000
)
LLAMA = toy.make_architecture(
    num_layers=32, embed_dim=4096, mlp_dim=11008, num_heads=32, num_kv_heads=32, head_dim=128, vocab_size=32000
)


def test_solar_is_made_of_mistral():
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    assert layer == 218_112_000
    weights = toy.make_abstract(MISTRAL)
    surgery = DepthUpscale(num_removed=8)
    assert surgery.choose(32) == [*range(24), *range(8, 32)] == DepthUpscale(num_layers=48).choose(32)
    solar = surgery(weights)
    assert count_parameters(solar) == 48 * layer + 2 * 32000 * 4096 + 4096 == 10_731_524_096
    assert solar.architecture == MISTRAL.with_config(num_layers=48)
    assert toy.shapes(solar.leaves) == {path: shape for path, (shape, _) in toy.tensors(solar.architecture).items()}
    assert solar.leaves[STACKED].origin == Origin("copied", STACKED, "layers 0-23, 8-31")
    assert solar.leaves["logits/kernel"].origin == Origin("restored", "logits/kernel")
    assert solar.recipe == ({"surgery": "DepthUpscale", "num_removed": 8, "num_layers": None, "optimizer": "none"},)


def test_llama_pro_has_eight_new_layers():
    surgery = ExpandBlocks(num_new=8)
    assert surgery.new_layers(32) == (4, 9, 14, 19, 24, 29, 34, 39)
    layers = surgery.choose(32)
    assert len(layers) == 40
    assert [layers[new] for new in surgery.new_layers(32)] == [3, 7, 11, 15, 19, 23, 27, 31]
    assert layers == ExpandBlocks(every=4).choose(32)
    grown = surgery(toy.make_abstract(LLAMA))
    assert count_parameters(grown) == 40 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 2 * 32000 * 4096 + 4096


def chosen(surgery, weights):
    return surgery(weights).leaves[STACKED].array.read()


@settings(deadline=None)
@given(layers=st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_any_list_of_layers(layers):
    weights = toy.make_weights(toy.FAMILIES["llama"], moments=["opt_state/0/mu", "opt_state/0/nu"])
    result = SelectLayers(layers)(weights)
    assert result.architecture.config.num_layers == len(layers)
    for before, after in [(weights.leaves, result.leaves)] + [
        (weights.moments[slot], result.moments[slot]) for slot in weights.moments
    ]:
        old, new = toy.read(before), toy.read(after)
        for path, values in old.items():
            expected = values[layers] if path.startswith("decoder/layers/") else values
            np.testing.assert_array_equal(new[path], expected)
    assert result.counters == weights.counters
    assert result.recipe[-1] == {"surgery": "SelectLayers", "layers": layers, "optimizer": "map"}


@given(first=st.integers(0, 3), second=st.integers(0, 3), data=st.data())
def test_slices_are_ranges_without_their_stop(first, second, data):
    stops = data.draw(st.integers(first + 1, 4)), data.draw(st.integers(second + 1, 4))
    expected = [*range(first, stops[0]), 2, *range(second, stops[1])]
    assert SelectLayers([(first, stops[0]), 2, (second, stops[1])]).choose(4) == expected


@settings(deadline=None)
@given(times=st.integers(2, 4), seed=st.integers(0, 9))
def test_what_is_stacked_can_be_unstacked(times, seed):
    weights = toy.make_weights(toy.FAMILIES["gemma"], seed)
    for grown, layers in (
        (Stack(times), [(0, 4)]),
        (Interleave(times), range(0, 4 * times, times)),
        (ExpandBlocks(every=2), [0, 1, 3, 4]),
    ):
        back = SelectLayers(list(layers))(grown(weights))
        assert back.architecture == weights.architecture
        for path, values in toy.read(weights.leaves).items():
            np.testing.assert_array_equal(back.leaves[path].array.read(), values)


def test_stack_repeats_the_model_and_interleave_its_layers():
    assert Stack(2).choose(3) == [0, 1, 2, 0, 1, 2]
    assert Interleave(2).choose(3) == [0, 0, 1, 1, 2, 2]


def test_without_an_architecture_layers_are_found_by_their_axis():
    weights = toy.make_weights(toy.FAMILIES["llama"], known=False)
    result = DepthUpscale(num_removed=1)(weights)
    assert result.architecture is None
    np.testing.assert_array_equal(
        result.leaves[STACKED].array.read(), weights.leaves[STACKED].array.read()[[0, 1, 2, 1, 2, 3]]
    )


@pytest.mark.parametrize("surgery", [ExpandBlocks(num_new=2), ExpandBlocks(every=2), ExpandBlocks(every=3)])
def test_new_layers_are_found_in_the_recipe(surgery):
    grown = surgery(toy.make_weights(toy.FAMILIES["llama"]))
    depth = grown.architecture.config.num_layers
    trained = {"trained": {"steps": 3}}
    assert find_new_layers((*grown.recipe, trained), depth) == surgery.new_layers(4)
    assert find_new_layers(Stack(2)(grown).recipe, 2 * depth) == find_new_layers((trained,), depth) == ()
    other = Stack(2)(toy.make_weights(toy.FAMILIES["llama"]))
    assert find_new_layers(surgery(other).recipe, len(surgery.choose(8))) == surgery.new_layers(8)


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_expanded_blocks_leave_the_function_unchanged_in_every_bit(family):
    weights = toy.make_weights(toy.FAMILIES[family])
    grown = ExpandBlocks(num_new=2)(weights)
    assert grown.architecture.config.num_layers == 6
    np.testing.assert_array_equal(toy.logits(grown), toy.logits(weights))


def test_expanded_blocks_do_something_once_their_outputs_are_not_zero():
    weights = toy.make_weights(toy.FAMILIES["llama"])
    copies = SelectLayers(ExpandBlocks(num_new=2).choose(4))(weights)
    assert np.abs(toy.logits(copies) - toy.logits(weights)).max() > 0.01


@pytest.mark.parametrize("family", ["neox", "gemma"])
def test_only_the_last_parts_of_new_branches_are_changed(family):
    weights = toy.make_weights(toy.FAMILIES[family], moments=["opt_state/0/mu", "opt_state/0/nu"])
    surgery = ExpandBlocks(every=2, optimizer="map")
    copies, grown = SelectLayers(surgery.choose(4))(weights), surgery(weights)
    new = list(surgery.new_layers(4))
    assert new == [2, 5]
    for path, values in toy.read(copies.leaves).items():
        found = grown.leaves[path].array.read()
        if family == "neox" and ("/out/" in path or "/wo/" in path):
            assert not found[new].any()
            values[new] = 0
        if family == "gemma" and "/post_" in path:
            np.testing.assert_array_equal(found[new], -1.0)
            values[new] = -1
        np.testing.assert_array_equal(found, values)
    for path, leaf in grown.moments["opt_state/0/mu"].items():
        values = leaf.array.read()
        if path.startswith("decoder/layers/"):
            assert not values[new].any()
            assert values[[0, 1, 3, 4]].all()
        squares = grown.moments["opt_state/0/nu"][path].array.read()
        np.testing.assert_array_equal(squares, copies.moments["opt_state/0/nu"][path].array.read())


def test_origins_say_which_layers_are_new():
    grown = ExpandBlocks(every=2)(toy.make_weights(toy.FAMILIES["llama"]))
    origin = grown.leaves[STACKED].origin
    assert origin == Origin("grown", f"params/{STACKED}", "layers 0-1, 1-3, 3; 0 in the new layers 2, 5")
    assert grown.leaves["decoder/layers/mlp/wi_0/kernel"].origin.kind == "copied"


@settings(deadline=None)
@given(
    windows=st.lists(st.one_of(st.none(), st.integers(1, 3)), max_size=3),
    layers=st.lists(st.integers(0, 5), min_size=1, max_size=8),
)
def test_layers_keep_their_windows(windows, layers):
    cycle = choose_windows(windows, layers)
    full = [windows[layer % len(windows)] if windows else None for layer in layers]
    assert [cycle[i % len(cycle)] if cycle else None for i in range(len(layers))] == full
    assert len(cycle) <= len(layers)


def test_a_pattern_of_windows_that_breaks_is_written_out():
    assert choose_windows((3, None), [0, 1, 2, 3, 0, 1]) == (3, None)
    assert choose_windows((3, None), [0, 1, 1, 2, 3, 3]) == (3, None, None)
    assert choose_windows((3, None), [1, 3]) == ()
    thirds = dataclasses.replace(toy.FAMILIES["gemma"], windows=(3, None, None))
    grown = DepthUpscale(num_removed=1)(toy.make_weights(thirds))
    assert grown.architecture.windows == (3, None, None, None, None)


def test_row_and_column_means_follow_their_layers():
    weights = toy.make_weights(toy.FAMILIES["llama"], moments=["opt_state/0/v"])
    reduced = {
        path: Leaf(lazy.from_array(leaf.array.read().mean(-1)), leaf.axes[:-1], leaf.origin)
        for path, leaf in weights.moments["opt_state/0/v"].items()
        if leaf.array.ndim > 2
    }
    weights = weights.replace(moments={"opt_state/0/v_row": reduced})
    result = Stack(2)(weights)
    rows = result.moments["opt_state/0/v_row"][STACKED].array.read()
    np.testing.assert_array_equal(rows, np.concatenate([reduced[STACKED].array.read()] * 2))
    assert result.recipe[-1]["optimizer"] == "map"


def test_render_layers():
    assert render_layers([0, 1, 2, 1, 2, 5, 5]) == "0-2, 1-2, 5, 5"


LLAMA_TOY = toy.FAMILIES["llama"]


@pytest.mark.parametrize(
    ("surgery", "message"),
    [
        (lambda: SelectLayers([0, 4]), "4 is no layer of a model of 4; they are numbered 0 to 3"),
        (lambda: SelectLayers([(0, 5)]), "[0, 5] is no slice (start, stop) of a model of 4 layers"),
        (lambda: SelectLayers([(2, 2)]), "[2, 2] is no slice"),
        (lambda: SelectLayers(["0"]), "'0' is neither a number nor a slice"),
        (lambda: SelectLayers([]), "SelectLayers.layers is empty"),
        (lambda: DepthUpscale(num_removed=2), "even number of layers from 6 to 8, that is num_removed from 0 to 1"),
        (lambda: DepthUpscale(num_layers=7), "DepthUpscale.num_layers=7 does not fit a model of 4 layers"),
        (lambda: DepthUpscale(num_removed=-1), "DepthUpscale.num_removed=-1 does not fit"),
        (lambda: DepthUpscale(), "needs one of num_removed and num_layers"),
        (lambda: DepthUpscale(1, 6), "needs one of num_removed and num_layers, and not both"),
        (lambda: Stack(1), "Stack.times is 1; expected a whole number of 2 or more"),
        (lambda: Interleave(2.0), "Interleave.times is 2.0"),
        (lambda: ExpandBlocks(num_new=3), "does not divide 4 layers; 1, 2, 4 do"),
        (lambda: ExpandBlocks(every=5), "ExpandBlocks.every is 5, more than the model's 4 layers"),
        (lambda: ExpandBlocks(every=0), "ExpandBlocks.every is 0"),
        (lambda: Stack(2, optimizer="rest"), "Stack.optimizer is 'rest' (did you mean 'reset'?)"),
        (lambda: Stack(2, optimizer="keep"), "the state of the optimiser can be 'map' or 'reset'"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(surgery, message):
    weights = toy.make_weights(LLAMA_TOY, moments=["opt_state/0/mu"])
    with pytest.raises(UserError) as error:
        surgery()(weights)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_tensors_that_disagree_are_named():
    weights = toy.make_weights(LLAMA_TOY)
    with pytest.raises(UserError, match="no tensor with the axis 'layers'"):
        Stack(2)(weights.replace(leaves={"logits/kernel": weights.leaves["logits/kernel"]}))
    odd = dataclasses.replace(weights.leaves[STACKED], array=lazy.full((3, 12, 8), "float32"))
    with pytest.raises(UserError, match=f"{STACKED} has 3 layers, the architecture has 4"):
        Stack(2)(weights.replace(leaves={**weights.leaves, STACKED: odd}))


def test_zeroed_gains_of_sandwich_blocks_need_the_architecture():
    weights = toy.make_weights(toy.FAMILIES["gemma"], known=False)
    with pytest.raises(UserError, match="ExpandBlocks must know the model's architecture"):
        ExpandBlocks(every=2)(weights)
    assert math.prod(Stack(2)(weights).leaves[STACKED].shape) == 8 * 12 * 8
