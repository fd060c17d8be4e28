"""Experts from dense layers: numpy references, and functions that stay."""

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.core.leaves import Origin
from t5x_scale.models.assembly import axes_of, shapes_of
from t5x_scale.surgery import draws
from t5x_scale.surgery.depth import ExpandBlocks
from t5x_scale.surgery.experts import Upcycle, VirtualGroups
from t5x_scale.surgery.partition import MergeExperts, PartitionExperts

PLAIN = toy.make_architecture({"mlp": "plain", "activation": "relu_squared"})
LLAMA = toy.FAMILIES["llama"]
MOMENTS = ["opt_state/0/mu", "opt_state/0/nu"]
MLP, EXPERTS = "decoder/layers/mlp/", "decoder/layers/mlp/experts/"
ROUTER = f"{MLP}router/kernel"
ACTIVATIONS = {"silu": lambda x: x / (1 + np.exp(-x)), "relu_squared": lambda x: np.maximum(x, 0) ** 2}


def feed_forward(values, prefix, activation, x):
    """Any feed-forward layer [..., D] to [..., D], of a dict of matrices, in float64."""
    kernels = {path.removeprefix(prefix).split("/")[0]: v.astype(np.float64) for path, v in values.items()}
    if "wi" in kernels:
        return ACTIVATIONS[activation](x @ kernels["wi"]) @ kernels["wo"]
    return (ACTIVATIONS[activation](x @ kernels["wi_0"]) * (x @ kernels["wi_1"])) @ kernels["wo"]


def dense_output(weights, layer, x):
    values = {path: v[layer] for path, v in toy.read(weights.leaves).items() if path.startswith(MLP)}
    return feed_forward(values, MLP, weights.architecture.activation, x)


def sparse_output(weights, layer, x):
    """The layer of experts written as loops over tokens and choices: x [T, D] to [T, D]."""
    a = weights.architecture
    values = {path: v[layer] for path, v in toy.read(weights.leaves).items() if path.startswith(MLP)}
    router = values.pop(ROUTER).astype(np.float64)
    experts = [{path: v[e] for path, v in values.items()} for e in range(a.config.num_experts)]
    y = np.zeros_like(x)
    for token, row in enumerate(x):
        logits = row @ router
        chosen = np.argsort(-logits, kind="stable")[: a.config.num_experts_per_token]
        among = chosen if a.router == "topk_softmax" or a.normalize_gates else slice(None)
        gates = np.exp(logits) / np.exp(logits[among]).sum()
        for e in chosen:
            y[token] += a.gate_scale * gates[e] * feed_forward(experts[e], EXPERTS, a.activation, row)
    return y


def tokens(seed=3):
    return np.random.default_rng(seed).standard_normal((5, 8))


def check_shapes(weights):
    found = {path: (leaf.shape, leaf.axes) for path, leaf in weights.leaves.items()}
    assert found == toy.tensors(weights.architecture)


# Upcycling.


@pytest.mark.parametrize("architecture", [LLAMA, PLAIN])
@pytest.mark.parametrize("router", ["softmax_topk", "topk_softmax"])
def test_upcycling_keeps_the_function(architecture, router):
    weights = toy.make_weights(architecture)
    upcycled = Upcycle(num_experts=4, num_experts_per_token=2, router=router, router_stddev=1.0)(weights)
    check_shapes(upcycled)
    for layer in (0, 3):
        expected = dense_output(weights, layer, tokens())
        np.testing.assert_allclose(sparse_output(upcycled, layer, tokens()), expected, rtol=1e-12, atol=1e-12)


def test_without_normalized_gates_the_output_falls():
    weights = toy.make_weights(LLAMA)
    upcycled = Upcycle(4, 2, normalize_gates=False, router_stddev=0.0)(weights)
    assert not upcycled.architecture.normalize_gates
    np.testing.assert_allclose(sparse_output(upcycled, 0, tokens()), dense_output(weights, 0, tokens()) / 2)


def test_llama_3_8b_in_eight_experts_has_the_known_size():
    llama = toy.make_architecture(
        num_layers=32, embed_dim=4096, mlp_dim=14336, num_heads=32, num_kv_heads=8, head_dim=128, vocab_size=128256
    )
    weights = toy.make_abstract(llama)
    added = sum(leaf.array.size for leaf in Upcycle(8)(weights).leaves.values())
    added -= sum(leaf.array.size for leaf in weights.leaves.values())
    assert added == 7 * 3 * 4096 * 14336 * 32 + 32 * 4096 * 8
    assert round((added - 32 * 4096 * 8) / 1e9, 2) == 39.46


