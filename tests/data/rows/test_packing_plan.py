import dataclasses
import logging
import os
import pathlib
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.objectives import CausalLm, Ul2, Ul2r
from t5x_scale.data.rows import packing_plan
from t5x_scale.data.rows.packing_plan import PlanSettings
from t5x_scale.data.rows.packing_plan_files import load_plan, make_plan
from t5x_scale.data.token_store import TokenStore, TokenStoreWriter
from t5x_scale.data.vocabulary import load_vocabulary

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "fakes"))

from gcs import FakeStorage

LENGTH = 16
SEPARATOR = 1


def write(directory, sizes, supervised=False):
    """A store of documents of `sizes` tokens beside the separator; a third of each is its inputs, if supervised."""
    with TokenStoreWriter(
        directory,
        source={},
        vocabulary_fingerprint="v",
        vocabulary_size=1000,
        separator_id=SEPARATOR,
        supervised=supervised,
    ) as writer:
        for size in sizes:
            writer.add(np.arange(size) % 998 + 2, size // 3 if supervised else 0)
    return TokenStore.open(directory)


@dataclasses.dataclass(frozen=True)
class Growing(CausalLm):
    """Fills one or two positions more than there are tokens, as the choice has it; nothing for pieces of one token."""

    @property
    def name(self):
        return "growing"

    def packed_length(self, num_tokens, choices):
        return np.where(num_tokens > 1, num_tokens + 1 + (choices % np.uint64(2)).astype(np.int64), 0)

    def longest_piece(self, length):
        return length - 2


@dataclasses.dataclass(frozen=True)
class Choosy(Growing):
    """`Growing` that says which pieces may be longer."""

    @property
    def name(self):
        return "choosy"

    def longest_pieces(self, length, choices):
        return length - 1 - (choices % np.uint64(2)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Lying(CausalLm):
    def longest_piece(self, length):
        return length + 1


def settings_of(store, objective=None, length=LENGTH, fit="best", long_documents="split", seed=0):
    return PlanSettings(store, objective or CausalLm(), length, fit, long_documents, seed)


def assert_same(left, right):
    assert dict(left.summary) == dict(right.summary)
    assert left.arrays.keys() == right.arrays.keys()
    for key in left.arrays:
        assert left.arrays[key].tobytes() == right.arrays[key].tobytes(), key
        assert left.arrays[key].dtype == right.arrays[key].dtype


def longest_piece_at(given_, start):
    return int(given_.objective.longest_pieces(LENGTH, given_.choices(np.array([start])))[0])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    sizes = np.random.default_rng(0).integers(1, 40, 300)
    return write(tmp_path_factory.mktemp("plans") / "store", sizes)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    supervised=st.booleans(),
    fit=st.sampled_from(["best", "first"]),
    policy=st.sampled_from(["split", "drop"]),
    objective=st.sampled_from([CausalLm(), Growing(), Choosy()]),
    blocks=st.sampled_from([(2**20, 2**14), (8, 3), (20, 1)]),
)
def test_every_piece_lies_in_one_row(tmp_path_factory, sizes, supervised, fit, policy, objective, blocks):
    store = write(tmp_path_factory.mktemp("plan") / "s", sizes, supervised)
    given_ = settings_of(store, objective, fit=fit, long_documents=policy)
    expected, split, left_out, too_short = {}, 0, 0, 0
    for document, size in enumerate(sizes):
        begin, stop = start, stop = store.document_span(document)
        if stop - start > longest_piece_at(given_, start):
            split += policy == "split"
            left_out += policy == "drop"
        if stop - start > longest_piece_at(given_, start) and policy == "drop":
            continue
        while begin < stop:
            length = min(longest_piece_at(given_, begin), stop - begin)
            if isinstance(objective, Growing) and length == 1:
                too_short += 1
            else:
                head = size // 3 if supervised else 0
                expected[begin] = (length, min(max(head - (begin - start), 0), length))
            begin += length
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing_plan, "BLOCK_PIECES", blocks[0])
        patch.setattr(packing_plan, "STRETCH_DOCUMENTS", blocks[1])
        if not expected:
            with pytest.raises(UserError):
                make_plan(given_, "a")
            return
        plan = make_plan(given_, "a")
    pieces = plan.pieces(np.arange(plan.num_rows))
    found = {
        start: (length, head)
        for start, length, head in zip(
            pieces.starts.tolist(), pieces.lengths.tolist(), pieces.target_starts.tolist(), strict=True
        )
    }
    assert len(found) == len(pieces.starts)
    assert found == expected
    packed = objective.packed_length(pieces.lengths, given_.choices(pieces.starts))
    filled = np.add.reduceat(packed, np.cumsum(pieces.counts) - pieces.counts)
    assert filled.min() > 0
    assert filled.max() <= LENGTH
    summary = plan.summary
    assert summary["documents"] == len(sizes)
    assert summary["tokens"] == store.num_tokens
    assert summary["tokens_left_out"] == store.num_tokens - sum(length for length, _ in expected.values()) - too_short
    assert summary["documents_left_out"] == left_out
    assert summary["pieces_left_out"] == too_short
    assert summary["documents_split"] == split
    assert summary["positions"] == filled.sum()
    assert (summary["pieces"], summary["rows"]) == (len(expected), plan.num_rows)
    assert ("target_starts" in plan.arrays) == supervised


