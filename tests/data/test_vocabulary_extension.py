"""Tokenizers that grow: the same ids in every file, and no text that encodes otherwise."""

import json
import pathlib
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from t5x_scale.core.errors import UserError
from t5x_scale.data.vocabulary import SHIPPED, load_vocabulary, vocabulary_from_files
from t5x_scale.data.vocabulary_extension import extend_tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

import small_tokenizers
from small_tokenizers import SAMPLES, byte_level_files, llama_files, special

NAMES = ["[S2S]", "[NLU]", "[NLG]", "<extra_id_0>", "<extra_id_1>"]
FILES = {
    "llama": llama_files,
    "byte level": byte_level_files,
    "model alone": lambda: {"tokenizer.model": small_tokenizers.sentencepiece_model("unigram", llama=False)},
}


def open_each(files):
    """The vocabulary of each file alone."""
    side = {name: content for name, content in files.items() if name not in ("tokenizer.model", "tokenizer.json")}
    kinds = [name for name in ("tokenizer.model", "tokenizer.json") if name in files]
    return [vocabulary_from_files({**side, name: files[name]}, name) for name in kinds]


@pytest.fixture(params=FILES)
def files(request):
    return FILES[request.param]()


class TestExtension:
    def test_ids_follow_the_last_and_every_file_has_them(self, files):
        size = vocabulary_from_files(files).size
        extended, ids = extend_tokenizer(files, NAMES)
        assert ids == {name: size + i for i, name in enumerate(NAMES)}
        for vocabulary in open_each(extended):
            assert vocabulary.size == size + len(NAMES)
            assert {name: vocabulary.control_id(name) for name in NAMES} == ids
            assert [vocabulary.piece(index) for index in ids.values()] == NAMES

    def test_no_text_encodes_otherwise(self, files):
        extended, ids = extend_tokenizer(files, NAMES)
        for before, after in zip(open_each(files), open_each(extended), strict=True):
            assert after.encode_batch(SAMPLES) == before.encode_batch(SAMPLES)
            assert (after.bos_id, after.eos_id, after.unk_id) == (before.bos_id, before.eos_id, before.unk_id)
            assert [after.piece(i) for i in range(before.size)] == [before.piece(i) for i in range(before.size)]
            ids_of_text = after.encode("The cat")
            assert after.decode([ids["[S2S]"], *ids_of_text, ids["<extra_id_1>"]]) == before.decode(ids_of_text)

    def test_again_changes_nothing(self, files):
        extended, ids = extend_tokenizer(files, NAMES)
        assert extend_tokenizer(extended, NAMES) == (extended, ids)
        assert extend_tokenizer(files, []) == (files, {})

    def test_in_steps_is_the_same_as_at_once(self, files):
        first, _ = extend_tokenizer(files, NAMES[:2])
        steps, ids = extend_tokenizer(first, NAMES)
        assert (steps, ids) == extend_tokenizer(files, NAMES)

    def test_the_files_given_are_left_alone(self):
        files = llama_files()
        extend_tokenizer(files, NAMES)
        assert files == llama_files()


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=st.one_of(st.sampled_from(" [S2]<extra_id0>\n"), st.characters(codec="utf-8"))))
def test_any_text_encodes_as_before(text):
    for files in (llama_files(), byte_level_files()):
        extended, _ = _extended(tuple(sorted(files.items())))
        for before, after in zip(open_each(files), open_each(extended), strict=True):
            assert after.encode(text) == before.encode(text)


def _extended(items, cache={}):  # noqa: B006
    return cache.setdefault(items, extend_tokenizer(dict(items), NAMES))


def test_both_files_of_a_directory_agree(tmp_path):
    extended, ids = extend_tokenizer(llama_files(), NAMES)
    for name, content in extended.items():
        (tmp_path / name).write_bytes(content)
    whole = load_vocabulary(str(tmp_path))
    by_json = load_vocabulary(str(tmp_path / "tokenizer.json"))
    assert whole.spec.endswith("tokenizer.model")
    assert whole.size == by_json.size
    assert whole.encode_batch(SAMPLES) == by_json.encode_batch(SAMPLES)
    assert (whole.num_sentinels, by_json.num_sentinels) == (2, 2)
    assert whole.mode_token_id("[NLG]") == by_json.mode_token_id("[NLG]") == ids["[NLG]"]
    assert (whole.eod_id, by_json.eod_id) == (2, 2)  # There is no [eod]: it is the end of a sequence.


