import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data import mapped_array, store_manifest, token_store
from t5x_scale.data.stored_array import StoredArray
from t5x_scale.data.token_store import TokenStore, TokenStoreWriter

EOD = 1


def write(directory, documents, chunk=None, size=1000, fingerprint="v", **options):
    with TokenStoreWriter(
        directory,
        source={"task": "t"},
        vocabulary_fingerprint=fingerprint,
        vocabulary_size=size,
        separator_id=EOD,
        chunk=chunk,
        **options,
    ) as writer:
        for document in documents:
            inputs, targets = document if isinstance(document, tuple) else ([], document)
            writer.add(np.array([*inputs, *targets], np.int64), len(inputs))
    return TokenStore.open(directory)


def joined(documents):
    return [token for document in documents if document for token in [*document, *([EOD] * (document[-1] != EOD))]]


documents_strategy = st.lists(st.lists(st.integers(0, 999), max_size=30), min_size=1, max_size=12).filter(any)


@settings(max_examples=25, deadline=None)
@given(documents=documents_strategy, chunk=st.integers(1, 40), size=st.sampled_from([1000, 100_000]))
def test_round_trip_through_any_chunking(tmp_path_factory, documents, chunk, size):
    store = write(tmp_path_factory.mktemp("store") / "s", documents, chunk, size)
    expected = joined(documents)
    assert store.num_tokens == len(expected)
    assert store.tokens(0, len(expected)).tolist() == expected
    assert store.manifest.dtype == ("uint16" if size == 1000 else "int32")
    assert store.num_documents + store.manifest.empty_documents == len(documents)
    store.verify()
    # Every position belongs to the document it came from.
    kept = [document for document in documents if document]
    for index in range(store.num_documents):
        start, stop = store.document_span(index)
        assert store.tokens(start, stop).tolist() == joined([kept[index]])
        assert store.documents_of(np.array([start, stop - 1])).tolist() == [index, index]


@pytest.fixture(scope="module")
def chunked(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chunked")
    return {chunk: write(directory / str(chunk), [list(range(2, 199))], chunk) for chunk in (9, 40, 500)}


@given(chunk=st.sampled_from([9, 40, 500]), length=st.integers(0, 60), data=st.data())
def test_windows_equal_slices(chunked, chunk, length, data):
    expected = np.append(np.arange(2, 199), EOD)
    starts = np.array(data.draw(st.lists(st.integers(0, 198 - length), max_size=5)), np.int64)
    windows = chunked[chunk].windows(starts, length)
    assert windows.dtype == np.int32
    assert windows.shape == (len(starts), length)
    for start, window in zip(starts, windows, strict=True):
        np.testing.assert_array_equal(window, expected[start : start + length])


def test_the_fingerprint_is_of_the_content(tmp_path):
    documents = [[5, 6], [7]]
    base = write(tmp_path / "a", documents).fingerprint
    # Another cut into files is the same corpus; other tokens, boundaries or vocabularies are not.
    assert write(tmp_path / "b", documents, chunk=2).fingerprint == base
    assert write(tmp_path / "c", [[5, 6], [8]]).fingerprint != base
    assert write(tmp_path / "d", [[5, 6, EOD, 7]]).fingerprint != base
    assert write(tmp_path / "e", documents, fingerprint="w").fingerprint != base


def test_a_window_outside_the_store(tmp_path):
    store = write(tmp_path / "s", [[5, 6, 7]])
    for start, length in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(ValueError, match="outside the 4 elements"):
            store.windows(np.array([start]), length)
    with pytest.raises(ValueError, match="outside"):
        store.documents_of(np.array([4]))
    with pytest.raises(ValueError, match="outside"):
        store.document_span(1)


def test_many_files_with_few_mappings(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_array, "MAX_MAPPED_FILES", 3)
    store = write(tmp_path / "s", [list(range(2, 300))], chunk=7)
    assert store.tokens(0, 298).tolist() == list(range(2, 300))


def test_stores_share_the_mappings_of_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_array, "MAX_MAPPED_FILES", 5)
    stores = [write(tmp_path / name, [list(range(2, 30))], chunk=7) for name in "abc"]
    for store in stores * 2:
        assert store.tokens(0, 28).tolist() == list(range(2, 30))
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        held = [os.readlink(link) for link in links if os.path.islink(link)]
        assert 0 < sum(name.startswith(str(tmp_path)) for name in held) <= 5