def test_a_block_comes_from_all_over_the_corpus(store, monkeypatch):
    monkeypatch.setattr(packing_plan, "BLOCK_PIECES", 100)
    monkeypatch.setattr(packing_plan, "STRETCH_DOCUMENTS", 5)
    blocks = list(packing_plan.make_blocks(settings_of(store), packing_plan.Summary()))
    assert len(blocks) > 3
    for block in blocks:
        assert np.ptp(block["piece_starts"]) > 0.8 * store.num_tokens
        assert len(block["piece_starts"]) < 300


def test_neighbours_in_the_corpus_do_not_share_rows(tmp_path):
    # All alike, so that any order within a length would do.
    plan = make_plan(settings_of(write(tmp_path / "s", [3] * 2000)), "a")
    starts = plan.pieces(np.arange(plan.num_rows)).starts.reshape(-1, 4)
    distances = np.diff(np.sort(starts, axis=1), axis=1)
    assert np.mean(distances == 4) < 0.02


def test_long_documents_are_cut_in_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(packing_plan, "RUN_ROWS", 3)
    store = write(tmp_path / "s", [500, 7, 300])
    given_ = settings_of(store, Choosy())
    pieces = make_plan(given_, "a").pieces(np.arange(make_plan(given_, "a").num_rows))
    order = np.argsort(pieces.starts)
    starts, lengths = pieces.starts[order], pieces.lengths[order]
    assert (starts[1:] == starts[:-1] + lengths[:-1]).all()
    assert lengths.sum() == store.num_tokens
    assert {0, 3 * LENGTH, 6 * LENGTH, 501, 509, 509 + 3 * LENGTH} <= set(starts.tolist())


@pytest.mark.parametrize("objective", [Ul2r(), Ul2()], ids=["ul2r", "ul2"])
def test_rows_of_denoisers_are_full(tmp_path, objective):
    vocabulary = load_vocabulary("stdlib_8k")
    sizes = np.random.default_rng(0).exponential(1000, 4000).astype(int) + 1
    store = write(tmp_path / "s", sizes)
    plan = make_plan(settings_of(store, objective.with_vocabulary(vocabulary), length=2048), "a")
    assert plan.summary["positions"] / (plan.num_rows * 2048) > 0.995


def test_memory_of_a_block_does_not_grow_with_the_length_of_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(packing_plan, "BLOCK_PIECES", 256)
    store = write(tmp_path / "s", [900] * 64)
    blocks = list(packing_plan.make_blocks(settings_of(store), packing_plan.Summary()))
    assert max(len(block["piece_starts"]) for block in blocks) < 2 * 256


