"""Vocabulary: rows and tokens together, back and forth, and every row accounted for."""

import json

import ml_dtypes
import numpy as np
import pytest
import sentencepiece
import tokenizers
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import lazy
from t5x_scale.core.errors import UserError
from t5x_scale.data.vocabulary import tokenizer_files, vocabulary_from_files
from t5x_scale.surgery import vocabulary_rows
from t5x_scale.surgery.vocabulary import ExtendVocabulary, PadVocabulary, RemapVocabulary, ResizeVocabulary

TABLE, HEAD = "token_embedder/embedding", "logits/kernel"
SLOTS = ["opt_state/0/mu", "opt_state/0/nu"]
MODES = ["[S2S]", "[NLU]", "[NLG]"]


def train(directory, text, size, kind="unigram"):
    (directory / "text").write_text(text)
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "text"),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=size,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return str(directory / "tokenizer.model")


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A vocabulary of 15 ids: three control tokens, the space, and letters."""
    return train(tmp_path_factory.mktemp("letters"), "the cat had a rag and io\n" * 20, 15, "char")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A vocabulary of whole words over some of the same letters, and some others."""
    path = tmp_path_factory.mktemp("words")
    return train(path, "the cat had the hat\nthe cat had a car\nodd dogs dig\n" * 20, 40)