def test_a_chunk_of_zeros_is_a_file(tmp_path):
    store = write(tmp_path / "s", [[0] * 20], chunk=5)
    assert store.tokens(0, 20).tolist() == [0] * 20


def test_unigram_counts(tmp_path):
    store = write(tmp_path / "s", [[5, 5, 5]])
    assert store.unigram_counts()[[EOD, 5]].tolist() == [1, 3]


def test_several_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(store_manifest, "CHECKSUM_TOKENS", 8)
    monkeypatch.setattr(token_store, "CHECKSUM_TOKENS", 8)
    for name, count in (("a", 16), ("b", 17), ("c", 3)):
        store = write(tmp_path / name, [[5] * (count - 1)], chunk=5)
        assert len(store.manifest.checksums) == -(-count // 8)
        store.verify()
        counts = store.unigram_counts()
        assert counts.sum() == count


def test_missing_store(tmp_path):
    with pytest.raises(UserError, match=r"s does not exist"):
        TokenStore.open(tmp_path / "s")


def test_an_interrupted_store_does_not_open(tmp_path):
    def documents():
        yield [2, 3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", documents())
    with pytest.raises(UserError, match="was never finished"):
        TokenStore.open(tmp_path / "s")


def test_another_vocabulary(tmp_path):
    write(tmp_path / "s", [[5]])
    TokenStore.open(tmp_path / "s", "v")
    with pytest.raises(UserError, match="built with another vocabulary"):
        TokenStore.open(tmp_path / "s", "other")


@pytest.mark.parametrize("part", ["tokens", "documents", "target_starts"])
def test_flipped_bytes_are_found(tmp_path, part):
    store = write(tmp_path / "s", [([5], [6]), ([], [7])], supervised=True)
    file = tmp_path / "s" / part / "c" / "0"
    content = bytearray(file.read_bytes())
    content[2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        store.verify()


def test_truncated_and_missing_files(tmp_path):
    write(tmp_path / "s", [list(range(2, 60))], chunk=10)
    file = tmp_path / "s" / "tokens" / "c" / "3"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"c/3 has 19 bytes instead of 20"):
        TokenStore.open(tmp_path / "s")
    file.unlink()
    with pytest.raises(UserError, match=r"c/3 is missing"):
        TokenStore.open(tmp_path / "s")
    (tmp_path / "s" / "tokens" / "zarr.json").unlink()
    with pytest.raises(UserError, match=r"zarr.json"):
        TokenStore.open(tmp_path / "s")


def test_edited_manifest(tmp_path):
    write(tmp_path / "s", [[5]])
    file = tmp_path / "s" / "manifest.json"
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, "num_tokens": 1}))
    with pytest.raises(UserError, match="fingerprint does not match"):
        TokenStore.open(tmp_path / "s")
    file.write_text(json.dumps({**value, "format_version": 99}))
    with pytest.raises(UserError, match="format 99"):
        TokenStore.open(tmp_path / "s")
    file.write_text(json.dumps({k: v for k, v in value.items() if k != "dtype"}))
    with pytest.raises(UserError, match="is damaged"):
        TokenStore.open(tmp_path / "s")


def test_no_documents(tmp_path):
    with pytest.raises(UserError, match=r"no documents \(2 documents without a token\)"):
        write(tmp_path / "s", [[], []])


@pytest.mark.parametrize("bad", [1000, -1])
def test_ids_outside_the_vocabulary(tmp_path, bad):
    with pytest.raises(UserError, match=rf"document 1 of .* holds the id {bad}"):
        write(tmp_path / "s", [[5], [6, bad]])


def test_a_killed_build_is_built_again_in_its_place(tmp_path):
    settings = {"source": {}, "vocabulary_fingerprint": "v", "vocabulary_size": 1000, "separator_id": EOD}
    # Larger than what follows, in files of another length, and without a manifest.
    killed = TokenStoreWriter(tmp_path / "s", chunk=16, **settings)
    for _ in range(20):
        killed.add(np.arange(2, 30))
    store = write(tmp_path / "s", [[5, 6, 7]], chunk=3)
    store.verify()
    assert store.tokens(0, 4).tolist() == [5, 6, 7, EOD]
    assert len(os.listdir(tmp_path / "s" / "tokens" / "c")) == 2


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "s", [[5]])
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "tokens").write_text("")
    with pytest.raises(UserError, match=r"cannot write the token store at .*/tokens: ") as caught:
        write(tmp_path / "s", [[5]])
    assert "tensorstore_spec" not in str(caught.value)


