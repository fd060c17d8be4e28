"""Models from a Hugging Face directory to `Weights` and back: the same bytes, and what does not fit is refused."""

import dataclasses
import json
import pathlib
import sys

import ml_dtypes
import numpy as np
import pytest

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.core.leaves import Leaf, Origin
from t5x_scale.data.vocabulary import load_vocabulary, tokenizer_files
from t5x_scale.interop.hugging_face import is_hugging_face
from t5x_scale.interop.model_card import make_model_card
from t5x_scale.interop.reader import read_hugging_face
from t5x_scale.interop.safetensors_files import read_tensors
from t5x_scale.interop.writer import trim_vocabulary, write_hugging_face
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.assembly import axes_of, shapes_of
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.weights import Weights

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

import small_tokenizers

ROWS = 512


def make_weights(rows=ROWS, dtype=ml_dtypes.bfloat16, **changes):
    config = ModelConfig(3, 8, 14, 4, 2, 6, rows, param_dtype=np.dtype(dtype).name)
    architecture = Architecture(config, max_length=64, **changes)
    generator, axes = np.random.default_rng(0), axes_of(architecture)
    leaves = {
        path: Leaf(lazy.from_array(generator.normal(size=shape).astype(dtype)), axes[path], Origin("restored", path))
        for path, shape in shapes_of(architecture).items()
    }
    return Weights(leaves, architecture, tokenizer=small_tokenizers.llama_files())


def contents(weights):
    return {path: leaf.array.read().tobytes() for path, leaf in weights.leaves.items()}


def tensor_bytes(directory):
    return {name: (array.dtype, array.shape, array.read().tobytes()) for name, array in read_tensors(directory).items()}


@pytest.fixture
def model(tmp_path):
    write_hugging_face(tmp_path / "model", make_weights())
    return tmp_path / "model"


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"dtype": np.float32, "attention_bias": True}])
def test_weights_come_back_and_go_out_again_as_the_same_bytes(tmp_path, changes):
    weights = make_weights(**changes)
    write_hugging_face(tmp_path / "one", weights, max_shard_bytes=4000, max_block_bytes=300)
    assert len(list((tmp_path / "one").glob("model-*.safetensors"))) > 2
    assert is_hugging_face(tmp_path / "one")
    found = read_hugging_face(tmp_path / "one")
    assert contents(found) == contents(weights)
    assert found.tokenizer.items() >= weights.tokenizer.items()
    assert found.recipe[0]["read"] == "one"
    write_hugging_face(tmp_path / "two", found)
    assert tensor_bytes(tmp_path / "one") == tensor_bytes(tmp_path / "two")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two")]
    assert configs[0] == configs[1]


def test_the_family_they_were_read_from_is_the_one_they_are_written_as(tmp_path):
    write_hugging_face(tmp_path / "one", make_weights(), family="mistral")
    found = read_hugging_face(tmp_path / "one")
    write_hugging_face(tmp_path / "two", found)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["model_type"] == "mistral"
    changed = found.replace(
        architecture=dataclasses.replace(found.architecture, embedding_scale=8**0.5, norm_offset=1.0)
    )
    write_hugging_face(tmp_path / "three", changed.replace(recipe=(*found.recipe, {"surgery": "scale"})))
    assert json.loads((tmp_path / "three" / "config.json").read_text())["model_type"] == "gemma"


