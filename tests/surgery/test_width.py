"""Width: functions that stay, moments that are those of the new tensors, and what cannot be widened."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.surgery.width import WidenEmbed, WidenMlp

LLAMA = toy.FAMILIES["llama"]
MU, NU = "opt_state/0/mu", "opt_state/0/nu"


def check_function_stays(surgery, weights):
    """The widened model has its architecture's shapes and the logits it had, to 1e-5 of the largest.

    Moving each parameter by one unit in its last place moves the logits of these models by 5e-6 of the largest.
    """
    wide = surgery(weights)
    expected = {path: shape for path, (shape, _) in toy.tensors(wide.architecture).items()}
    assert toy.shapes(wide.leaves) == expected
    before = toy.logits(weights)
    np.testing.assert_allclose(toy.logits(wide), before, atol=1e-5 * np.abs(before).max(), rtol=0)
    return wide


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("palm", {"initialise": "normal"}),
        ("neox", {}),
        ("neox", {"initialise": "normal"}),
        ("neox", {"how": "split"}),
        ("gemma", {"how": "split"}),
    ],
)
def test_more_neurons_change_nothing(family, settings):
    weights = toy.make_weights(toy.FAMILIES[family])
    wide = check_function_stays(WidenMlp(29, **settings), weights)
    assert wide.architecture == toy.FAMILIES[family].with_config(mlp_dim=29)
    assert all((toy.read(wide.leaves)[path] != 0).any() for path in wide.leaves)


@settings(deadline=None, max_examples=30)
@given(size=st.integers(13, 50), how=st.sampled_from(["zero", "split"]), dtype=st.sampled_from(["f4", "bfloat16"]))
def test_the_old_neurons_stay_or_are_shared_out(size, how, dtype):
    weights = toy.make_weights(LLAMA, dtype=lazy.to_dtype(dtype))
    before, after = (toy.read(w.leaves) for w in (weights, WidenMlp(size, how=how)(weights)))
    inputs, outputs = "decoder/layers/mlp/wi_0/kernel", "decoder/layers/mlp/wo/kernel"
    copies = np.arange(size) % 12
    np.testing.assert_array_equal(after[inputs], before[inputs][..., copies])
    if how == "zero":
        np.testing.assert_array_equal(after[outputs][:, :12], before[outputs])
        assert not after[outputs][:, 12:].any()
    else:
        sums = np.stack([after[outputs][:, copies == n].astype("f4").sum(1) for n in range(12)], 1)
        tolerance = 1e-6 if dtype == "f4" else 2**-8
        np.testing.assert_allclose(sums, before[outputs].astype("f4"), rtol=tolerance)


def test_split_neurons_have_the_moments_of_their_new_gradients():
    weights = toy.with_gradients(toy.make_weights(LLAMA))
    wide = WidenMlp(31, how="split")(weights)
    expected = toy.gradients(wide)
    for path, value in expected.items():
        np.testing.assert_allclose(wide.moments[MU][path].array.read(), value, rtol=1e-3, atol=1e-4, err_msg=path)
        np.testing.assert_allclose(wide.moments[NU][path].array.read(), value**2, rtol=2e-3, atol=1e-4, err_msg=path)


def test_noise_tells_copies_apart_and_leaves_the_first_alone():
    weights = toy.make_weights(LLAMA)
    path = "decoder/layers/mlp/wi_1/kernel"
    quiet, noisy, again, other = (
        WidenMlp(24, how="split", noise=noise, seed=seed)(weights).leaves[path].array.read()
        for noise, seed in ((0.0, 0), (0.1, 0), (0.1, 0), (0.1, 1))
    )
    np.testing.assert_array_equal(noisy, again)
    np.testing.assert_array_equal(noisy[..., :12], quiet[..., :12])
    deviation = (noisy - quiet)[..., 12:].std() / quiet.std()
    assert 0.08 < deviation < 0.12
    assert (other[..., 12:] != noisy[..., 12:]).all()


def test_experts_are_widened_alike():
    architecture = toy.make_architecture(num_experts=2, num_experts_per_token=1)
    wide = WidenMlp(20)(toy.make_weights(architecture))
    assert wide.leaves["decoder/layers/mlp/experts/wi_0/kernel"].shape == (4, 2, 8, 20)
    details = [wide.leaves[f"decoder/layers/mlp/experts/{name}/kernel"].origin.detail for name in ("wi_0", "wo")]
    assert details == ["8 neurons copied", "8 neurons with zero output"]
    assert not wide.leaves["decoder/layers/mlp/experts/wo/kernel"].array.read()[:, :, 12:].any()
    assert wide.leaves["decoder/layers/mlp/router/kernel"].origin.kind == "restored"


@pytest.mark.parametrize(
    ("family", "dim", "epsilon"), [("llama", 9, 1e-2), ("llama", 32, 1e-6), ("gemma", 12, 1e-6), ("gemma", 32, 1e-2)]
)
def test_a_wider_stream_changes_nothing(family, dim, epsilon):
    architecture = dataclasses.replace(toy.FAMILIES[family], norm_epsilon=epsilon)
    weights = toy.make_weights(architecture)
    wide = check_function_stays(WidenEmbed(dim), weights)
    assert wide.architecture.norm_epsilon == pytest.approx(epsilon * 8 / dim)


def test_a_wider_stream_with_learned_positions_and_experts_less_norms():
    architecture = dataclasses.replace(LLAMA, positions="learned", max_length=16, tied=True)
    check_function_stays(WidenEmbed(20), toy.make_weights(architecture))


def test_powers_of_four_are_exact_in_bfloat16():
    weights = toy.make_weights(toy.FAMILIES["llama"], dtype=ml_dtypes.bfloat16)
    wide = WidenEmbed(32)(weights)
    for path, values in toy.read(weights.leaves).items():
        found = toy.read(wide.leaves)[path]
        part = found[tuple(slice(0, size) for size in values.shape)].astype("f4")
        np.testing.assert_array_equal(part, values.astype("f4") * (0.5 if path.endswith("norm/scale") else 1.0))


def test_a_wider_stream_keeps_the_moments_of_what_there_was():
    weights = toy.with_gradients(toy.make_weights(LLAMA))
    wide = WidenEmbed(18)(weights)
    expected = toy.gradients(wide)
    for path, leaf in weights.leaves.items():
        old = tuple(slice(0, size) for size in leaf.shape)
        for slot, power in ((MU, 1), (NU, 2)):
            found = wide.moments[slot][path].array.read()
            np.testing.assert_allclose(found[old], expected[path][old] ** power, rtol=2e-3, atol=1e-3, err_msg=path)
        assert wide.moments[MU][path].array.read().size == expected[path].size


def test_new_features_learn_from_the_first_step():
    """What writes to them has gradients, although nothing has been written yet."""
    found = toy.gradients(WidenEmbed(12)(toy.make_weights(LLAMA)))
    assert (found["decoder/layers/mlp/wo/kernel"][..., 8:] != 0).all()
    assert (found["token_embedder/embedding"][1:19, 8:] != 0).any()
    found = toy.gradients(WidenMlp(20)(toy.make_weights(LLAMA)))
    assert (found["decoder/layers/mlp/wo/kernel"][:, 12:] != 0).all()


@pytest.mark.parametrize(
    ("surgery", "architecture", "message"),
    [
        (lambda: WidenMlp(12), LLAMA, "WidenMlp.mlp_dim is 12; the model has 12 neurons already"),
        (lambda: WidenMlp(24, how="halve"), LLAMA, "WidenMlp.how is 'halve'"),
        (lambda: WidenMlp(24, noise=-1.0), LLAMA, "WidenMlp.noise is -1.0"),
        (lambda: WidenMlp(24, optimizer="keep"), LLAMA, "the surgery changes the shape of"),
        (lambda: WidenEmbed(8), LLAMA, "WidenEmbed.embed_dim is 8; the model has 8 already"),
        (lambda: WidenEmbed(16), toy.FAMILIES["palm"], "LayerNorm"),
        (lambda: WidenEmbed(16), toy.FAMILIES["qwen"], "norms of queries and keys"),
        (lambda: WidenEmbed(16), dataclasses.replace(LLAMA, positions="relative"), "relative positions"),
    ],
)
def test_what_does_not_fit_is_refused(surgery, architecture, message):
    with pytest.raises(UserError, match=message):
        surgery()(toy.make_weights(architecture, moments=[MU]))


def test_unknown_architectures_are_refused():
    with pytest.raises(UserError, match="WidenMlp must know the model's architecture"):
        WidenMlp(24)(toy.make_weights(LLAMA, known=False))
