"""T5X checkpoints of decoders in every form, and what cannot be read."""

import logging

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.core import trees
from t5x_scale.core.errors import UserError
from t5x_scale.interop.t5x_reader import is_t5x, read_t5x
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.assembly import axes_of, shapes_of, to_model
from t5x_scale.models.config import ModelConfig
from tests.fakes import t5x_checkpoints as fake

CONFIG = ModelConfig(
    num_layers=12, embed_dim=8, mlp_dim=10, num_heads=2, num_kv_heads=2, head_dim=3, vocab_size=11, dtype="float32"
)
# As T5X's decoders are, but for their positions.
DECODER = Architecture(CONFIG, positions="none", attention_scale=1.0, activation="gelu_tanh")
TIED = Architecture(CONFIG, positions="none", attention_scale=1.0, tied=True, logit_scale=8**-0.5, mlp="plain")
TARGET = fake.make_decoder(CONFIG)


def expected(target, tied=False, gated=True):
    """Our parameters, from T5X's by hand."""
    decoder, c = target["decoder"], CONFIG
    layers = [decoder[f"layers_{layer}"] for layer in range(c.num_layers)]

    def stack(*path):
        parts = []
        for layer in layers:
            for name in path:
                layer = layer[name]
            parts.append(layer)
        return np.stack(parts)

    found = {
        "token_embedder/embedding": decoder["token_embedder"]["embedding"],
        "decoder/final_norm/scale": decoder["decoder_norm"]["scale"],
        "decoder/layers/pre_norm/scale": stack("pre_self_attention_layer_norm", "scale"),
        "decoder/layers/pre_mlp_norm/scale": stack("pre_mlp_layer_norm", "scale"),
    }
    for name in ("query", "key", "value"):
        kernel = stack("self_attention", name, "kernel")
        found[f"decoder/layers/self_attention/{name}/kernel"] = kernel.reshape(12, 8, 2, 3)
    found["decoder/layers/self_attention/out/kernel"] = stack("self_attention", "out", "kernel").reshape(12, 2, 3, 8)
    for name in ("wi_0", "wi_1", "wo") if gated else ("wi", "wo"):
        found[f"decoder/layers/mlp/{name}/kernel"] = stack("mlp", name, "kernel")
    if not tied:
        found["logits/kernel"] = decoder["logits_dense"]["kernel"]
    return found


def check(weights, wanted):
    assert weights.leaves.keys() == wanted.keys()
    axes = axes_of(weights.architecture)
    for path, array in wanted.items():
        leaf = weights.leaves[path]
        assert leaf.array.dtype == array.dtype
        assert leaf.axes == axes[path]
        assert leaf.array.read().tobytes() == array.tobytes(), path


FORMS = {
    "files": lambda path, target: fake.write_legacy(path, target, driver="file"),
    "gfile": lambda path, target: fake.write_legacy(path, target),
    "bucket": lambda path, target: fake.write_legacy(path, target, driver="gcs"),
    "old_path": lambda path, target: fake.write_legacy(path, target, version=1, old_path=True),
    "bare": lambda path, target: fake.write_legacy(path, target, version=0),
    "inline": lambda path, target: fake.write_legacy(
        path, target, inline=fake.flatten({"target": target}), chunked=["target.decoder.decoder_norm.scale"]
    ),
    "chunked": lambda path, target: fake.write_legacy(path, target, chunked=fake.flatten({"target": target})),
    "placeholders": fake.write_placeholders,
    "orbax": fake.write_orbax,
    "orbax_directories": lambda path, target: fake.write_orbax(path, target, use_ocdbt=False),
}


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form(tmp_path, form, scanned):
    FORMS[form](tmp_path / "checkpoint_7", fake.scan(TARGET) if scanned else TARGET)
    for path in (tmp_path / "checkpoint_7", tmp_path):
        assert is_t5x(path)
        weights = read_t5x(path, DECODER)
        check(weights, expected(TARGET))
        assert weights.recipe == ({"read": "checkpoint_7", "format": "T5X"},)
    assert set(weights.dropped) == (set() if form == "placeholders" else {"state"})
    assert weights.leaves["decoder/final_norm/scale"].origin.source == "decoder.decoder_norm.scale"


