import functools
import subprocess
import sys

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data import seqio_source
from t5x_scale.data.seqio_source import SeqioVocabulary, iterate_documents, iterate_texts
from t5x_scale.data.vocabulary import SHIPPED, load_vocabulary

seqio = seqio_source.seqio
tf = seqio_source.tf

TEXT = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)
TEXTS = ["first document", "", "caf\u00e9 \u2581\0 \n", "x" * 3000, "last"]
BYTES = load_vocabulary("bytes")
SHIPPED_8K = load_vocabulary("stdlib_8k")


def source_of(columns, splits=("train", "validation")):
    """A source without a seed argument, as many people write them."""

    def make_dataset(split, shuffle_files):
        return tf.data.Dataset.from_tensor_slices(columns)

    return seqio.FunctionDataSource(make_dataset, splits=splits)


@pytest.fixture
def register():
    """Registers a task under a name of its own, for the length of one test."""
    names = []

    def add(columns, features, preprocessors=(), name="source_test_task", source=None):
        names.append(name)
        seqio.TaskRegistry.add(
            name,
            source=source or source_of(columns),
            preprocessors=list(preprocessors),
            output_features=features,
            metric_fns=[],
        )
        return name

    yield add
    for name in names:
        seqio.TaskRegistry.remove(name)


def decoded(task, vocabulary, split="train"):
    return [vocabulary.decode(ids) for ids in iterate_documents(task, split, vocabulary)]


class TestTextTasks:
    @pytest.mark.parametrize("vocabulary", [BYTES, SHIPPED_8K], ids=["bytes", "stdlib_8k"])
    def test_text_becomes_ids_of_the_runs_vocabulary(self, register, vocabulary):
        task = register({"targets": TEXTS}, {"targets": TEXT})
        documents = list(iterate_documents(task, "train", vocabulary))
        assert [vocabulary.decode(ids) for ids in documents] == [text for text in TEXTS if text]
        for ids in documents:
            assert ids.dtype == np.int32
            assert ids.ndim == 1
            assert (ids > 0).all()
            assert vocabulary.eod_id not in ids

    def test_batches_do_not_show(self, register, monkeypatch):
        task = register({"targets": TEXTS * 5}, {"targets": TEXT})
        whole = decoded(task, SHIPPED_8K)
        monkeypatch.setattr(seqio_source.documents, "BATCH_CHARACTERS", 10)
        assert decoded(task, SHIPPED_8K) == whole

    def test_bytes_that_are_no_utf8_are_replaced(self, register):
        task = register({"targets": [b"a\xffb"]}, {"targets": TEXT})
        assert decoded(task, BYTES) == ["a\ufffdb"]

    def test_inputs_and_targets_are_joined(self, register):
        task = register({"inputs": ["2+2=", "1+1="], "targets": ["4", "2"]}, {"inputs": TEXT, "targets": TEXT})
        assert decoded(task, BYTES) == ["2+2=4", "1+1=2"]
        assert list(iterate_texts(task, "train")) == ["2+2=4", "1+1=2"]
        only_inputs = iterate_documents(task, "train", BYTES, feature="inputs")
        assert [BYTES.decode(ids) for ids in only_inputs] == ["2+2=", "1+1="]

    def test_streams(self, register):
        """An endless source gives its first documents."""

        def make_dataset(split, shuffle_files):
            return tf.data.Dataset.from_tensors({"targets": "x" * 1000}).repeat()

        source = seqio.FunctionDataSource(make_dataset, splits=["train"])
        stream = iterate_documents(register(None, {"targets": TEXT}, source=source), "train", BYTES)
        assert [next(stream).size for _ in range(1500)] == [1000] * 1500

    def test_random_preprocessors_give_the_same_every_time(self, register):
        @seqio.map_over_dataset(num_seeds=1)
        def add_number(example, seed):
            number = tf.random.stateless_uniform([], seed, maxval=10**6, dtype=tf.int32)
            return {"targets": tf.strings.join([example["targets"], tf.strings.as_string(number)])}

        task = register({"targets": ["a"] * 9}, {"targets": TEXT}, [add_number])
        once = decoded(task, BYTES)
        assert len(set(once)) > 1
        assert decoded(task, BYTES) == once


