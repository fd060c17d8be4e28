"""A store joined piece by piece is the one that is written as a stream."""

import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data.building import parallel_assembly
from t5x_scale.data.building.assembly import assemble, find_duplicates
from t5x_scale.data.building.interface import Curation, Record
from t5x_scale.data.building.parts import find_part, write_part
from t5x_scale.data.building.units import make_units
from t5x_scale.data.building.work import Options, process
from t5x_scale.data.curation.exact_duplicates import ExactDeduplicator, ExactSigner
from t5x_scale.data.stored_array import ArrayWriter, make_array, write_range
from t5x_scale.data.vocabulary import load_vocabulary

BYTES = load_vocabulary("bytes")
EXACT = Curation(signers=(ExactSigner(),), deduplicators=(ExactDeduplicator(),))


def read_all(directory):
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, directory)] = file.read()
    return found


def make_parts(directory, records, options, unit_characters):
    os.makedirs(directory)
    units = make_units(records, whole_documents=options.curation.is_active, unit_characters=unit_characters)
    return [
        write_part(directory, unit.index, process(unit, options), unit=unit.digest, options=options.fingerprint)
        for unit in units
    ]


def assemble_in_pieces(parts, infos, store, options, chunk):
    destination = parallel_assembly.Destination(
        files.to_path(parts), files.to_path(store), options, {"task": "t", "split": "train"}, "ours", chunk
    )
    keeps, duplicates = find_duplicates(parts, infos, options.curation)
    numbers = parallel_assembly.number_documents(infos)
    left_out = np.flatnonzero(~np.concatenate(keeps)) if keeps else np.empty(0, np.int64)
    measured = [
        parallel_assembly.measure_part(destination.parts, info, parallel_assembly.find_kept(numbers, left_out, index))
        for index, info in enumerate(infos)
    ]
    plan = parallel_assembly.make_plan(infos, left_out, measured, duplicates)
    pieces = parallel_assembly.make_arrays(plan, destination)
    # In any order, and some of them twice.
    random.Random(0).shuffle(pieces)
    for name, number in [*pieces, *pieces[:2]]:
        parallel_assembly.write_piece(plan, destination, name, number)
    checksums = {
        (name, block): parallel_assembly.make_checksum(plan, destination, name, block)
        for name, block in parallel_assembly.list_checksums(plan, destination)
    }
    parallel_assembly.write_manifest(plan, destination, checksums)


TEXTS = st.lists(st.lists(st.sampled_from(["", "a", "tea", "x" * 30]), max_size=3), min_size=1, max_size=12)


@given(texts=TEXTS, supervised=st.booleans(), exact=st.booleans(), unit=st.integers(1, 60), chunk=st.integers(3, 60))
@settings(max_examples=12, deadline=None)
def test_the_bytes_are_those_of_the_stream(tmp_path_factory, texts, supervised, exact, unit, chunk):
    if not any(map("".join, texts)):
        texts = [*texts, ["end"]]
    # Without curation a long document lies in several records, and so perhaps in several parts.
    records = []
    for pieces in texts:
        if supervised or exact:
            records.append(Record(("".join(pieces),), "q: " if supervised else None))
        else:
            records += [Record((piece,), ends=False) for piece in pieces[:-1]] + [Record(tuple(pieces[-1:]))]
    options = Options(BYTES, EXACT if exact else Curation(), supervised)
    path = tmp_path_factory.mktemp("pieces")
    infos = make_parts(path / "parts", records, options, unit)
    source = {"task": "t", "split": "train"}
    assemble(path / "parts", infos, path / "stream", options, source=source, licence="ours", chunk=chunk)
    assemble_in_pieces(path / "parts", infos, path / "pieces", options, chunk)
    assert read_all(path / "pieces") == read_all(path / "stream")


def test_nothing_left_is_an_error(tmp_path):
    options = Options(BYTES)
    infos = make_parts(tmp_path / "parts", [Record(("",))], options, 10)
    with pytest.raises(UserError, match=r"source 't', split 'train' gave no documents \(read 1, empty 1\)"):
        assemble_in_pieces(tmp_path / "parts", infos, tmp_path / "store", options, 10)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("size", [1, 9, 10, 11, 35])
def test_files_are_those_of_the_writer(tmp_path, sharded, size):
    values = np.arange(1, size + 1, dtype="<i4")
    writer = ArrayWriter(tmp_path / "stream", values.dtype, 10, None, sharded=sharded)
    writer.extend(values)
    writer.finish()
    for _ in range(2):
        file = make_array(tmp_path / "pieces", values.dtype, size, 10, sharded=sharded)
        for start in reversed(range(0, size, file)):
            write_range(tmp_path / "pieces", start, values[start : start + file])
    assert read_all(tmp_path / "pieces") == read_all(tmp_path / "stream")
    with pytest.raises(UserError, match="cannot write the token store"):
        make_array(tmp_path / "pieces", values.dtype, size + 1, 10, sharded=sharded)


def test_a_part_is_found_by_its_number(tmp_path):
    (info,) = make_parts(tmp_path / "parts", [Record(("tea",))], Options(BYTES), 10)
    assert find_part(tmp_path / "parts", 0) == info
    assert find_part(tmp_path / "parts", 1) is None