def test_the_router_is_drawn_and_every_tensor_has_its_origin():
    weights = toy.make_weights(LLAMA)
    upcycled = Upcycle(4, router_stddev=0.5, seed=3)(weights)
    router = upcycled.leaves[ROUTER]
    assert 0.3 < router.array.read().std() < 0.7
    assert router.origin == Origin("initialised", "", "normal with standard deviation 0.5, seed 3")
    assert upcycled.leaves[f"{EXPERTS}wo/kernel"].origin == Origin("copied", f"params/{MLP}wo/kernel", "4 copies")
    assert not upcycled.dropped
    other = Upcycle(4, router_stddev=0.5, seed=4)(weights).leaves[ROUTER].array.read()
    assert np.all(other != router.array.read())


def test_noise_has_the_size_and_the_share_asked_for():
    weights = toy.make_weights(toy.make_architecture(embed_dim=64, mlp_dim=96))
    path = "wi_0/kernel"
    dense = weights.leaves[MLP + path].array.read()[:, None]
    noisy = Upcycle(3, noise=0.1, noise_share=0.5)(weights).leaves[EXPERTS + path]
    change = noisy.array.read() - dense
    assert noisy.origin.kind == "grown"
    assert 0.48 < np.mean(change != 0) < 0.52
    assert 0.09 < change[change != 0].std() / dense.std() < 0.11
    assert np.mean(change[:, 0] != change[:, 1]) > 0.6
    whole = Upcycle(3, noise=0.1)(weights).leaves[EXPERTS + path].array.read() - dense
    assert np.all(whole != 0)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_dropped_neurons_are_drawn_anew_in_all_matrices(share):
    weights = toy.make_weights(toy.make_architecture(embed_dim=32, mlp_dim=48), moments=MOMENTS)
    upcycled = Upcycle(3, drop=share, optimizer="map")(weights)
    changed = {}
    for name in ("wi_0", "wi_1", "wo"):
        dense = weights.leaves[f"{MLP}{name}/kernel"].array.read()[:, None]
        found = upcycled.leaves[f"{EXPERTS}{name}/kernel"].array.read()
        differs = (found != dense).swapaxes(2, 3) if name == "wo" else found != dense
        changed[name] = differs.all(axis=2)
        assert np.array_equal(changed[name], differs.any(axis=2))
        assert np.all(changed[name].sum(axis=-1) == round(48 * share))
        assert 0.8 < (found - dense)[found != dense].std() / (np.sqrt(2) * dense.std()) < 1.2
        momentum = upcycled.moments[MOMENTS[0]][f"{EXPERTS}{name}/kernel"].array.read()
        assert np.array_equal((momentum.swapaxes(2, 3) if name == "wo" else momentum).any(axis=2), ~changed[name])
        assert upcycled.moments[MOMENTS[1]][f"{EXPERTS}{name}/kernel"].array.read().all()
    assert np.array_equal(changed["wi_0"], changed["wi_1"])
    assert np.array_equal(changed["wi_0"], changed["wo"])
    assert not np.array_equal(changed["wo"][0, 0], changed["wo"][0, 1])


def test_a_new_optimizer_is_the_default_and_moments_can_be_copied():
    weights = toy.make_weights(LLAMA, moments=MOMENTS)
    fresh = Upcycle(4)(weights)
    assert not fresh.moments
    assert not fresh.counters
    assert fresh.dropped["opt_state/0/mu"].kind == "dropped"
    assert fresh.recipe[-1]["optimizer"] == "reset"
    mapped = Upcycle(4, optimizer="map")(weights)
    mu, nu = (toy.read(mapped.moments[slot]) for slot in MOMENTS)
    old = toy.read(weights.moments[MOMENTS[1]])
    assert toy.shapes(mapped.moments[MOMENTS[0]]) == toy.shapes(mapped.leaves)
    assert not mu[ROUTER].any()
    np.testing.assert_allclose(nu[ROUTER][:, :, 3], old[f"{MLP}wi_0/kernel"].mean(-1), rtol=1e-6)
    np.testing.assert_array_equal(nu[f"{EXPERTS}wo/kernel"][:, 2], old[f"{MLP}wo/kernel"])


# Virtual groups.


