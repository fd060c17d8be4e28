import hashlib
import json
import pickle
import subprocess
import sys

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.vocabulary import (
    SHIPPED,
    load_vocabulary,
    shipped_names,
    tokenizer_files,
    vocabulary_from_files,
)

LOSSLESS = ["bytes", "stdlib_8k"]
AWKWARD = [
    "",
    " ",
    "  two  spaces  ",
    "\ttab\n\n\r\nline\r",
    "\0NUL\0",
    "\u2581 ends in \u2581",
    "\u2581\u2581",
    "\u2585 \u2047 \ufffd \ufeff",
    "caf\u00e9 cafe\u0301 \ufb01 \u00a0\u3000\u2028",
    "[eod]<pad>[S2S]<extra_id_0><unk><0x41>",
    "\U0001f600\U0010ffff",
]


@pytest.fixture(scope="module", params=LOSSLESS)
def lossless(request):
    return load_vocabulary(request.param)


@pytest.fixture(scope="module")
def hugging_face_directory(tmp_path_factory):
    """A byte-level tokenizer as Hugging Face saves it, which truncates, pads, and adds a token in front."""
    directory = tmp_path_factory.mktemp("hf")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<extra_id_0>", "<extra_id_1>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the cat and the dog"] * 3, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


class TestLossless:
    @pytest.mark.parametrize("text", AWKWARD)
    def test_awkward_text_comes_back(self, lossless, text):
        assert lossless.decode(lossless.encode(text)) == text

    @settings(max_examples=300, deadline=None)
    @given(text=st.text(alphabet=st.one_of(st.sampled_from(" \t\n\r\0\u2581[]<>0a"), st.characters(codec="utf-8"))))
    def test_any_text_comes_back(self, lossless, text):
        ids = lossless.encode(text)
        assert lossless.decode(ids) == text
        assert all(0 < i < lossless.size for i in ids)
        assert lossless.encode_batch([text, "x", text]) == [ids, lossless.encode("x"), ids]
        arrays = lossless.encode_arrays([text, "x", text])
        assert [array.tolist() for array in arrays] == [ids, lossless.encode("x"), ids]
        assert {array.dtype.name for array in arrays} == {"int32"}

    def test_lone_surrogates_become_question_marks(self, lossless):
        assert lossless.decode(lossless.encode("a\ud800b")) == "a?b"

    def test_text_never_turns_into_a_control_token(self, lossless):
        controls = {lossless.eod_id, lossless.pad_id, lossless.mode_token_id("[S2S]"), lossless.sentinel_id(0)}
        assert controls.isdisjoint(lossless.encode("[eod]<pad>[S2S]<extra_id_0>"))


class TestControlTokens:
    def test_layout(self, lossless):
        assert (lossless.pad_id, lossless.eod_id, lossless.eos_id, lossless.bos_id) == (0, 1, 1, 2)
        assert lossless.num_sentinels >= 100
        assert not lossless.zero_is_text
        modes = [lossless.mode_token_id(mode) for mode in ("[S2S]", "[NLU]", "[NLG]")]
        sentinels = [lossless.sentinel_id(i) for i in range(lossless.num_sentinels)]
        everything = [0, 1, 2, *modes, *sentinels]
        assert len(set(everything)) == len(everything)
        assert all(i < lossless.size for i in everything)
        assert lossless.piece(sentinels[7]) == "<extra_id_7>"
        assert lossless.piece(modes[1]) == "[NLU]"

    def test_leave_nothing_in_decoded_text(self, lossless):
        ids = [lossless.bos_id, *lossless.encode("a b"), lossless.sentinel_id(3), lossless.eod_id, 0]
        assert lossless.decode(ids) == "a b"

    @pytest.mark.parametrize("index", [-1, 10**6])
    def test_sentinels_run_out_with_an_error(self, lossless, index):
        with pytest.raises(UserError, match=f"which has {lossless.num_sentinels}"):
            lossless.sentinel_id(index)
        with pytest.raises(UserError):
            lossless.sentinel_id(lossless.num_sentinels)

    def test_unknown_mode_names_the_nearest(self, lossless):
        with pytest.raises(UserError, match=r"did you mean '\[S2S\]'"):
            lossless.mode_token_id("[S2T]")

    @pytest.mark.parametrize("index", [-1, 10**6])
    def test_ids_outside_are_refused(self, lossless, index):
        with pytest.raises(UserError, match="is outside vocabulary"):
            lossless.decode([1, index])
        with pytest.raises(UserError, match="is outside vocabulary"):
            lossless.piece(index)


