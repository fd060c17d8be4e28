"""Whole directories: written here and loaded there, written there and read here."""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from t5x_scale.data.vocabulary_extension import extend_tokenizer
from t5x_scale.interop.reader import read_hugging_face
from t5x_scale.interop.safetensors_files import read_tensors
from t5x_scale.interop.writer import write_hugging_face

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

import small_tokenizers

NAMES = ["[S2S]", "[NLU]", "[NLG]", "<extra_id_0>"]


def save_llama(directory):
    config = LlamaConfig(
        vocab_size=523,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config.temperature = 0.6
    model.generation_config.do_sample = True
    model.save_pretrained(directory, max_shard_size="20KB")
    assert (directory / "model.safetensors.index.json").exists()
    for name, content in small_tokenizers.llama_files().items():
        (directory / name).write_bytes(content)


def contents(directory):
    return {name: (array.shape, array.dtype, array.read().tobytes()) for name, array in read_tensors(directory).items()}


def test_in_and_out_is_the_same_model(tmp_path):
    save_llama(tmp_path / "theirs")
    write_hugging_face(tmp_path / "ours", read_hugging_face(tmp_path / "theirs"), max_shard_bytes=20_000)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    model, again = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.bfloat16) for name in ("theirs", "ours")
    )
    ids = torch.randint(0, 523, (2, 17))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.generation_config.temperature == 0.6
    assert again.config.eos_token_id == 2
    prompt = AutoTokenizer.from_pretrained(tmp_path / "ours")("The quick brown", return_tensors="pt")
    assert again.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt["input_ids"].shape[1]


def test_with_a_tokenizer_that_grew_into_the_padding(tmp_path):
    save_llama(tmp_path / "theirs")
    weights = read_hugging_face(tmp_path / "theirs")
    tokenizer, ids = extend_tokenizer(weights.tokenizer, NAMES)
    write_hugging_face(tmp_path / "ours", weights.replace(tokenizer=tokenizer), vocab_size=504, dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert len(loaded) == model.config.vocab_size == model.get_input_embeddings().num_embeddings == 504
    assert loaded.convert_tokens_to_ids(NAMES) == list(ids.values()) == [500, 501, 502, 503]
    assert json.loads((tmp_path / "ours" / "generation_config.json").read_text())["temperature"] == 0.6