@pytest.mark.parametrize("architecture", [LLAMA, PLAIN])
@pytest.mark.parametrize("settings", [{"router": "topk_softmax"}, {"normalize_gates": True}])
@pytest.mark.parametrize("chosen", [4, 8])
def test_exact_virtual_groups_keep_the_function(architecture, settings, chosen):
    weights = toy.make_weights(architecture)
    grouped = VirtualGroups(4, 16, chosen, exact=True, router_stddev=1.0, **settings)(weights)
    check_shapes(grouped)
    assert grouped.architecture.config.mlp_dim == 3
    # A factor of 4 rounds nothing.
    np.testing.assert_allclose(
        sparse_output(grouped, 1, tokens()), dense_output(weights, 1, tokens()), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("settings", [{"router": "softmax_topk"}, {"router": "topk_softmax"}])
def test_with_squared_relu_and_an_even_router_the_papers_scaling_is_exact(settings):
    weights = toy.make_weights(PLAIN)
    grouped = VirtualGroups(2, 8, 4, router_stddev=0.0, **settings)(weights)
    expected = dense_output(weights, 1, tokens())
    np.testing.assert_allclose(sparse_output(grouped, 1, tokens()), expected, rtol=1e-5, atol=1e-6)


def test_the_scaling_is_the_papers():
    # E' = 8, G = 8, k = 8 (E64T8G8): E' G^2 / k = 64, or G.
    assert VirtualGroups(8, 64, 8).factor == 64.0
    assert VirtualGroups(8, 64, 8, router="topk_softmax").factor == 8.0
    assert VirtualGroups(1, 8, 2).factor == 4.0
    weights = toy.make_weights(LLAMA)
    gelu = toy.make_weights(toy.make_architecture({"mlp": "plain", "activation": "gelu"}))
    for w, name, root in ((weights, "wi_0", 3), (weights, "wo", 3), (gelu, "wi", 2), (gelu, "wo", 2)):
        grouped = VirtualGroups(2, 8, 4)(w).leaves[f"{EXPERTS}{name}/kernel"]
        dense = w.leaves[f"{MLP}{name}/kernel"].array.read()
        first = dense[:, :6] if name == "wo" else dense[:, :, :6]
        np.testing.assert_allclose(grouped.array.read()[:, 4], 4 ** (1 / root) * first, rtol=1e-6)
        assert grouped.origin.kind == "scaled"


def test_the_shards_of_a_copy_share_a_column_of_the_router():
    router = VirtualGroups(3, 6, 3)(toy.make_weights(LLAMA)).leaves[ROUTER].array.read()
    for copy in (router[:, :, :3], router[:, :, 3:]):
        assert np.array_equal(copy, np.repeat(copy[:, :, :1], 3, axis=2))
    assert np.all(router[:, :, 2] != router[:, :, 3])


# Partition and merging.


@pytest.mark.parametrize("method", ["random", "clustered"])
@pytest.mark.parametrize("architecture", [LLAMA, PLAIN])
@pytest.mark.parametrize("settings", [{}, {"router": "softmax_topk", "normalize_gates": False}])
def test_all_parts_with_even_gates_are_the_dense_layer(method, architecture, settings):
    weights = toy.make_weights(architecture)
    parted = PartitionExperts(4, 4, method=method, router_stddev=0.0, **settings)(weights)
    check_shapes(parted)
    np.testing.assert_allclose(
        sparse_output(parted, 2, tokens()), dense_output(weights, 2, tokens()), rtol=1e-12, atol=1e-12
    )


def test_gates_are_rescaled_as_asked():
    assert PartitionExperts(16, 2, rescale="gates").gate_scale == 8.0
    assert PartitionExperts(16, 4, rescale="gates").gate_scale == 4.0
    assert PartitionExperts(16, 4, rescale="none").gate_scale == 1.0
    # 16 gates of 1/16 that are not divided by their sum, or 4 of 1/4: each output is to count 4 times.
    assert PartitionExperts(16, 4, router="softmax_topk", normalize_gates=False).gate_scale == 64.0
    assert PartitionExperts(16, 4).gate_scale == 16.0
    assert PartitionExperts(4, 2)(toy.make_weights(LLAMA)).architecture.gate_scale == 4.0


@settings(deadline=None, max_examples=20)
@given(
    experts=st.sampled_from([1, 2, 3, 4, 6, 12]), method=st.sampled_from(["random", "clustered"]), seed=st.integers()
)
def test_what_is_split_can_be_merged(experts, method, seed):
    seed = abs(seed)
    weights = toy.make_weights(LLAMA, seed % 10, moments=MOMENTS)
    parted = PartitionExperts(experts, 1, method=method, seed=seed, optimizer="map")(weights)
    merged = MergeExperts()(parted)
    assert merged.architecture == LLAMA
    assert merged.dropped.keys() == {ROUTER}
    old, new = toy.read(weights.leaves), toy.read(merged.leaves)
    assert old.keys() == new.keys()
    mu, nu = toy.read(merged.moments[MOMENTS[0]]), toy.read(weights.moments[MOMENTS[0]])
    for layer in range(4):
        # Where each neuron went is found by its gate; everything else must have gone the same way.
        gate = f"{MLP}wi_0/kernel"
        order = [int(np.flatnonzero(old[gate][layer, 0] == value)[0]) for value in new[gate][layer, 0]]
        assert sorted(order) == list(range(12))
        for name, axis in (("wi_0", 1), ("wi_1", 1), ("wo", 0)):
            path = f"{MLP}{name}/kernel"
            np.testing.assert_array_equal(new[path][layer], np.take(old[path][layer], order, axis))
            np.testing.assert_array_equal(mu[path][layer], np.take(nu[path][layer], order, axis))


@given(parts=st.sampled_from([1, 2, 3, 4, 6, 12]), data=st.data())
def test_parts_can_be_read_in_any_box(parts, data):
    weights = toy.make_weights(LLAMA)
    array = PartitionExperts(parts, 1)(weights).leaves[f"{EXPERTS}wo/kernel"].array
    box = tuple(slice(*sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2)))) for size in array.shape)
    np.testing.assert_array_equal(array.read(box), array.read()[box])