class TestBytes:
    def test_ids_of_bytes(self):
        vocabulary = load_vocabulary("bytes")
        assert vocabulary.size == 640
        assert vocabulary.encode("\0a\u00e9") == [8, 8 + 97, 8 + 0xC3, 8 + 0xA9]
        assert vocabulary.piece(8 + 97) == "<0x61>"

    def test_broken_utf8_decodes_to_replacement(self):
        vocabulary = load_vocabulary("bytes")
        assert vocabulary.decode(vocabulary.encode("\u00e9")[:1]) == "\ufffd"


class TestSentencePiece:
    def test_shipped(self):
        assert shipped_names() == ["stdlib_8k"]
        file = SHIPPED / "stdlib_8k" / "tokenizer.model"
        assert file.stat().st_size < 300_000
        vocabulary = load_vocabulary("stdlib_8k")
        assert vocabulary.size == 8192
        assert vocabulary.fingerprint == hashlib.sha256(file.read_bytes()).hexdigest()

    def test_splits_digits_and_keeps_white_space_in_few_pieces(self):
        vocabulary = load_vocabulary("stdlib_8k")
        assert [vocabulary.piece(i) for i in vocabulary.encode("123.5")] == ["1", "2", "3", ".", "5"]
        assert len(vocabulary.encode("    " * 4)) == 1
        assert len(vocabulary.encode("    def encode(self, text):\n        return text\n")) < 16

    def test_by_file_by_directory_and_by_name_are_one(self):
        named = load_vocabulary("stdlib_8k")
        directory = SHIPPED / "stdlib_8k"
        assert load_vocabulary(str(directory)) == named
        assert load_vocabulary(str(directory / "tokenizer.model")) == named
        assert load_vocabulary("bytes") != named

    def test_a_foreign_model_without_our_tokens(self, tmp_path):
        """As Llama's: <unk> 0, a prefix added to every text, no byte fallback here."""
        path = tmp_path / "foreign.model"
        with path.open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(["the cat sat on the mat [S2S] <s>"] * 9),
                model_writer=file,
                vocab_size=25,
                hard_vocab_limit=False,
                minloglevel=2,
            )
        vocabulary = load_vocabulary(str(path))
        assert (vocabulary.pad_id, vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id) == (None, 0, 1, 2)
        assert vocabulary.eod_id == vocabulary.eos_id
        assert not vocabulary.zero_is_text
        assert vocabulary.num_sentinels == 0
        with pytest.raises(UserError, match="has no mode token"):
            vocabulary.mode_token_id("[S2S]")


