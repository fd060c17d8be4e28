"""Units, parts and assembly, without processes."""

import dataclasses
import json
import os
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.building.assembly import assemble
from t5x_scale.data.building.interface import Curation, Record
from t5x_scale.data.building.parts import list_parts, read_lengths, read_part, read_signatures, write_part
from t5x_scale.data.building.units import make_units
from t5x_scale.data.building.work import Options, process
from t5x_scale.data.token_store import TokenStore, TokenStoreWriter
from t5x_scale.data.vocabulary import load_vocabulary

BYTES = load_vocabulary("bytes")
EOD = BYTES.eod_id


@dataclasses.dataclass(frozen=True)
class NoTeas:
    def __call__(self, text):
        return "tea" if "tea" in text else None

    def describe(self):
        return {"filter": "NoTeas"}


@dataclasses.dataclass(frozen=True)
class ShortIds:
    most: int = 8

    def __call__(self, tokens):
        return "long" if len(tokens) > self.most else None

    def describe(self):
        return {"filter": "ShortIds", "most": self.most}


@dataclasses.dataclass(frozen=True)
class FirstLetter:
    arrays: ClassVar = {"letter": ("<u4", (1,))}

    def __call__(self, text):
        return {"letter": np.array([ord(text[0])])}

    def describe(self):
        return {"signer": "FirstLetter"}


@dataclasses.dataclass(frozen=True)
class OneALetter:
    reason: str = "same letter"

    def __call__(self, parts):
        seen, keeps = set(), []
        for part in parts():
            letters = part["letter"][:, 0].tolist()
            keeps.append(np.array([not (letter in seen or seen.add(letter)) for letter in letters], bool))
        return keeps

    def describe(self):
        return {"deduplicator": "OneALetter"}


def build(directory, records, curation=Curation(), supervised=False, unit_characters=10, **facts):
    """What the pool does, in one process."""
    options = Options(BYTES, curation, supervised)
    parts = directory / "parts"
    parts.mkdir(parents=True)
    units = make_units(records, whole_documents=curation.is_active, unit_characters=unit_characters)
    infos = [
        write_part(parts, unit.index, process(unit, options), unit=unit.digest, options=options.fingerprint)
        for unit in units
    ]
    assert list(list_parts(parts).values()) == infos
    assemble(parts, infos, directory / "store", options, source={"task": "t"}, **facts)
    return TokenStore.open(directory / "store", BYTES.fingerprint)


def texts_of(store):
    spans = [store.document_span(index) for index in range(store.num_documents)]
    return [BYTES.decode(store.tokens(start, stop - 1)) for start, stop in spans]


def text_records(*texts):
    return [Record((text,)) for text in texts]