def test_a_full_disk(tmp_path):
    # A file-size limit is what a full disk looks like to one process.
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from t5x_scale.core.errors import UserError\n"
        "from t5x_scale.data.token_store import TokenStoreWriter, TokenStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n"
        "    with TokenStoreWriter(sys.argv[1], source={}, vocabulary_fingerprint='v', vocabulary_size=9,\n"
        "                          separator_id=1, chunk=20_000) as writer:\n"
        "        for _ in range(10): writer.add(np.full(10_000, 5))\n"
        "except UserError as error:\n"
        "    assert 'cannot write the token store' in str(error) and '\\n' not in str(error), error\n"
        "    sys.exit(3)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, os.fspath(tmp_path / "s")]).returncode == 3
    with pytest.raises(UserError, match="was never finished"):
        TokenStore.open(tmp_path / "s")


def test_reading_imports_no_tensorflow_jax_or_tensorstore(tmp_path):
    write(tmp_path / "s", [[5, 6]])
    code = (
        "import sys\nfrom t5x_scale.data.token_store import TokenStore\n"
        "assert TokenStore.open(sys.argv[1]).tokens(0, 3).tolist() == [5, 6, 1]\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'jax', 'tensorstore')]\n"
    )
    subprocess.run([sys.executable, "-c", code, os.fspath(tmp_path / "s")], check=True)


def test_through_tensorstore(tmp_path):
    # What an object store is read through gives the same numbers as the mappings.
    store = write(tmp_path / "s", [list(range(2, 90))], chunk=9)
    reader = StoredArray(files.to_path(tmp_path / "s" / "tokens"), np.dtype("uint16"), 89)
    out = np.empty((3, 20), np.int32)
    reader.read_into(np.array([0, 5, 69]), out)
    np.testing.assert_array_equal(out, store.windows(np.array([0, 5, 69]), 20))
    with pytest.raises(ValueError, match="outside"):
        reader.read_into(np.array([70]), out[:1])


pairs_strategy = st.lists(st.tuples(*[st.lists(st.integers(0, 999), max_size=9)] * 2), min_size=1, max_size=40).filter(
    lambda pairs: any(map(any, pairs))
)


@settings(max_examples=25, deadline=None)
@given(pairs=pairs_strategy, chunk=st.integers(1, 300), sharded=st.booleans())
def test_a_supervised_store_keeps_inputs_and_targets_apart(tmp_path_factory, pairs, chunk, sharded):
    directory = tmp_path_factory.mktemp("store") / "s"
    store = write(directory, pairs, chunk, supervised=True, sharded=sharded)
    store.verify()
    kept = [(inputs, targets) for inputs, targets in pairs if inputs or targets]
    assert store.is_supervised
    assert store.num_documents == len(kept)
    heads = store.target_starts(0, len(kept)).tolist()
    assert heads == [len(inputs) for inputs, _ in kept]
    for index, (inputs, targets) in enumerate(kept):
        start, stop = store.document_span(index)
        tokens = store.tokens(start, stop).tolist()
        assert tokens[: heads[index]] == inputs
        assert tokens[heads[index] :] in (targets, [*targets, EOD])
        assert tokens[-1] == EOD


@pytest.mark.parametrize("sharded", [False, True])
def test_documents_of_many_positions(tmp_path, sharded):
    lengths = [1, 5, 2, 9, 1, 1, 30, 4]
    store = write(tmp_path / "s", [[7] * (length) for length in lengths], chunk=32, sharded=sharded)
    expected = np.repeat(np.arange(len(lengths)), np.array(lengths) + 1)
    positions = np.random.default_rng(0).integers(0, store.num_tokens, 200)
    np.testing.assert_array_equal(store.documents_of(positions), expected[positions])
    assert store.documents_of(np.zeros(0, np.int64)).shape == (0,)
    np.testing.assert_array_equal(store.document_starts(2, 5), [8, 11, 21])
    np.testing.assert_array_equal(store.target_starts(2, 5), [0, 0, 0])
    for first, stop in ((0, 9), (-1, 2)):
        with pytest.raises(ValueError, match="outside"):
            store.document_starts(first, stop)
        with pytest.raises(ValueError, match="outside"):
            store.target_starts(first, stop)
    with pytest.raises(ValueError, match="outside"):
        store.documents_of(np.array([0, store.num_tokens]))