class TestTokenisedTasks:
    """T5-style: the preprocessors make ids."""

    def register_tokenised(self, register, vocabulary, add_eos=True, steps=()):
        feature = seqio.Feature(vocabulary, add_eos=add_eos)
        steps = [seqio.preprocessors.tokenize, *steps]
        return register({"targets": TEXTS}, {"targets": feature}, steps)

    @pytest.mark.parametrize("add_eos", [True, False])
    def test_ids_are_taken_as_they_are_without_the_end(self, register, add_eos):
        ours = SeqioVocabulary(SHIPPED_8K)
        task = self.register_tokenised(register, ours, add_eos, [seqio.preprocessors.append_eos])
        documents = list(iterate_documents(task, "train", SHIPPED_8K))
        assert [ids.tolist() for ids in documents] == [SHIPPED_8K.encode(text) for text in TEXTS if text]

    def test_seqios_own_vocabulary_of_the_same_file(self, register):
        file = str(SHIPPED / "stdlib_8k" / "tokenizer.model")
        task = self.register_tokenised(register, seqio.SentencePieceVocabulary(file))
        first = next(iterate_documents(task, "train", SHIPPED_8K))
        assert first.tolist() == SHIPPED_8K.encode(TEXTS[0])

    def test_another_vocabulary_is_refused(self, register):
        task = self.register_tokenised(register, SeqioVocabulary(SHIPPED_8K))
        with pytest.raises(UserError, match=r"SeqioVocabulary\(stdlib_8k\), which is not .* 'bytes'"):
            next(iterate_documents(task, "train", BYTES))
        with pytest.raises(UserError, match="yields ids, not text"):
            next(iterate_texts(task, "train"))

    def test_another_vocabulary_without_a_file_is_refused(self, register):
        task = self.register_tokenised(register, seqio.ByteVocabulary())
        with pytest.raises(UserError, match=r"tokenises feature 'targets' with .*, which is not the run's vocabulary"):
            next(iterate_documents(task, "train", SHIPPED_8K))

    def test_ids_out_of_range_are_refused(self, register):
        feature = seqio.Feature(seqio.PassThroughVocabulary(10**6), add_eos=False)
        task = register({"targets": [[5, 0, 7], [8191, 8192, 1]]}, {"targets": feature})
        stream = iterate_documents(task, "train", SHIPPED_8K)
        with pytest.raises(UserError, match="ids from 1 to 8192 in feature 'targets'"):
            list(stream)
        big_enough = load_vocabulary("stdlib_8k")
        big_enough.size = 8193
        zero_survives = next(iterate_documents(task, "train", big_enough))
        assert zero_survives.tolist() == [5, 0, 7]


class TestSeqioVocabulary:
    @pytest.mark.parametrize("wrapped", [BYTES, SHIPPED_8K], ids=["bytes", "stdlib_8k"])
    def test_agrees_with_what_it_wraps(self, wrapped):
        vocabulary = SeqioVocabulary(wrapped)
        text = "caf\u00e9 12\n"
        ids = wrapped.encode(text)
        assert vocabulary.vocab_size == wrapped.size
        assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.bos_id) == (0, 1, 2)
        assert list(vocabulary.encode(text)) == ids
        assert vocabulary.decode([*ids, 1, ids[0]]) == text
        assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == ids
        batch = tf.constant([[*ids, 1, 0], [*ids, 1, 9]])
        assert [row.decode() for row in vocabulary.decode_tf(batch).numpy()] == [text, text]
        assert vocabulary.decode_tf(batch[0]).numpy().decode() == text

    def test_equality(self):
        assert SeqioVocabulary(BYTES) == SeqioVocabulary(load_vocabulary("bytes"))
        assert SeqioVocabulary(BYTES) != SeqioVocabulary(SHIPPED_8K)

    def test_refuses_a_vocabulary_whose_id_zero_is_text(self, tmp_path):
        tokenizers = pytest.importorskip("tokenizers")
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"!": 0, "a": 1}, unk_token="!"))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(UserError, match="spends id 0 on the text '!'"):
            SeqioVocabulary(load_vocabulary(str(tmp_path)))


class TestNames:
    @pytest.fixture
    def mixtures(self, register):
        for name in ("source_a", "source_b", "source_c"):
            register({"targets": TEXTS}, {"targets": TEXT}, name=name)
        seqio.MixtureRegistry.add("source_inner", [("source_a", 1), ("source_b", lambda task: 3)])
        seqio.MixtureRegistry.add("source_outer", [("source_inner", 2), ("source_c", 6)])
        seqio.MixtureRegistry.add("source_nothing", [("source_a", 0)])
        yield
        for name in ("source_inner", "source_outer", "source_nothing"):
            seqio.MixtureRegistry.remove(name)

    def test_shares(self, mixtures):
        assert seqio_source.task_or_mixture_names("source_a") == {"source_a": 1.0}
        assert seqio_source.task_or_mixture_names("source_inner") == {"source_a": 0.25, "source_b": 0.75}
        nested = seqio_source.task_or_mixture_names("source_outer")
        assert nested == pytest.approx({"source_a": 1 / 16, "source_b": 3 / 16, "source_c": 3 / 4})

    def test_refusals_name_the_nearest(self, mixtures):
        with pytest.raises(UserError, match=r"no task or mixture 'source_inne' \(did you mean 'source_inner'"):
            seqio_source.task_or_mixture_names("source_inne")
        with pytest.raises(UserError, match=r"did you mean .*'source_a'"):
            next(iterate_documents("source_", "train", BYTES))
        with pytest.raises(UserError, match="must not be negative, nor all zero"):
            seqio_source.task_or_mixture_names("source_nothing")