@pytest.mark.parametrize("version", [2, 3])
def test_bfloat16_in_both_its_forms(tmp_path, version):
    target = fake.make_decoder(CONFIG, dtype=ml_dtypes.bfloat16)
    fake.write_legacy(tmp_path / "checkpoint_1", target, version=version)
    check(read_t5x(tmp_path, DECODER), expected(target))


def test_a_tied_table_beside_the_decoder_and_a_plain_feed_forward_layer(tmp_path):
    target = fake.make_decoder(CONFIG, gated=False, tied=True)
    wanted = expected(target, tied=True, gated=False)
    target["token_embedder"] = target["decoder"].pop("token_embedder")
    fake.write_legacy(tmp_path / "checkpoint_1", target)
    check(read_t5x(tmp_path, TIED), wanted)


def test_layers_scanned_along_dimension_0(tmp_path):
    fake.write_legacy(tmp_path / "checkpoint_1", fake.scan(TARGET, axis=0))
    check(read_t5x(tmp_path, DECODER), expected(TARGET))


def test_the_newest_of_several_is_taken(tmp_path):
    for step in (9, 10):
        fake.write_legacy(tmp_path / f"checkpoint_{step}", fake.make_decoder(CONFIG, seed=step))
    (tmp_path / "checkpoint_11.tmp-1700000000").mkdir()
    weights = read_t5x(tmp_path, DECODER)
    check(weights, expected(fake.make_decoder(CONFIG, seed=10)))
    assert weights.recipe[0]["read"] == "checkpoint_10"


def reference_logits(target, tokens):
    """T5X's decoder in numpy: no scale on attention logits, no bias anywhere, norms without a mean."""
    decoder = target["decoder"]

    def norm(x, scale):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * scale["scale"]

    def heads(x, kernel):
        return (x @ kernel["kernel"]).reshape(len(x), 2, 3)

    x = decoder["token_embedder"]["embedding"][tokens]
    for index in range(CONFIG.num_layers):
        layer = decoder[f"layers_{index}"]
        attention, y = layer["self_attention"], norm(x, layer["pre_self_attention_layer_norm"])
        query, key, value = (heads(y, attention[name]) for name in ("query", "key", "value"))
        scores = np.einsum("qnh,knh->nqk", query, key)
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -1e30)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + np.einsum("nqk,knh->qnh", shares, value).reshape(len(x), -1) @ attention["out"]["kernel"]
        y, mlp = norm(x, layer["pre_mlp_layer_norm"]), layer["mlp"]
        gate = y @ mlp["wi_0"]["kernel"]
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        x = x + (gate * (y @ mlp["wi_1"]["kernel"])) @ mlp["wo"]["kernel"]
    return norm(x, decoder["decoder_norm"]) @ decoder["logits_dense"]["kernel"]


def test_the_model_computes_what_t5x_would(tmp_path):
    fake.write_legacy(tmp_path / "checkpoint_1", TARGET)
    weights = read_t5x(tmp_path, DECODER)
    params = trees.unflatten({path: jnp.asarray(leaf.array.read()) for path, leaf in weights.leaves.items()})
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, 9)
    found = to_model(DECODER).logits(params, {"decoder_input_tokens": jnp.asarray(tokens)[None]})
    np.testing.assert_allclose(found[0], reference_logits(TARGET, tokens), atol=2e-4)


def test_an_encoder_is_refused(tmp_path):
    target = {**TARGET, "encoder": {"encoder_norm": {"scale": np.ones(8, np.float32)}}}
    fake.write_legacy(tmp_path / "checkpoint_1", target)
    with pytest.raises(UserError, match=r"is an encoder-decoder \('encoder.encoder_norm.scale'\)"):
        read_t5x(tmp_path, DECODER)