class TestSpecialIds:
    def test_come_from_the_tokenizer(self, model):
        config = json.loads((model / "config.json").read_text())
        assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, None)
        assert json.loads((model / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": 2}

    def test_of_a_generation_config_come_first_and_the_rest_of_it_travels(self, model, tmp_path):
        stated = {"eos_token_id": [2, 5], "temperature": 0.6}
        (model / "generation_config.json").write_text(json.dumps(stated))
        weights = read_hugging_face(model)
        tokenizer_directory = tmp_path / "tokenizer"  # As a checkpoint of ours keeps it.
        tokenizer_directory.mkdir()
        for name, content in weights.tokenizer.items():
            (tokenizer_directory / name).write_bytes(content)
        weights = weights.replace(tokenizer=tokenizer_files(str(tokenizer_directory)))
        write_hugging_face(tmp_path / "again", weights)
        assert json.loads((tmp_path / "again" / "generation_config.json").read_text()) == stated
        assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == [2, 5]

    def test_without_a_tokenizer_are_not_the_familys(self, tmp_path):
        write_hugging_face(tmp_path / "model", make_weights().replace(tokenizer={}))
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        assert (config["bos_token_id"], config["eos_token_id"]) == (None, None)
        assert not (tmp_path / "model" / "generation_config.json").exists()


class TestTokenizers:
    def test_too_large_for_the_embedding_when_read(self, tmp_path):
        weights = make_weights(rows=499).replace(tokenizer={})
        write_hugging_face(tmp_path / "model", weights)
        for name, content in small_tokenizers.llama_files().items():
            (tmp_path / "model" / name).write_bytes(content)
        with pytest.raises(
            UserError, match=r"tokenizer.model has 500 ids, the embedding 499 rows: id 499, '.+', has none"
        ):
            read_hugging_face(tmp_path / "model")

    def test_whose_added_token_is_beyond(self, tmp_path):
        content = json.loads(small_tokenizers.llama_json())
        content["added_tokens"].append({"id": 500, **small_tokenizers.special("[pad]")})
        weights = make_weights(rows=500)
        weights = weights.replace(tokenizer={**weights.tokenizer, "tokenizer.json": json.dumps(content).encode()})
        with pytest.raises(UserError, match=r"tokenizer.json has 501 ids, the embedding 500 rows: id 500, '\[pad\]'"):
            write_hugging_face(tmp_path / "model", weights)
        assert list(tmp_path.iterdir()) == []

    def test_that_cannot_be_opened_is_named_and_travels(self, tmp_path, caplog):
        weights = make_weights().replace(tokenizer={"tokenizer.model": b"a rank list"})
        write_hugging_face(tmp_path / "model", weights)
        assert "is not a SentencePiece model" in caplog.text
        assert "no text can be encoded" in caplog.text
        assert read_hugging_face(tmp_path / "model").tokenizer == weights.tokenizer

    def test_can_be_loaded_from_the_export(self, model):
        assert load_vocabulary(str(model)).encode("The cat") != []


class TestVocabularySize:
    @pytest.mark.parametrize("tied", [True, False])
    def test_padding_is_left_out(self, tmp_path, tied):
        weights = make_weights(tied=tied)
        write_hugging_face(tmp_path / "model", weights, vocab_size=500)
        found = read_hugging_face(tmp_path / "model")
        assert found.architecture.config.vocab_size == 500
        table = weights.leaves["token_embedder/embedding"].array.read()
        assert found.leaves["token_embedder/embedding"].array.read().tobytes() == table[:500].tobytes()
        if not tied:
            head = weights.leaves["logits/kernel"].array.read()
            assert found.leaves["logits/kernel"].array.read().tobytes() == head[:, :500].tobytes()

    def test_never_below_the_tokenizer(self, tmp_path):
        with pytest.raises(UserError, match="has 500 ids, the embedding 499 rows"):
            write_hugging_face(tmp_path / "model", make_weights(), vocab_size=499)

    @pytest.mark.parametrize("size", [0, 513])
    def test_never_more_than_there_are(self, size):
        with pytest.raises(UserError, match=f"vocab_size={size} of 512 rows"):
            trim_vocabulary(make_weights(), size)


class TestDtypes:
    def test_rounding_is_to_the_nearest(self, tmp_path):
        weights = make_weights(dtype=np.float32)
        write_hugging_face(tmp_path / "model", weights, dtype="bfloat16")
        found = read_hugging_face(tmp_path / "model")
        expected = weights.leaves["decoder/final_norm/scale"].array.read().astype(ml_dtypes.bfloat16)
        assert found.leaves["decoder/final_norm/scale"].array.read().tobytes() == expected.tobytes()
        assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"

    def test_what_float16_cannot_hold(self, tmp_path):
        weights = make_weights()
        scale = weights.leaves["decoder/final_norm/scale"]
        large = {"decoder/final_norm/scale": scale.changed(lazy.full((8,), "bfloat16", 70000), "initialised")}
        with pytest.raises(UserError, match="'decoder/final_norm/scale' has numbers beyond float16's 65504"):
            write_hugging_face(tmp_path / "model", weights.replace(leaves={**weights.leaves, **large}), dtype="float16")
        assert list(tmp_path.iterdir()) == []

    def test_unknown(self, tmp_path):
        with pytest.raises(UserError, match=r"dtype is 'bfloat'.*did you mean 'bfloat16'"):
            write_hugging_face(tmp_path / "model", make_weights(), dtype="bfloat")


class TestCard:
    def make(self, **facts):
        weights = make_weights().replace(recipe=({"read": "mini"}, {"surgery": "DepthUpscale", "removed": 8}))
        return make_model_card("mini-solar", weights, {"model_type": "llama"}, facts)

    def test_says_what_is_on_record(self):
        card = self.make(tokens_trained=1_300_000, license="apache-2.0", data="web | code")
        assert card.startswith('---\nlibrary_name: "transformers"\nlicense: "apache-2.0"\ntags: ["t5x_scale"]\n---\n')
        assert "\n# mini-solar\n" in card
        assert "\n1. read mini\n2. surgery DepthUpscale, removed 8\n" in card
        assert "- tokens trained on with t5x_scale: 1,300,000\n- data: web \\| code\n" in card
        assert "| `num_layers` | 3 |" in card
        assert "restored from token_embedder/embedding" in card
        assert "13 parameters" not in card

    @pytest.mark.parametrize(
        ("count", "said"), [(20, "<extra_id_18>, <extra_id_19>"), (100, "<extra_id_0> and 99 more")]
    )
    def test_many_names_are_counted(self, count, said):
        weights = make_weights().replace(recipe=({"added": [f"<extra_id_{i}>" for i in range(count)]},))
        card = make_model_card("mini", weights, {})
        assert f"{said}\n" in card
        assert ("<extra_id_1>," in card) == (count == 20)

    def test_claims_nothing_that_is_not(self):
        card = self.make(license=None)
        assert "license" not in card
        assert "tokens trained on with t5x_scale: not on record" in card
        assert "claims nothing" in card

    def test_stands_in_the_export(self, model):
        card = (model / "README.md").read_text()
        count = sum(leaf.array.size for leaf in make_weights().leaves.values())
        assert f"of {count:,} parameters (bfloat16) in the `llama` format" in card


def test_a_checkpoint_whose_architecture_is_not_known(tmp_path):
    with pytest.raises(UserError, match="does not say what its model computes"):
        write_hugging_face(tmp_path / "model", make_weights().replace(architecture=None))