def test_what_is_supervised_is_content_and_a_licence_is_a_note(tmp_path):
    base = write(tmp_path / "a", [[5, 6]])
    assert write(tmp_path / "b", [[5, 6]], supervised=True).fingerprint != base.fingerprint
    heads = [write(tmp_path / f"c{n}", [([5, 6, 7][:n], [5, 6, 7][n:])], supervised=True) for n in (0, 1, 3)]
    assert len({store.fingerprint for store in heads}) == 3
    licensed = write(tmp_path / "d", [[5, 6]], licence="CC-BY-4.0")
    assert licensed.manifest.licence == "CC-BY-4.0"
    assert licensed.fingerprint == base.fingerprint


def test_inputs_need_a_supervised_store(tmp_path):
    with pytest.raises(ValueError, match="not begun as supervised"):
        write(tmp_path / "s", [([5], [6])])


@pytest.mark.parametrize("target_start", [-1, 3])
def test_inputs_longer_than_their_document(tmp_path, target_start):
    with pytest.raises(ValueError, match="in a document of 2"):
        TokenStoreWriter(
            tmp_path / "s", source={}, vocabulary_fingerprint="v", vocabulary_size=9, separator_id=EOD, supervised=True
        ).add(np.array([5, 6]), target_start)


def test_windows_beside_those_read_just_now_are_not_fetched_again(tmp_path, monkeypatch):
    store = write(tmp_path / "s", [list(range(2, 300))], chunk=70)
    calls, announce = [], mapped_array.MappedArray._announce
    monkeypatch.setattr(
        mapped_array.MappedArray, "_announce", lambda self, *where: (calls.append(where), announce(self, *where))
    )
    out, starts = np.zeros((5, 60), np.int32), np.array([3, 50, 200])
    store.read_windows(starts, out, np.array([4, 0, 2]))
    np.testing.assert_array_equal(out[[4, 0, 2]], store.windows(starts, 60))
    before = len(calls)
    store.read_windows(starts + 1, out, np.array([4, 0, 2]), again=True)
    assert len(calls) == before > 0
    np.testing.assert_array_equal(out[[4, 0, 2]], store.windows(starts + 1, 60))


def test_remote_arrays_share_a_cache(tmp_path, monkeypatch):
    from t5x_scale.data import stored_array

    stored_array._reading_context.cache_clear()
    made, make = [], stored_array._make_context
    monkeypatch.setattr(stored_array, "_make_context", lambda size: made.append(size) or make(size))
    write(tmp_path / "s", [list(range(2, 90))], sharded=True).verify()
    TokenStore.open(tmp_path / "s").verify()
    assert sum(size > 0 for size in made) == 1


def test_a_shard_is_one_object_of_small_chunks(tmp_path, monkeypatch):
    from t5x_scale.data import stored_array

    monkeypatch.setattr(stored_array, "INNER_CHUNK", 8)
    tokens = list(range(2, 200))
    store = write(tmp_path / "s", [tokens], chunk=60, sharded=True)
    # 199 tokens in shards of 64, which is 60 rounded up to whole chunks.
    assert sorted(os.listdir(tmp_path / "s" / "tokens" / "c")) == ["0", "1", "2", "3"]
    assert store.tokens(0, 199).tolist() == [*tokens, EOD]
    assert store.fingerprint == write(tmp_path / "plain", [tokens]).fingerprint


def test_damage_in_a_shard_is_found_where_it_is_read(tmp_path):
    store = write(tmp_path / "s", [list(range(2, 200))], sharded=True)
    file = tmp_path / "s" / "tokens" / "c" / "0"
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"the token store .*/s is damaged or cannot be read") as caught:
        store.tokens(0, 20)
    assert "\n" not in str(caught.value)


def test_a_store_of_the_first_format(tmp_path):
    write(tmp_path / "s", [[5]])
    file = tmp_path / "s" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 1}))
    with pytest.raises(UserError, match=r"has format 1, this version reads 2; delete it and build it again"):
        TokenStore.open(tmp_path / "s")