def test_the_config_beside_lists_them_too():
    extended, ids = extend_tokenizer(llama_files(), NAMES)
    decoder = json.loads(extended["tokenizer_config.json"])["added_tokens_decoder"]
    assert {entry["content"]: int(index) for index, entry in decoder.items()}.items() >= ids.items()
    assert decoder[str(ids["[S2S]"])] == special("[S2S]")


def test_a_config_that_lists_none_is_left_alone():
    files = byte_level_files()
    assert extend_tokenizer(files, NAMES)[0]["tokenizer_config.json"] == files["tokenizer_config.json"]


def test_the_pieces_are_controls_and_the_rest_of_the_model_is_the_same():
    files = llama_files()
    extended, ids = extend_tokenizer(files, NAMES)
    before, after = (
        sentencepiece_model_pb2.ModelProto.FromString(each["tokenizer.model"]) for each in (files, extended)
    )
    assert [piece.type for piece in after.pieces[500:]] == [3] * 5
    assert after.trainer_spec.vocab_size == len(after.pieces) == 505
    del after.pieces[500:]
    after.trainer_spec.vocab_size = 500
    assert after == before
    tables = [json.loads(each["tokenizer.json"]) for each in (files, extended)]
    added = tables[1]["added_tokens"][3:]
    assert [(entry["id"], entry["content"], entry["special"]) for entry in added] == [(ids[n], n, True) for n in NAMES]
    tables[1]["added_tokens"] = tables[1]["added_tokens"][:3]
    assert tables[0] == tables[1]


class TestTokensThatAreThere:
    def test_keep_their_ids(self):
        shipped = {"tokenizer.model": (SHIPPED / "stdlib_8k" / "tokenizer.model").read_bytes()}
        vocabulary = load_vocabulary("stdlib_8k")
        count = vocabulary.num_sentinels
        extended, ids = extend_tokenizer(shipped, ["[NLG]", f"<extra_id_{count}>", "<extra_id_0>"])
        assert ids == {
            "[NLG]": vocabulary.mode_token_id("[NLG]"),
            f"<extra_id_{count}>": vocabulary.size,
            "<extra_id_0>": vocabulary.sentinel_id(0),
        }
        assert vocabulary_from_files(extended).num_sentinels == count + 1

    def test_in_one_file_alone_come_into_the_other(self):
        """As when somebody gave Llama 2 a token for padding: its SentencePiece model never hears of it."""
        files = llama_files()
        content = json.loads(files["tokenizer.json"])
        content["added_tokens"].append({"id": 500, **special("[PAD]")})
        content["added_tokens"].append({"id": 501, **special("<think>"), "special": False})
        files["tokenizer.json"] = json.dumps(content).encode()
        before = vocabulary_from_files(files)
        extended, ids = extend_tokenizer(files, ["[S2S]", "[PAD]"])
        assert ids == {"[S2S]": 502, "[PAD]": 500}
        by_model, by_json = open_each(extended)
        assert by_model.control_id("[PAD]") == by_json.control_id("[PAD]") == 500
        assert by_model.piece(501) == by_json.piece(501) == "<think>"
        assert by_model.control_id("<think>") is None
        text = "a <think> [PAD]"
        assert by_model.encode(text) == before.encode(text)

    def test_beside_the_model_alone_come_into_it(self):
        files = llama_files()
        del files["tokenizer.json"]
        config = json.loads(files["tokenizer_config.json"])
        config["added_tokens_decoder"]["500"] = special("[PAD]")
        files["tokenizer_config.json"] = json.dumps(config).encode()
        files["added_tokens.json"] = b'{"[PAD]": 500}'
        extended, ids = extend_tokenizer(files, ["[S2S]"])
        assert ids == {"[S2S]": 501}
        assert vocabulary_from_files(extended).control_id("[PAD]") == 500
        assert json.loads(extended["added_tokens.json"]) == {"[PAD]": 500, "[S2S]": 501}

    def test_in_the_model_alone_come_into_the_table(self):
        files = llama_files()
        longer, _ = extend_tokenizer({"tokenizer.model": files["tokenizer.model"]}, ["[S2S]"])
        extended, ids = extend_tokenizer(files | longer, ["[NLG]", "[S2S]"])
        assert ids == {"[NLG]": 501, "[S2S]": 500}
        assert [vocabulary.control_id("[S2S]") for vocabulary in open_each(extended)] == [500, 500]

    def test_controls_among_what_was_learned_become_special(self):
        """Older conversions list the controls of a SentencePiece model only in the vocabulary."""
        longer, _ = extend_tokenizer({"tokenizer.model": small_tokenizers.sentencepiece_model()}, ["[S2S]"])
        content = json.loads(small_tokenizers.llama_json())
        content["model"]["vocab"]["[S2S]"] = 500
        files = longer | {"tokenizer.json": json.dumps(content).encode()}
        _, ids = extend_tokenizer(files, ["[S2S]", "[NLU]"])
        assert ids == {"[S2S]": 500, "[NLU]": 501}
        with pytest.raises(UserError, match=r"'\[S2S\]' is id 500 of tokenizer.json already, and a piece of text"):
            extend_tokenizer({"tokenizer.json": files["tokenizer.json"]}, ["[S2S]"])