def test_relative_positions_are_refused(tmp_path):
    decoder = {**TARGET["decoder"], "relpos_bias": {"rel_embedding": np.ones((2, 32), np.float32)}}
    fake.write_legacy(tmp_path / "checkpoint_1", {"decoder": decoder})
    with pytest.raises(UserError, match="T5's bucketed relative positions"):
        read_t5x(tmp_path, DECODER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 13}, r"tensor 'decoder.layers_12.pre_self_attention_layer_norm.scale' \[8\] is missing"),
        ({"num_layers": 11}, r"tensor 'decoder.layers_11.*has no place in the model"),
        ({"mlp_dim": 20}, r"tensor 'decoder.layers_0.mlp.wi_0.kernel' is \[8, 10\] where .* \[8, 20\]"),
        ({"num_kv_heads": 1}, r"tensor 'decoder.layers_0.self_attention.key.kernel' is \[8, 6\] where .* \[8, 3\]"),
    ],
)
def test_shapes_that_do_not_fit_are_named(tmp_path, change, message):
    fake.write_legacy(tmp_path / "checkpoint_1", TARGET)
    with pytest.raises(UserError, match=message):
        read_t5x(tmp_path, DECODER.with_config(**change))


def test_a_model_that_t5x_does_not_have_is_refused(tmp_path):
    fake.write_legacy(tmp_path / "checkpoint_1", TARGET)
    with pytest.raises(UserError, match="block is 'serial'; the model given has 'parallel'"):
        read_t5x(tmp_path, Architecture(CONFIG, block="parallel"))


def test_scales_that_the_tensors_do_not_show_are_said(tmp_path, caplog):
    fake.write_legacy(tmp_path / "checkpoint_1", fake.make_decoder(CONFIG, gated=False, tied=True))
    with caplog.at_level(logging.WARNING, "t5x_scale.interop"):
        read_t5x(tmp_path, TIED)
        assert not caplog.records
        read_t5x(tmp_path, Architecture(CONFIG, positions="none", tied=True, mlp="plain"))
    attention, logits = (record.getMessage() for record in caplog.records)
    assert "multiplies them by 0.5774; set its attention_scale to 1.0" in attention
    assert "embed_dim ** -0.5 = 0.3536" in logits


def test_damage_is_named(tmp_path):
    path = tmp_path / "checkpoint_1"
    fake.write_legacy(path, TARGET)
    name = "target.decoder.layers_3.mlp.wo.kernel"
    content = (path / "checkpoint").read_bytes()
    fake.spoil_json(path / name / ".zarray", lambda array: array.update(shape=[10, 7]))
    with pytest.raises(
        UserError, match=r"'decoder.layers_3.mlp.wo.kernel' of .* is \[10, 7\] where it lies and \[10, 8\]"
    ):
        read_t5x(path, DECODER)
    fake.spoil_json(path / name / ".zarray", lambda array: array.update(shape=[10, 8]))
    (path / name / "0.0").write_bytes(b"torn")
    weights = read_t5x(path, DECODER)
    with pytest.raises(UserError, match=r"'decoder.layers_3.mlp.wo.kernel' of .* cannot be read"):
        weights.leaves["decoder/layers/mlp/wo/kernel"].array.read()
    (path / name / ".zarray").unlink()
    with pytest.raises(UserError, match=r"'decoder.layers_3.mlp.wo.kernel' of .* cannot be read: NOT_FOUND"):
        read_t5x(path, DECODER)
    (path / "checkpoint").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="checkpoint is damaged"):
        read_t5x(path, DECODER)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'model_checkpoint_path: "model.ckpt-1"', "is a TensorFlow checkpoint"),
        (b"\x81\xa7version\x09", "is of version 9; known are 1, 2, 3"),
        (b"\x80", "has no 'target'"),
        (b"\xc1", "is damaged"),
    ],
)
def test_other_files_of_that_name(tmp_path, content, message):
    (tmp_path / "checkpoint").write_bytes(content)
    assert is_t5x(tmp_path)
    with pytest.raises(UserError, match=message):
        read_t5x(tmp_path, DECODER)


def test_what_is_none_of_t5xs(tmp_path):
    with CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1)) as manager:
        manager.save(1, {"params": {"a": jnp.zeros(3)}}, {})
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "1", tmp_path / "absent"):
        assert not is_t5x(path)
    with pytest.raises(UserError, match="is not a T5X checkpoint"):
        read_t5x(tmp_path, DECODER)


def test_shapes_are_those_of_the_architecture(tmp_path):
    fake.write_orbax(tmp_path / "checkpoint_7", TARGET)
    weights = read_t5x(tmp_path, DECODER)
    assert {path: leaf.shape for path, leaf in weights.leaves.items()} == shapes_of(DECODER)