def test_pieces_of_rows_in_any_order(store):
    plan = make_plan(settings_of(store), "a")
    rows = np.array([5, 0, 5, plan.num_rows - 1])
    pieces = plan.pieces(rows)
    begin = 0
    for row, count in zip(rows, pieces.counts, strict=True):
        alone = plan.pieces(np.array([row]))
        assert alone.counts.tolist() == [count]
        np.testing.assert_array_equal(pieces.starts[begin : begin + count], alone.starts)
        np.testing.assert_array_equal(pieces.lengths[begin : begin + count], alone.lengths)
        begin += count
    assert begin == len(pieces.starts)


@pytest.mark.parametrize(("fit", "sums"), [("best", [857589971, 422452246]), ("first", [625247158, 1354336811])])
def test_a_plan_is_part_of_the_format_of_a_run(tmp_path, fit, sums):
    # If this fails, runs would go on with other rows than they began with: raise packing_plan.FORMAT_VERSION.
    store = write(tmp_path / "s", [number % 37 + 1 for number in range(500)])
    plan = make_plan(settings_of(store, fit=fit), "a")
    assert [zlib.crc32(plan.arrays[key]) for key in ("piece_starts", "row_starts")] == sums


def test_choices_are_part_of_the_format_of_a_plan():
    class Store:
        fingerprint = "f"

    choices = settings_of(Store(), seed=3).choices(np.array([0, 1, 2**40]))
    assert choices.tolist() == [10304792342881580928, 13763933158496949865, 2809879687466991257]
    assert settings_of(Store(), seed=4).choices(np.array([0])) != choices[:1]


def test_what_a_plan_depends_on_is_in_its_digest(store, tmp_path):
    class Renamed(CausalLm):
        name = "other"

    class SameName(CausalLm):
        def packed_length(self, num_tokens, choices):
            return np.maximum(num_tokens, 2)

    base = settings_of(store)
    others = [
        dataclasses.replace(base, **{key: value})
        for key, value in [
            ("store", write(tmp_path / "s", [3])),
            ("objective", Renamed()),
            ("objective", SameName()),
            ("length", 17),
            ("fit", "first"),
            ("long_documents", "drop"),
            ("seed", 1),
        ]
    ]
    assert len({settings.digest for settings in [base, *others]}) == len(others) + 1
    assert settings_of(store).digest == base.digest