class TestRefusals:
    def test_no_tokenizer(self):
        with pytest.raises(UserError, match=r"neither tokenizer\.model nor tokenizer\.json"):
            extend_tokenizer({"vocab.json": b"{}"}, NAMES)

    @pytest.mark.parametrize("names", [["a b"], [""], ["\u2581x"], ["x", "x"]])
    def test_names(self, names):
        with pytest.raises(UserError, match=r"is no name for a control token|is asked for twice"):
            extend_tokenizer(byte_level_files(), names)

    def test_a_piece_of_text(self):
        proto = sentencepiece_model_pb2.ModelProto.FromString(small_tokenizers.sentencepiece_model())
        proto.pieces[450].piece = "xyzzy"
        with pytest.raises(UserError, match=r"'xyzzy' is piece 450 of tokenizer\.model already, of type NORMAL"):
            extend_tokenizer({"tokenizer.model": proto.SerializeToString()}, ["xyzzy"])
        with pytest.raises(UserError, match=r"'e' is id \d+ of tokenizer\.json already, and a piece of text"):
            extend_tokenizer(byte_level_files(), ["e"])

    def test_an_added_token_that_is_not_special(self):
        content = json.loads(small_tokenizers.byte_level_json())
        content["added_tokens"].append({"id": 400, **special("[S2S]"), "special": False})
        with pytest.raises(UserError, match="already, and added, but not special"):
            extend_tokenizer({"tokenizer.json": json.dumps(content).encode()}, ["[S2S]"])

    def test_two_tokenizers(self):
        files = llama_files() | {"tokenizer.json": small_tokenizers.byte_level_json()}
        with pytest.raises(
            UserError, match=r"id 0 is '<unk>' in tokenizer\.model and '<\|endoftext\|>' in tokenizer\.json"
        ):
            extend_tokenizer(files, NAMES)

    def test_a_model_with_more_pieces_of_text(self):
        files = llama_files() | {"tokenizer.json": small_tokenizers.llama_json()}
        proto = sentencepiece_model_pb2.ModelProto.FromString(files["tokenizer.model"])
        proto.pieces.add(piece="xyzzy", score=-900.0, type=1)
        files["tokenizer.model"] = proto.SerializeToString()
        with pytest.raises(UserError, match=r"id 500 is 'xyzzy' in tokenizer\.model and '<unused_500>'"):
            extend_tokenizer(files, NAMES)

    def test_a_table_with_gaps(self):
        content = json.loads(small_tokenizers.byte_level_json())
        vocab = content["model"]["vocab"]
        last = max(vocab, key=vocab.get)
        vocab[last] += 7
        with pytest.raises(UserError, match=r"tokenizer\.json cannot be extended: .*its ids have gaps"):
            extend_tokenizer({"tokenizer.json": json.dumps(content).encode()}, NAMES)

    @pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"])
    def test_damage(self, name):
        with pytest.raises(UserError, match=name):
            extend_tokenizer(llama_files() | {name: b"\xff{}"}, NAMES)
        if name == "tokenizer.json":
            with pytest.raises(UserError, match="it has no vocabulary"):
                extend_tokenizer(llama_files() | {name: b"{}"}, NAMES)