pieces = st.lists(st.text(max_size=12), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(documents=st.lists(pieces, min_size=1, max_size=8), size=st.integers(1, 30), whole=st.booleans())
def test_a_store_does_not_depend_on_how_its_source_is_cut(tmp_path_factory, documents, size, whole):
    documents = [[piece for piece in document if piece] or ["x"] for document in documents]
    records = [
        Record((piece,), ends=index == len(document) - 1)
        for document in documents
        for index, piece in enumerate(document)
    ]
    directory = tmp_path_factory.mktemp("work")
    curation = Curation(text_filters=(NoTeas(),)) if whole else Curation()
    store = build(directory, records, curation, unit_characters=size)
    store.verify()
    with TokenStoreWriter(
        directory / "plain",
        source={},
        vocabulary_fingerprint=BYTES.fingerprint,
        vocabulary_size=BYTES.size,
        separator_id=EOD,
    ) as writer:
        for document in documents:
            writer.add(np.concatenate([np.array(ids) for ids in BYTES.encode_batch(document)]))
    assert store.fingerprint == TokenStore.open(directory / "plain").fingerprint


def test_units_depend_on_the_source_alone():
    records = text_records("aaaa", "bb", "cccccc", "d")
    units = list(make_units(records, unit_characters=6))
    assert [[record.targets[0] for record in unit.records] for unit in units] == [["aaaa", "bb"], ["cccccc"], ["d"]]
    assert [unit.index for unit in units] == [0, 1, 2]
    digests = [unit.digest for unit in units]
    assert [unit.digest for unit in make_units(iter(records), unit_characters=6)] == digests
    assert len(set(digests)) == 3
    # Where one piece ends and the next begins, and what is what, is part of a unit.
    alike = [
        [Record(("ab",))],
        [Record(("a", "b"))],
        [Record(("b",), "a")],
        text_records("a", "b"),
        [Record((b"ab",))],
        [Record((np.array([1, 2]),))],
    ]
    assert len({next(make_units(records)).digest for records in alike}) == len(alike)


def test_a_source_that_ends_within_a_document():
    with pytest.raises(ValueError, match="ends within a document"):
        list(make_units([Record(("a",), ends=False)], whole_documents=True))


def test_filters_and_duplicates_are_counted(tmp_path):
    curation = Curation((NoTeas(),), (ShortIds(),), (FirstLetter(),), (OneALetter(),))
    records = text_records("apple", "tea", "", "banana", "avocado", "a very long one", "steam", "cherry", "bean")
    store = build(tmp_path, records, curation)
    assert texts_of(store) == ["apple", "banana", "cherry"]
    assert store.manifest.report == {
        "read": 9,
        "empty": 1,
        "filtered: long": 1,
        "filtered: tea": 2,
        "same letter": 2,
        "kept": 3,
        "invalid_utf8_replaced": 0,
        "characters_read": 51,
    }
    assert store.manifest.empty_documents == 1
    assert store.manifest.source["curation"]["token_filters"] == [{"filter": "ShortIds", "most": 8}]


def test_a_long_document_is_filtered_whole(tmp_path):
    records = [Record(("a cup of t",), ends=False), Record(("ea, please",)), Record(("water",))]
    store = build(tmp_path, records, Curation((NoTeas(),)))
    assert texts_of(store) == ["water"]


def test_supervised_records(tmp_path):
    records = [Record(("4",), "2+2="), Record(("",), "no answer"), Record(("",), ""), Record(("free",), "")]
    store = build(tmp_path, records, supervised=True)
    assert store.is_supervised
    assert texts_of(store) == ["2+2=4", "no answer", "free"]
    assert store.target_starts(0, 3).tolist() == [4, 9, 0]
    assert store.manifest.report["empty"] == 1


def test_records_of_ids(tmp_path):
    ids = np.array(BYTES.encode("abc"))
    store = build(tmp_path, [Record((ids,)), Record((np.append(ids, EOD),))], Curation((NoTeas(),)))
    assert store.tokens(0, 8).tolist() == [*ids.tolist(), EOD] * 2
    with pytest.raises(UserError, match=r"ids from 0 to 640, but the vocabulary 'bytes' has 640 ids"):
        build(tmp_path / "bad", [Record((np.array([0, 640]),))])


def test_bytes_that_are_not_utf8_are_replaced_and_counted(tmp_path):
    store = build(tmp_path, [Record((b"a\xffb",)), Record(("ü".encode(),))])
    assert texts_of(store) == ["a\ufffdb", "ü"]
    assert store.manifest.report["invalid_utf8_replaced"] == 1


def test_nothing_left(tmp_path):
    with pytest.raises(UserError, match=r"'t' gave no documents \(read 2, filtered: tea 2"):
        build(tmp_path, text_records("tea", "teas"), Curation((NoTeas(),)))


def test_options_are_told_apart():
    base = Options(BYTES)
    others = [
        Options(BYTES, Curation((NoTeas(),))),
        Options(BYTES, Curation((), (ShortIds(3),))),
        Options(BYTES, supervised=True),
    ]
    assert len({options.fingerprint for options in (base, *others)}) == 4
    # A deduplicator looks at parts and does not change them.
    assert Options(BYTES, Curation((NoTeas(),), deduplicators=(OneALetter(),))).fingerprint == others[0].fingerprint


def make_part(directory, index=0):
    options = Options(BYTES, Curation(signers=(FirstLetter(),)))
    unit = next(make_units(text_records("apple", "pear"), whole_documents=True))
    part = process(unit, options)
    return part, write_part(directory, index, part, unit=unit.digest, options=options.fingerprint)


def test_a_part_comes_back(tmp_path):
    part, info = make_part(tmp_path, 7)
    again = read_part(tmp_path, list_parts(tmp_path)[7])
    for field in ("tokens", "lengths", "target_starts"):
        np.testing.assert_array_equal(getattr(again, field), getattr(part, field))
        assert getattr(again, field).dtype == getattr(part, field).dtype
    assert (again.begins, again.counts) == (part.begins, part.counts)
    (signatures,) = read_signatures(tmp_path, [info])
    assert signatures["letter"].tolist() == [[ord("a")], [ord("p")]]


def test_only_complete_parts_are_listed(tmp_path):
    make_part(tmp_path, 0)
    make_part(tmp_path, 1)
    (tmp_path / "part-00000000.json").unlink()
    (tmp_path / "part-00000001.json").write_text("{}")
    assert list_parts(tmp_path) == {}
    assert list_parts(tmp_path / "missing") == {}


@pytest.mark.parametrize("read", [read_lengths, lambda *place: list(read_signatures(place[0], [place[1]]))])
@pytest.mark.parametrize("left", [0, 50])
def test_a_part_cut_short_is_found_by_whoever_reads_it(tmp_path, left, read):
    _, info = make_part(tmp_path)
    os.truncate(tmp_path / "part-00000000.npz", left)
    with pytest.raises(UserError, match=r"part-00000000.npz.* is damaged"):
        read(tmp_path, info)


def test_options_are_described_once(monkeypatch):
    """The index of a decontamination may be hundreds of megabytes, and every part asks for the fingerprint."""
    options, calls = Options(BYTES), []
    monkeypatch.setattr(Curation, "describe", lambda self: calls.append(self) or {})
    assert options.fingerprint == options.fingerprint
    assert len(calls) == 1


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_part_is_found_and_made_again(tmp_path, damage):
    _, info = make_part(tmp_path)
    file = tmp_path / "part-00000000.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    {"flip": lambda: file.write_bytes(content), "truncate": lambda: file.write_bytes(content[:50])}.get(
        damage, file.unlink
    )()
    with pytest.raises(UserError, match=r"part-00000000.npz.* is damaged .*the same command makes it again"):
        read_part(tmp_path, info)
    assert list_parts(tmp_path) == {}


def test_a_manifest_holds_the_licence(tmp_path):
    build(tmp_path, text_records("a"), licence="CC0")
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["licence"] == "CC0"