def test_merged_copies_can_be_their_mean():
    weights = toy.make_weights(LLAMA, moments=MOMENTS)
    merged = MergeExperts(scale=0.25)(Upcycle(4, optimizer="map")(weights))
    assert merged.architecture == LLAMA.with_config(mlp_dim=48)
    expected = dense_output(weights, 0, tokens())
    np.testing.assert_allclose(dense_output(merged, 0, tokens()), expected, rtol=1e-12, atol=1e-12)
    path = f"{MLP}wo/kernel"
    old, new = (toy.read(w.moments[MOMENTS[1]])[path] for w in (weights, merged))
    np.testing.assert_allclose(new[:, :12], 16 * old, rtol=1e-6)


# Whole models.


@pytest.mark.parametrize(
    ("surgery", "family"),
    [
        (Upcycle(4, 2, router_stddev=1.0), "llama"),
        (Upcycle(4, 3, router="topk_softmax", router_stddev=1.0), "palm"),
        (Upcycle(4, 2, router_stddev=1.0), "gemma"),
        (VirtualGroups(3, 6, 3, exact=True, normalize_gates=True, router_stddev=1.0), "llama"),
        (VirtualGroups(2, 8, 4, exact=True, router="topk_softmax", router_stddev=1.0), "palm"),
        (VirtualGroups(4, 8, 4, exact=True, normalize_gates=True, router_stddev=1.0), "gemma"),
        (PartitionExperts(4, 4, router_stddev=0.0), "llama"),
        (
            PartitionExperts(3, 3, "clustered", router="softmax_topk", normalize_gates=False, router_stddev=0.0),
            "llama",
        ),
    ],
)
def test_logits_are_unchanged(surgery, family):
    weights = toy.make_weights(toy.FAMILIES[family])
    changed = surgery(weights)
    assert toy.shapes(changed.leaves) == shapes_of(changed.architecture)
    assert {path: leaf.axes for path, leaf in changed.leaves.items()} == axes_of(changed.architecture)
    np.testing.assert_allclose(toy.logits(changed), toy.logits(weights), rtol=0, atol=1e-5)


def test_logits_change_when_experts_differ():
    weights = toy.make_weights(LLAMA)
    for surgery in (Upcycle(4, noise=0.5), Upcycle(4, drop=0.5), PartitionExperts(4, 2), VirtualGroups(3, 6, 3)):
        assert np.abs(toy.logits(surgery(weights)) - toy.logits(weights)).max() > 1e-3


def test_merged_parts_give_the_logits_of_the_dense_model():
    weights = toy.make_weights(LLAMA)
    merged = MergeExperts()(PartitionExperts(4, 1)(weights))
    np.testing.assert_allclose(toy.logits(merged), toy.logits(weights), rtol=0, atol=1e-5)