def test_a_kept_plan_is_the_plan(store, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    made, kept, opened = (
        make_plan(settings_of(store), "a"),
        *(load_plan(settings_of(store), "a", tmp_path / "plans") for _ in range(2)),
    )
    assert_same(made, kept)
    assert_same(made, opened)
    # Made twice, once for memory; the third was there.
    assert [record.message.startswith("packed 'a'") for record in caplog.records] == [True, True]
    assert not [name for name in os.listdir(tmp_path / "plans") if name.startswith(".")]


def test_other_settings_are_other_files(store, tmp_path):
    best, first = (load_plan(settings_of(store, fit=fit), "a", tmp_path) for fit in ("best", "first"))
    assert best.arrays["piece_starts"].tobytes() != first.arrays["piece_starts"].tobytes()
    assert_same(load_plan(settings_of(store), "a", tmp_path), best)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0" * 8),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["row_starts", "piece_starts", "piece_lengths", "json"])
def test_a_damaged_plan_is_made_again(store, tmp_path, caplog, damage, part):
    settings_ = settings_of(store)
    made = make_plan(settings_, "a")
    load_plan(settings_, "a", tmp_path)
    path = tmp_path / f"{settings_.digest}.{part}"
    DAMAGES[damage](path)
    assert_same(load_plan(settings_, "a", tmp_path), made)
    if (damage, part) != ("missing", "json"):
        assert "is damaged and is made again" in caplog.text
    caplog.clear()
    assert_same(load_plan(settings_, "a", tmp_path), made)
    assert not caplog.text


def test_many_make_one_plan_at_once(store, tmp_path):
    plans = []
    threads = [
        threading.Thread(target=lambda: plans.append(load_plan(settings_of(store), "a", tmp_path))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plans) == 6
    for plan in plans:
        assert_same(plan, make_plan(settings_of(store), "a"))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [
        ".json",
        ".piece_lengths",
        ".piece_starts",
        ".row_starts",
    ]


def test_a_directory_that_cannot_be_written(store, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    plan = load_plan(settings_of(store), "a", tmp_path / "file" / "plans")
    assert_same(plan, make_plan(settings_of(store), "a"))
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"cannot keep the packing plan in {tmp_path}/file/plans" in record.message


def test_a_full_disk(store, tmp_path, caplog, monkeypatch):
    def full(self, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("t5x_scale.data.rows.packing_plan_files._ArrayFile.extend", full)
    plan = load_plan(settings_of(store), "a", tmp_path)
    assert plan.num_rows == make_plan(settings_of(store), "a").num_rows
    assert "No space left on device" in caplog.text
    assert not os.listdir(tmp_path)


def test_every_document_was_left_out(tmp_path):
    store = write(tmp_path / "s", [30, 20])
    with pytest.raises(UserError, match=r"all 2 documents of the source 'a' were left out.*16 tokens.*has 21; use"):
        load_plan(settings_of(store, long_documents="drop"), "a", tmp_path / "plans")
    assert not os.listdir(tmp_path / "plans")
    with pytest.raises(UserError, match="growing makes nothing of the source 'a': its documents are too short"):
        load_plan(settings_of(_single_token_store(tmp_path / "one"), Growing()), "a")


def _single_token_store(directory):
    with TokenStoreWriter(
        directory, source={}, vocabulary_fingerprint="v", vocabulary_size=9, separator_id=SEPARATOR
    ) as writer:
        writer.add(np.array([SEPARATOR]))
    return TokenStore.open(directory)


def test_rows_too_short_for_the_objective(store):
    with pytest.raises(UserError, match="rows of 2 positions are too short for growing"):
        make_plan(settings_of(store, Growing(), length=2), "a")


def test_an_objective_that_promised_too_much(store):
    with pytest.raises(ValueError, match="causal_lm makes 17 positions of a piece for rows of 16"):
        make_plan(settings_of(store, Lying()), "a")


REMOTE = """
import sys
sys.modules["tensorflow"] = None
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from t5x_scale.data.objectives import CausalLm
from t5x_scale.data.rows.packing_plan import PlanSettings
from t5x_scale.data.rows.packing_plan_files import load_plan
from t5x_scale.data.token_store import TokenStore
settings = PlanSettings(TokenStore.open(sys.argv[1]), CausalLm(), 16, "best", "split", 0)
local = load_plan(settings, "local")
for name in ("first", "second"):
    remote = load_plan(settings, name, "gs://bucket/plans")
    assert all((remote.arrays[key] == local.arrays[key]).all() for key in local.arrays)
from t5x_scale.core import files
path = files.to_path("gs://bucket/plans") / f"{settings.digest}.piece_starts"
path.write_bytes(path.read_bytes()[:-5])
load_plan(settings, "third", "gs://bucket/plans")
load_plan(settings, "fourth", "gs://bucket/plans")
"""


def test_plans_in_a_bucket(store):
    pytest.importorskip("gcsfs")
    with FakeStorage(["bucket"]) as storage:
        command = [sys.executable, "-c", REMOTE, os.fspath(store.directory)]
        environment = {**os.environ, **storage.environment()}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        names = sorted(storage.buckets["bucket"])
    packed = [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("packed '")]
    assert packed == ["local", "first", "third"]
    assert len(names) == 4
