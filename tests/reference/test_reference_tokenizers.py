"""Extended and exported tokenizers in the hands of `transformers`."""

import pathlib
import sys

import pytest
from transformers import AutoTokenizer

from t5x_scale.data.tokenizer_conversion import with_tokenizer_json
from t5x_scale.data.vocabulary import SHIPPED, load_vocabulary
from t5x_scale.data.vocabulary_extension import extend_tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from small_tokenizers import SAMPLES, byte_level_files, llama_files

NAMES = ["[S2S]", "[NLU]", "[NLG]", "<extra_id_0>", "<extra_id_1>"]


def model_alone():
    files = llama_files()
    del files["tokenizer.json"]
    return files


KINDS = {"llama": llama_files, "byte level": byte_level_files, "model alone": model_alone}


def write(directory, files):
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    # As a model's directory has it: it decides which class a tokenizer is opened with.
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


@pytest.fixture(params=KINDS)
def pair(request, tmp_path):
    files = KINDS[request.param]()
    extended, ids = extend_tokenizer(files, NAMES)
    return write(tmp_path / "before", files), write(tmp_path / "after", extended), ids


def test_new_tokens_have_their_ids(pair):
    _, after, ids = pair
    tokenizer = AutoTokenizer.from_pretrained(after)
    assert tokenizer.convert_tokens_to_ids(NAMES) == list(ids.values())
    assert len(tokenizer) == load_vocabulary(str(after)).size
    for name, index in ids.items():
        assert tokenizer.encode(name, add_special_tokens=False) == [index]
    text = tokenizer.decode(
        [*ids.values(), *tokenizer.encode("The cat", add_special_tokens=False)], skip_special_tokens=True
    )
    assert text.strip() == "The cat"


def test_other_text_encodes_as_before(pair):
    before, after, _ = pair
    old, new = AutoTokenizer.from_pretrained(before), AutoTokenizer.from_pretrained(after)
    for text in SAMPLES:
        if not any(name in text for name in NAMES):
            assert new.encode(text) == old.encode(text)
    assert (new.bos_token_id, new.eos_token_id) == (old.bos_token_id, old.eos_token_id)


def test_our_vocabulary_agrees(pair):
    """But for texts that begin with a space: there `transformers` leaves out the space that SentencePiece adds."""
    _, after, _ = pair
    tokenizer, vocabulary = AutoTokenizer.from_pretrained(after), load_vocabulary(str(after))
    for text in SAMPLES:
        added = any(name in text for name in (*NAMES, "</s>"))
        if not added and not (text.startswith(" ") and (after / "tokenizer.model").exists()):
            assert vocabulary.encode(text) == tokenizer.encode(text, add_special_tokens=False)


def test_a_lossless_model_is_used_as_it_is_meant(tmp_path):
    files = with_tokenizer_json({"tokenizer.model": (SHIPPED / "stdlib_8k" / "tokenizer.model").read_bytes()})
    tokenizer = AutoTokenizer.from_pretrained(write(tmp_path / "ours", files))
    vocabulary = load_vocabulary("stdlib_8k")
    assert len(tokenizer) == vocabulary.size
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (vocabulary.bos_id, vocabulary.eos_id)
    for text in [*SAMPLES, "\u2581 \u2581", "<0x41>"]:
        if "[" not in text:
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert ids == vocabulary.encode(text)
            assert tokenizer.decode(ids) == text
    assert tokenizer.encode("[NLG]", add_special_tokens=False) == [vocabulary.mode_token_id("[NLG]")]