@pytest.fixture(scope="module")
def json_files():
    """The files of a byte-level tokenizer, as Hugging Face saves them."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=270, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the cat and the dog"] * 3, trainer)
    config = json.dumps({"eos_token": "</s>"}).encode()
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": config}


def make_weights(spec, rows=None, tied=False, **options):
    files = spec if isinstance(spec, dict) else tokenizer_files(spec)
    size = vocabulary_from_files(files).size
    architecture = toy.make_architecture({"tied": tied}, vocab_size=rows or size, num_layers=1)
    return toy.make_weights(architecture, **options).replace(tokenizer=files), size


def table(weights, path=TABLE):
    values = weights.leaves[path].array.read().astype(np.float32)
    return values.T if path == HEAD else values


def test_padding_is_used_before_a_table_grows(letters):
    weights, size = make_weights(letters, rows=24)
    assert size == 15
    extended = ExtendVocabulary(ul2=True, num_sentinels=4)(weights)
    assert extended.architecture.config.vocab_size == 24
    before, after = table(weights), table(extended)
    np.testing.assert_array_equal(after[:15], before[:15])
    np.testing.assert_array_equal(after[22:], before[22:])
    assert (after[15:22] != before[15:22]).all()
    vocabulary = vocabulary_from_files(extended.tokenizer)
    assert [vocabulary.mode_token_id(mode) for mode in MODES] == [15, 16, 17]
    assert [vocabulary.sentinel_id(i) for i in range(vocabulary.num_sentinels)] == [18, 19, 20, 21]
    assert extended.recipe[-1]["rows"] == {"kept": 17, "averaged": 0, "from_mean": 7}
    assert extended.recipe[-1]["added"] == [*MODES, *(f"<extra_id_{i}>" for i in range(4))]
    assert extended.leaves[TABLE].origin.render() == (f"grown from params/{TABLE} (rows 15-21: 7 from the mean)")


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_grows_to_a_multiple(json_files, tied):
    weights, size = make_weights(json_files, tied=tied)
    extended = ExtendVocabulary(["<|user|>"], pad_to_multiple=100, noise=0.0)(weights)
    expected = {path: shape for path, (shape, _) in toy.tensors(extended.architecture).items()}
    assert toy.shapes(extended.leaves) == expected
    for path in (TABLE,) if tied else (TABLE, HEAD):
        before, after = table(weights, path), table(extended, path)
        assert after.shape == (300, 8)
        np.testing.assert_array_equal(after[:size], before)
        np.testing.assert_allclose(after[size], before.mean(0), rtol=1e-5, atol=1e-7)
    assert all(extended.leaves[path] is leaf for path, leaf in weights.leaves.items() if path not in (TABLE, HEAD))
    before, after = toy.logits(weights), toy.logits(extended)
    np.testing.assert_allclose(after[..., :size], before, atol=1e-5, rtol=0)
    # A new row takes at most an average share of the probability.
    shares = np.exp(after.astype(np.float64))
    assert (shares[..., size:] <= shares[..., :size].mean(-1, keepdims=True) * (1 + 1e-5)).all()


def test_the_mean_leaves_out_padding(letters):
    weights, _ = make_weights(letters, rows=20)
    extended = ExtendVocabulary(ul2=True, noise=0.0)(weights)
    np.testing.assert_allclose(table(extended)[15:18], np.broadcast_to(table(weights)[:15].mean(0), (3, 8)), rtol=1e-6)


def test_noise_is_measured_by_the_features(letters):
    weights, _ = make_weights(letters)
    extended = ExtendVocabulary(num_sentinels=2000, noise=0.1)(weights)
    new = table(extended, HEAD)[15:2015]
    before = table(weights, HEAD)
    np.testing.assert_allclose(new.std(0), 0.1 * before.std(0), rtol=0.1)
    np.testing.assert_allclose(new.mean(0), before.mean(0), atol=0.02 * before.std())
    assert np.unique(new, axis=0).shape[0] == 2000
    drawn = table(ExtendVocabulary(num_sentinels=2000, initialise="normal")(weights))[15:2015]
    np.testing.assert_allclose(drawn.std(0), table(weights).std(0), rtol=0.1)
    other = table(ExtendVocabulary(num_sentinels=2000, noise=0.1, seed=1)(weights), HEAD)[15:2015]
    assert (other != new).all()


def test_rows_can_be_copied(letters):
    weights, _ = make_weights(letters)
    vocabulary = vocabulary_from_files(weights.tokenizer)
    a, t = (next(i for i in range(15) if vocabulary.piece(i) == piece) for piece in "at")
    one = ExtendVocabulary(["<x>", "<y>"], initialise="copy", copy_from="a", noise=0.0)(weights)
    np.testing.assert_array_equal(table(one)[15:17], table(weights)[[a, a]])
    two = ExtendVocabulary(["<x>", "<y>"], initialise="copy", copy_from={"<x>": "t", "<y>": "</s>"}, noise=0.0)(weights)
    np.testing.assert_array_equal(table(two, HEAD)[15:17], table(weights, HEAD)[[t, vocabulary.eos_id]])
    assert two.recipe[-1]["rows"]["averaged"] == 2


def test_rows_can_be_the_mean_of_subwords(letters):
    weights, _ = make_weights(letters)
    vocabulary = vocabulary_from_files(weights.tokenizer)
    extended = ExtendVocabulary(["cat", "zzz"], initialise="subwords", noise=0.0)(weights)
    ids = [next(i for i in range(15) if vocabulary.piece(i) == piece) for piece in "cat"]
    np.testing.assert_allclose(table(extended)[15], table(weights)[ids].mean(0), rtol=1e-6)
    # Nothing spells this one.
    np.testing.assert_allclose(table(extended)[16], table(weights).mean(0), rtol=1e-6)


def test_tokens_that_are_there_stay(letters, caplog):
    weights, _ = make_weights(letters)
    once = ExtendVocabulary(ul2=True, num_sentinels=2)(weights)
    assert not caplog.records
    twice = ExtendVocabulary(ul2=True, num_sentinels=2)(once)
    assert caplog.messages == ["ExtendVocabulary adds nothing: the tokenizer has '[S2S]' and 4 more already"]
    assert twice.leaves == once.leaves
    assert twice.tokenizer == once.tokenizer
    assert twice.recipe[-1]["added"] == []
    more = ExtendVocabulary(ul2=True, num_sentinels=4, noise=0.0)(once)
    assert more.recipe[-1]["added"] == ["<extra_id_2>", "<extra_id_3>"]
    np.testing.assert_allclose(table(more)[20:22], np.broadcast_to(table(once)[:20].mean(0), (2, 8)), rtol=1e-6)


def test_hugging_face_tokenizers_grow_alike(json_files):
    weights, size = make_weights(json_files)
    extended = ExtendVocabulary(ul2=True, pad_to_multiple=1)(weights)
    assert extended.architecture.config.vocab_size == size + 3
    vocabulary = vocabulary_from_files(extended.tokenizer)
    assert (vocabulary.mode_token_id("[S2S]"), vocabulary.size) == (size, size + 3)
    assert vocabulary.encode("the cat") == vocabulary_from_files(json_files).encode("the cat")


def test_ids_that_only_one_file_has_are_not_new(letters):
    """A token added beside a `tokenizer.model`, as Llama-2's fine-tuned models have, keeps its row."""
    weights, _ = make_weights(letters, rows=16)
    weights = weights.replace(tokenizer={**weights.tokenizer, "added_tokens.json": b'{"[PAD]": 15}'})
    extended = ExtendVocabulary(["<x>"], pad_to_multiple=1)(weights)
    np.testing.assert_array_equal(table(extended)[:16], table(weights))
    assert vocabulary_from_files(extended.tokenizer).control_id("<x>") == 16