def test_expanded_blocks_of_experts_leave_the_function_unchanged():
    weights = Upcycle(4, noise=0.5, router_stddev=1.0)(toy.make_weights(LLAMA))
    grown = ExpandBlocks(num_new=2)(weights)
    assert not grown.leaves[f"{EXPERTS}wo/kernel"].array.read()[[2, 5]].any()
    np.testing.assert_array_equal(toy.logits(grown), toy.logits(weights))


# Draws.


def test_drawn_values_have_the_mean_and_deviation_of_each_layer():
    source = np.stack([np.full((40, 50), 3.0), np.random.default_rng(0).normal(-1, 2, (40, 50))]).astype(np.float32)
    measure = draws.layer_statistics(lazy.from_array(source), max_bytes=64)
    assert measure(0) == (3.0, 0.0)
    np.testing.assert_allclose(measure(1), [source[1].mean(), source[1].std()], rtol=1e-5)
    drawn = draws.normal_like((2, 3, 40, 50), lazy.from_array(source), False, 0, "x").read()
    assert np.all(drawn[0] == 3.0)
    np.testing.assert_allclose([drawn[1].mean(), drawn[1].std()], [-1, 2], atol=0.1)
    assert abs(draws.normal_like((2, 3, 40, 50), lazy.from_array(source), True, 0, "x").read()[1].mean()) < 0.1


# Errors.

BIASED = toy.FAMILIES["neox"]


@pytest.mark.parametrize(
    ("surgery", "architecture", "message"),
    [
        (lambda: VirtualGroups(5, 10, 5), LLAMA, "VirtualGroups.granularity is 5, which does not divide mlp_dim 12; 4"),
        (lambda: VirtualGroups(3, 8, 3), LLAMA, "VirtualGroups.granularity is 3, which does not divide num_experts 8"),
        (lambda: VirtualGroups(3, 6, 3, exact=True), LLAMA, "VirtualGroups.exact needs gates that sum to 1"),
        (
            lambda: VirtualGroups(3, 6, 4, exact=True, normalize_gates=True),
            LLAMA,
            "multiple of granularity 3, not 4",
        ),
        (lambda: PartitionExperts(5, 1), LLAMA, "PartitionExperts.num_experts is 5, which does not divide mlp_dim 12"),
        (lambda: PartitionExperts(4, 5), LLAMA, "num_experts_per_token=5 must lie between 1 and num_experts=4"),
        (lambda: PartitionExperts(4, 1, method="cluster"), LLAMA, "method is 'cluster' (did you mean 'clustered'?)"),
        (lambda: PartitionExperts(4, 1, rescale="gate"), LLAMA, "rescale is 'gate' (did you mean 'gates'?)"),
        (lambda: Upcycle(1), LLAMA, "Upcycle.num_experts is 1; expected a whole number of 2 or more"),
        (lambda: Upcycle(4, 5), LLAMA, "num_experts_per_token=5 must lie between 1 and num_experts=4"),
        (lambda: Upcycle(4, drop=1.5), LLAMA, "Upcycle.drop is 1.5; expected a number from 0 to 1"),
        (lambda: Upcycle(4, noise=-1), LLAMA, "Upcycle.noise is -1; expected a number of 0 or above"),
        (lambda: Upcycle(4, router="topk"), LLAMA, "Architecture.router is 'topk'"),
        (lambda: Upcycle(4), BIASED, "the feed-forward layers of this model have biases, and experts have none"),
        (lambda: MergeExperts(), LLAMA, "MergeExperts: this model has no experts"),
        (
            lambda: lambda weights: Upcycle(4)(Upcycle(2)(weights)),
            LLAMA,
            "Upcycle: the model has 2 experts already; MergeExperts makes it dense",
        ),
        (lambda: Upcycle(4, optimizer="keep"), LLAMA, "Upcycle.optimizer is 'keep', but the surgery changes the shape"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(surgery, architecture, message):
    weights = toy.make_weights(architecture, moments=["opt_state/0/mu"])
    with pytest.raises(UserError) as error:
        surgery()(weights)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("surgery", [Upcycle(4), VirtualGroups(3, 6, 3), PartitionExperts(4, 1), MergeExperts()])
def test_experts_need_an_architecture(surgery):
    with pytest.raises(UserError, match="must know the model's architecture"):
        surgery(toy.make_weights(LLAMA, known=False))