class TestHuggingFace:
    def test_text_alone_becomes_ids(self, hugging_face_directory):
        vocabulary = load_vocabulary(str(hugging_face_directory))
        text = "the cat <s> and\n\t the dog caf\u00e9 \0 \u2581"
        ids = vocabulary.encode(text)
        assert len(ids) > 8
        assert vocabulary.decode(ids) == text
        assert {0, 1}.isdisjoint(ids)
        assert max(ids) < vocabulary.size

    def test_declared_tokens(self, hugging_face_directory):
        vocabulary = load_vocabulary(str(hugging_face_directory / "tokenizer.json"))
        assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.eod_id, vocabulary.pad_id) == (0, 1, 1, None)
        assert vocabulary.num_sentinels == 2
        assert vocabulary.sentinel_id(1) == 3
        assert not vocabulary.zero_is_text
        assert vocabulary.decode([0, *vocabulary.encode("a"), 1]) == "a"

    def test_what_ends_a_document(self, hugging_face_directory, tmp_path):
        vocabulary = load_vocabulary(str(hugging_face_directory))
        assert vocabulary.separator_id == vocabulary.eod_id == 1
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "a": 1}, unk_token="?"))
        tokenizer.save(str(tmp_path / "plain.json"))
        plain = load_vocabulary(str(tmp_path / "plain.json"))
        assert plain.eod_id is None
        with pytest.raises(UserError, match=r"plain\.json' has no token that ends a document \(\[eod\] or end of seq"):
            _ = plain.separator_id

    def test_id_zero_may_be_text(self, hugging_face_directory, tmp_path):
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"!": 0, "a": 5}, unk_token="!"))
        tokenizer.save(str(tmp_path / "plain.json"))
        vocabulary = load_vocabulary(str(tmp_path / "plain.json"))
        assert vocabulary.zero_is_text
        assert vocabulary.size == 6
        assert vocabulary.piece(3) == "<unused_3>"

    def test_fingerprint_covers_the_declared_tokens(self, hugging_face_directory, tmp_path):
        (tmp_path / "tokenizer.json").write_text((hugging_face_directory / "tokenizer.json").read_text())
        bare = load_vocabulary(str(tmp_path))
        assert bare != load_vocabulary(str(hugging_face_directory))

    def test_absent_package_names_the_extra(self, hugging_face_directory, monkeypatch):
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(UserError, match=r"pip install t5x_scale\[hf\]"):
            load_vocabulary(str(hugging_face_directory))


class TestBadInput:
    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("byte", "did you mean 'bytes'"),
            ("stdlib_8", "did you mean 'stdlib_8k'"),
            ("{}/no/tokenizer.model", "no such vocabulary file"),
            ("{}/tokenizer.modle", "did you mean 'tokenizer.model'"),
            ("{}/notes.txt", "is no vocabulary"),
            ("{}/empty", "holds neither"),
            ("{}/tokenizer.model", "is not a SentencePiece model"),
            ("{}/nothing.model", "is not a SentencePiece model"),
            ("{}/broken.json", "is not a Hugging Face tokenizer"),
            ("{}/binary.json", "is not a Hugging Face tokenizer"),
            ("{}/bad_config", "tokenizer_config.json is not valid JSON"),
        ],
    )
    def test_one_line_that_says_what(self, tmp_path, spec, message):
        (tmp_path / "notes.txt").write_text("x")
        (tmp_path / "empty").mkdir()
        (tmp_path / "tokenizer.model").write_bytes(b"no model at all")
        (tmp_path / "nothing.model").write_bytes(b"")
        (tmp_path / "broken.json").write_text('{"model": 3}')
        (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
        (tmp_path / "bad_config").mkdir()
        (tmp_path / "bad_config" / "tokenizer.json").write_text("{}")
        (tmp_path / "bad_config" / "tokenizer_config.json").write_text("{")
        with pytest.raises(UserError, match=message) as caught:
            load_vocabulary(spec.format(tmp_path))
        assert "\n" not in str(caught.value)


def test_files_in_memory_are_as_good_as_a_directory(hugging_face_directory):
    for spec in ("stdlib_8k", str(hugging_face_directory)):
        loaded, made = load_vocabulary(spec), vocabulary_from_files(tokenizer_files(spec))
        assert made == loaded
        assert (made.size, made.eos_id) == (loaded.size, loaded.eos_id)
        assert made.encode("the cat") == loaded.encode("the cat")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b""}, "neither tokenizer.model nor tokenizer.json"),
        ({"tokenizer.model": b"no"}, "the model's tokenizer is not a SentencePiece model"),
        ({"tokenizer.json": b"{}"}, "the model's tokenizer is not a Hugging Face tokenizer"),
    ],
)
def test_files_that_are_no_tokenizer_are_refused(files, message):
    with pytest.raises(UserError, match=message):
        vocabulary_from_files(files)


def test_travels_to_other_processes(lossless):
    copy = pickle.loads(pickle.dumps(lossless))
    assert copy == lossless
    assert copy.encode("a b") == lossless.encode("a b")


def test_needs_neither_tensorflow_nor_jax():
    code = (
        "import sys; from t5x_scale.data.vocabulary import load_vocabulary; load_vocabulary('stdlib_8k').encode('a');"
        "load_vocabulary('bytes'); print({'tensorflow', 'seqio', 'jax', 'tokenizers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