def test_moments_of_new_rows(letters):
    weights, _ = make_weights(letters, moments=SLOTS)
    extended = ExtendVocabulary(ul2=True, initialise="subwords", pad_to_multiple=1)(weights)
    for path, axis in ((TABLE, 0), (HEAD, 1)):
        first, second = (np.moveaxis(extended.moments[slot][path].array.read(), axis, 0) for slot in SLOTS)
        old = np.moveaxis(weights.moments[SLOTS[1]][path].array.read(), axis, 0)
        np.testing.assert_array_equal(first[15:], 0.0)
        np.testing.assert_array_equal(second[:15], old)
        np.testing.assert_allclose(second[15:], np.broadcast_to(old.mean(0), (3, 8)), rtol=1e-6)
        kept = np.moveaxis(weights.moments[SLOTS[0]][path].array.read(), axis, 0)
        np.testing.assert_array_equal(first[:15], kept)


@settings(deadline=None, max_examples=20)
@given(more=st.integers(0, 40), dtype=st.sampled_from([np.float32, ml_dtypes.bfloat16]), tied=st.booleans())
def test_growing_and_shrinking_gives_the_same_bytes(letters, more, dtype, tied):
    weights, size = make_weights(letters, dtype=dtype, tied=tied)
    there = ResizeVocabulary(size + more)(weights)
    back = ResizeVocabulary(size)(there)
    assert back.architecture == weights.architecture
    for path, leaf in weights.leaves.items():
        assert back.leaves[path].array.read().tobytes() == leaf.array.read().tobytes()
    assert PadVocabulary(8)(there).architecture.config.vocab_size == -(-(size + more) // 8) * 8


@settings(deadline=None, max_examples=20)
@given(sentinels=st.integers(0, 30), multiple=st.sampled_from([1, 8, 128]), ul2=st.booleans())
def test_extending_and_remapping_back_gives_the_same_bytes(letters, sentinels, multiple, ul2):
    weights, _ = make_weights(letters, moments=SLOTS)
    there = ExtendVocabulary(num_sentinels=sentinels, ul2=ul2, pad_to_multiple=multiple)(weights)
    back = RemapVocabulary(letters, pad_to_multiple=1)(there)
    assert back.tokenizer == weights.tokenizer
    assert back.architecture == weights.architecture
    for path, leaf in weights.leaves.items():
        assert back.leaves[path].array.read().tobytes() == leaf.array.read().tobytes()
        for slot in SLOTS:
            np.testing.assert_array_equal(
                back.moments[slot][path].array.read(), weights.moments[slot][path].array.read()
            )


def test_remapping_keeps_averages_and_begins_anew(letters, words):
    weights, size = make_weights(letters, rows=18)
    remapped = RemapVocabulary(words, pad_to_multiple=16)(weights)
    old, new = vocabulary_from_files(weights.tokenizer), vocabulary_from_files(remapped.tokenizer)
    assert remapped.tokenizer == tokenizer_files(words)
    assert remapped.architecture.config.vocab_size % 16 == 0
    before, after = table(weights), table(remapped)
    by_piece = {old.piece(index): index for index in range(size)}
    counts = {"kept": 0, "averaged": 0, "from_mean": after.shape[0] - new.size}
    for index in range(new.size):
        piece = new.piece(index)
        # The mean over its letters, where the old vocabulary has them all.
        letters_known = [by_piece[letter] for letter in piece if letter in by_piece]
        if piece in by_piece:
            counts["kept"] += 1
            np.testing.assert_array_equal(after[index], before[by_piece[piece]])
        elif len(letters_known) == len(piece):
            counts["averaged"] += 1
            np.testing.assert_allclose(after[index], before[letters_known].mean(0), rtol=1e-5, atol=1e-6)
        elif not letters_known:
            counts["from_mean"] += 1
            np.testing.assert_allclose(after[index], before[:size].mean(0), rtol=1e-5, atol=1e-6)
        else:
            counts["averaged"] += 1
    assert min(counts.values()) > 0
    assert remapped.recipe[-1]["rows"] == counts


def test_remapping_can_do_without_subwords(letters, words):
    weights, size = make_weights(letters)
    remapped = RemapVocabulary(words, initialise="mean")(weights)
    rows = remapped.recipe[-1]["rows"]
    assert rows["averaged"] == 0
    mean = table(weights)[:size].mean(0)
    assert np.isclose(table(remapped), mean, rtol=1e-5, atol=1e-6).all(1).sum() == rows["from_mean"]


def test_blocks_change_nothing(letters, words, monkeypatch):
    weights, _ = make_weights(letters)
    surgeries = [ExtendVocabulary(num_sentinels=9, noise=0.1), RemapVocabulary(words, noise=0.1)]
    whole = [toy.read(surgery(weights).leaves) for surgery in surgeries]
    monkeypatch.setattr(vocabulary_rows, "BLOCK_BYTES", 100)
    monkeypatch.setattr(vocabulary_rows, "DRAWN_ELEMENTS", 5)
    for surgery, expected in zip(surgeries, whole, strict=True):
        for path in (TABLE, HEAD):
            array = surgery(weights).leaves[path].array
            for region in lazy.blocks(array, 60):
                np.testing.assert_allclose(array.read(region), expected[path][region], rtol=1e-6, atol=1e-7)


def test_tables_can_be_padded_without_a_tokenizer(letters):
    weights, _ = make_weights(letters)
    padded = PadVocabulary(8)(weights.replace(tokenizer={"generation_config.json": b"{}"}))
    assert padded.leaves[HEAD].shape == (8, 16)
    np.testing.assert_allclose(table(padded)[15], table(weights).mean(0), rtol=1e-5, atol=1e-7)


def test_nothing_is_read_before_it_is_wanted(letters):
    def refuse(region):
        raise AssertionError("read")

    weights, _ = make_weights(letters)
    leaf = weights.leaves[TABLE]
    unread = lazy.LazyArray(leaf.shape, leaf.array.dtype, refuse)
    weights = weights.replace(leaves={**weights.leaves, TABLE: leaf.changed(unread, "restored")})
    assert ExtendVocabulary(ul2=True)(weights).leaves[TABLE].shape == (128, 8)


def test_a_vocabulary_of_another_size_cannot_keep_its_optimiser(letters):
    weights, _ = make_weights(letters, moments=SLOTS)
    with pytest.raises(UserError, match=r"ExtendVocabulary.optimizer is 'keep'"):
        ExtendVocabulary(ul2=True, optimizer="keep")(weights)
    assert not ExtendVocabulary(ul2=True, optimizer="reset")(weights).moments


def test_what_does_not_fit_is_refused(letters):
    weights, _ = make_weights(letters, rows=20)
    with pytest.raises(UserError, match=r"ResizeVocabulary.vocab_size is 12, and row 12 is the token '.'; .* 15 rows"):
        ResizeVocabulary(12)(weights)
    with pytest.raises(UserError, match="ExtendVocabulary must know the model's tokenizer"):
        ExtendVocabulary(ul2=True)(weights.replace(tokenizer={"generation_config.json": b"{}"}))
    with pytest.raises(UserError, match="must know the model's architecture"):
        PadVocabulary()(weights.replace(architecture=None))
    small, _ = make_weights(letters, rows=14)
    with pytest.raises(UserError, match=r"15 ids and the model 14 rows; .* ResizeVocabulary\(vocab_size=15\)"):
        ExtendVocabulary(ul2=True)(small)
    assert ResizeVocabulary(15)(small).architecture.config.vocab_size == 15
    with pytest.raises(UserError, match="'zebra' is no piece of the model's vocabulary"):
        ExtendVocabulary(["<x>"], initialise="copy", copy_from="zebra")(weights)
    with pytest.raises(UserError, match=r"copy_from says nothing of the new token '<x>' \(did you mean '<xx>'"):
        ExtendVocabulary(["<x>"], initialise="copy", copy_from={"<xx>": "a"})(weights)
    with pytest.raises(UserError, match=r"no such vocabulary file|unknown vocabulary"):
        RemapVocabulary("nowhere")(weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExtendVocabulary("abc"), "tokens is the text 'abc'; expected a list of names"),
        (lambda: ExtendVocabulary(initialise="means"), "did you mean 'mean'"),
        (lambda: ExtendVocabulary(copy_from="a"), "copy_from and initialise = 'copy' need each other"),
        (lambda: ExtendVocabulary(noise=-1.0), "ExtendVocabulary.noise is -1.0"),
        (lambda: PadVocabulary(0), "PadVocabulary.multiple is 0"),
        (lambda: ResizeVocabulary(0), "ResizeVocabulary.vocab_size is 0"),
        (lambda: RemapVocabulary("bytes", initialise="copy"), "RemapVocabulary.initialise is 'copy'"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