class TestBadInput:
    def test_split_and_feature(self, register):
        task = register({"targets": TEXTS}, {"targets": TEXT})
        with pytest.raises(UserError, match=r"no split 'valid' \(did you mean 'validation'\?\); it has"):
            next(iterate_documents(task, "valid", BYTES))
        with pytest.raises(UserError, match=r"no feature 'target' \(did you mean 'targets'\?\)"):
            next(iterate_documents(task, "train", BYTES, feature="target"))

    @pytest.mark.parametrize("texts", [["", ""], tf.constant([], tf.string)], ids=["empty documents", "none"])
    def test_no_documents(self, register, texts):
        task = register({"targets": texts}, {"targets": TEXT})
        with pytest.raises(UserError, match=f"task '{task}' has no documents in split 'train'"):
            list(iterate_documents(task, "train", BYTES))

    def test_a_source_that_fails(self, register):
        def make_dataset(split, shuffle_files):
            def generate():
                yield {"targets": "fine"}
                raise ValueError("part-7: broken")

            spec = {"targets": tf.TensorSpec([], tf.string)}
            return tf.data.Dataset.from_generator(generate, output_signature=spec)

        source = seqio.FunctionDataSource(make_dataset, splits=["train"])
        task = register(None, {"targets": TEXT}, source=source)
        with pytest.raises(
            UserError, match=r"cannot read task .*, split 'train': ValueError: part-7: broken"
        ) as caught:
            list(iterate_documents(task, "train", BYTES))
        assert "\n" not in str(caught.value)

    def test_missing_file_is_named(self, register, tmp_path):
        source = seqio.TextLineDataSource({"train": str(tmp_path / "absent-*.txt")})
        task = register(None, {"targets": TEXT}, source=source)
        with pytest.raises(UserError, match=r"absent-\*\.txt"):
            next(iterate_documents(task, "train", BYTES))

    def test_features_are_checked_against_their_declaration(self, register):
        wrong_name = register({"text": TEXTS}, {"targets": TEXT}, name="source_wrong_name")
        with pytest.raises(UserError, match="leave no feature 'targets'"):
            next(iterate_documents(wrong_name, "train", BYTES))
        wrong_kind = register({"targets": [[1], [2]]}, {"targets": TEXT}, name="source_wrong_kind")
        with pytest.raises(UserError, match="is int32 of rank 1, but is declared as string of rank 0"):
            next(iterate_documents(wrong_kind, "train", BYTES))


def double(dataset, times=2):
    return dataset.repeat(times)


class TestDescription:
    def test_tells_what_changed(self, register):
        def fingerprint(preprocessors, feature=TEXT, split="train"):
            register({"targets": TEXTS}, {"targets": feature}, preprocessors, name="source_described")
            result = seqio_source.document_source_fingerprint("source_described", split)
            seqio.TaskRegistry.remove("source_described")
            return result

        ids = seqio.Feature(SeqioVocabulary(BYTES))
        other_ids = seqio.Feature(SeqioVocabulary(SHIPPED_8K))
        different = [
            fingerprint([]),
            fingerprint([], split="validation"),
            fingerprint([double]),
            fingerprint([functools.partial(double, times=3)]),
            fingerprint([seqio.preprocessors.tokenize], ids),
            fingerprint([seqio.preprocessors.tokenize], other_ids),
        ]
        assert len(set(different)) == len(different)
        assert fingerprint([functools.partial(double, times=3)]) == different[3]

    def test_names_the_vocabulary_of_a_tokenised_task(self, register):
        feature = seqio.Feature(SeqioVocabulary(BYTES))
        task = register({"targets": TEXTS}, {"targets": feature}, [seqio.preprocessors.tokenize])
        description = seqio_source.describe_document_source(task, "train")
        assert description["tokenised_by"]["targets"] == {
            "name": "SeqioVocabulary(bytes)",
            "size": 640,
            "fingerprint": BYTES.fingerprint,
        }


def test_import_is_silent_and_leaves_accelerators_alone():
    code = (
        "import t5x_scale.data.seqio_source as s, sys; print(s.tf.config.get_visible_devices('GPU'));"
        "print('still here', file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert result.stderr == "still here\n"
