import dataclasses
import json
import re
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.mixtures.mixture_schedule import RatePlan
from t5x_scale.data.objectives import CausalLm
from t5x_scale.data.order import order_key, permute


@dataclasses.dataclass(frozen=True)
class Other(CausalLm):
    name = "other"


RAMP = BatchSchedule(((0, 4), (3, 8), (6, 12)))


@pytest.fixture(scope="module")
def stores(make_store, tmp_path_factory):
    directory = tmp_path_factory.mktemp("stores")
    return {"long": make_store(directory / "long", 20_000), "short": make_store(directory / "short", 5_000)}


def joined(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].tobytes() == right[name].tobytes(), name


@settings(max_examples=30, deadline=None)
@given(step=st.integers(0, 40), hosts=st.sampled_from([1, 2, 4]), seed=st.integers(0, 3))
def test_rows_of_all_hosts_joined_are_the_global_batch(make_source, stores, step, hosts, seed):
    whole = make_source(stores, batch_size=RAMP, seed=seed).batch(step)
    assert batch_lib.check_batch(whole) == (RAMP.size(step), 16)
    parts = [
        make_source(stores, batch_size=RAMP, seed=seed, process_index=index, process_count=hosts).batch(step)
        for index in range(hosts)
    ]
    assert_same(joined(parts), whole)


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 20), skip=st.lists(st.integers(0, 60), max_size=2))
def test_cut_anywhere_and_resumed_gives_the_same_bytes(make_source, stores, cut, skip):
    options = {"batch_size": RAMP, "skip": [(first, first + 7) for first in skip]}
    uninterrupted = make_source(stores, **options)
    state = json.loads(json.dumps(uninterrupted.state(cut)))
    resumed = make_source(stores, **options).resumed(state, cut)
    for step in range(cut, cut + 4):
        assert_same(resumed.batch(step), uninterrupted.batch(step))


def test_the_seed_and_the_step_change_the_batch(make_source, stores):
    first = make_source(stores).batch(3)
    targets = batch_lib.TARGET_TOKENS
    assert not np.array_equal(first[targets], make_source(stores, seed=1).batch(3)[targets])
    assert not np.array_equal(first[targets], make_source(stores).batch(4)[targets])
    assert make_source(stores).fingerprint != make_source(stores, seed=1).fingerprint
    assert_same(first, make_source(stores).batch(3))


def test_the_bytes_are_part_of_the_format_of_a_run(make_source, stores):
    # If this fails, runs started with an older version no longer resume on the data they would have seen.
    source = make_source(stores, {"long": 3, "short": 1}, seed=17, skip=[(20, 25)], max_epochs=None)
    sums = [zlib.crc32(source.batch(step)[batch_lib.TARGET_TOKENS]) for step in (0, 3, 1000)]
    assert sums == [2057373712, 1387350646, 3897824790]


def test_one_epoch_holds_every_window_once_in_another_order_each_epoch(make_source, stores):
    source = make_source({"short": stores["short"]}, batch_size=1, max_epochs=None)
    rows = source.rows_per_epoch["short"]
    assert rows == (5_000 - 1) // 16
    epochs = [source.locate(np.arange(epoch * rows, (epoch + 1) * rows)) for epoch in (0, 1)]
    for number, epoch in enumerate(epochs):
        assert sorted(epoch.indices.tolist()) == list(range(rows))
        assert set(epoch.epochs.tolist()) == {number}
    assert np.mean(epochs[0].indices == epochs[1].indices) < 0.05


def test_windows_are_the_text(make_source, stores):
    source = make_source(stores, {"long": 3, "short": 1})
    locations = source.locate(np.arange(8))
    batch = source.batch(0)
    for row in range(8):
        store = stores[source.names[locations.sources[row]]]
        ((first, stop),) = source.delivery.spans(store.directory.name, int(locations.indices[row]))
        raw = store.tokens(first, stop)
        assert len(raw) == 17
        np.testing.assert_array_equal(batch[batch_lib.INPUT_TOKENS][row], raw[:-1])
        np.testing.assert_array_equal(batch[batch_lib.TARGET_TOKENS][row], raw[1:])


def test_rates_are_token_shares_whatever_the_lengths_of_documents(make_source, stores):
    source = make_source(stores, {"long": 1, "short": 3}, max_epochs=None)
    counts = source.token_counts(500)
    assert counts["short"] == pytest.approx(3 * counts["long"], rel=0.001)
    assert sum(counts.values()) == 500 * 8 * 16


def test_the_order_of_listing_changes_nothing(make_source, stores):
    left = make_source(stores, {"long": 2, "short": 1})
    right = make_source(dict(reversed(stores.items())), {"short": 1, "long": 2})
    assert left.fingerprint == right.fingerprint
    assert_same(left.batch(2), right.batch(2))


def test_a_slice_of_rows(make_source, stores):
    source = make_source(stores)
    whole = source.batch(5)
    part = source.batch(5, slice(2, 6))
    assert_same(part, {name: field[2:6] for name, field in whole.items()})


def test_skipped_rows_are_jumped_over(make_source, stores):
    plain, skipping = make_source(stores), make_source(stores, skip=[(16, 40)])
    assert_same(skipping.batch(1), plain.batch(1))
    for step in range(2, 6):
        assert_same(skipping.batch(step), plain.batch(step + 3))
    assert sum(skipping.token_counts(4).values()) == 4 * 8 * 16
    assert sum(skipping.rows_before(4).values()) == 4 * 8 + 24
    # The data is the same data: only the way through it differs.
    assert skipping.fingerprint == plain.fingerprint


def test_state_is_small_json(make_source, stores):
    state = make_source(stores, skip=[(4, 9)], batch_size=RAMP).state(7)
    assert state["row"] == 3 * 4 + 3 * 8 + 12
    assert state["skip"] == [[4, 9]]
    assert len(json.dumps(state)) < 1000


def test_skipping_on_resume(make_source, stores):
    state = make_source(stores).state(5)
    resumed = make_source(stores, skip=[(40, 56)]).resumed(state, 5)
    assert_same(resumed.batch(5), make_source(stores).batch(7))
    # The run goes on jumping when the configuration no longer says so.
    again = make_source(stores).resumed(resumed.state(6), 6)
    assert_same(again.batch(6), make_source(stores).batch(8))
    with pytest.raises(UserError, match=r"must lie ahead: at step 5 .* global rows before 40"):
        make_source(stores, skip=[(32, 48)]).resumed(state, 5)


def test_a_new_batch_size_counts_from_the_resume(make_source, stores):
    state = make_source(stores, batch_size=8).state(5)
    resumed = make_source(stores, batch_size=16).resumed(state, 5)
    plain = make_source(stores, batch_size=8)
    assert_same(resumed.batch(5), joined([plain.batch(5), plain.batch(6)]))
    assert resumed.state(6)["row"] == 5 * 8 + 16


@pytest.mark.parametrize(
    ("change", "part"),
    [({"seed": 9}, "seed"), ({"length": 8}, "length"), ({"objective": Other()}, "objective")],
)
def test_resuming_on_other_data_names_what_differs(make_source, stores, change, part):
    state = make_source(stores).state(5)
    with pytest.raises(UserError, match=f"differs from the checkpoint's in: {part};"):
        make_source(stores, **change).resumed(state, 5)


def test_resuming_on_other_stores(make_source, make_store, stores, tmp_path):
    state = make_source(stores).state(5)
    changed = {**stores, "short": make_store(tmp_path / "short", 5_001)}
    with pytest.raises(UserError, match="in: stores;"):
        make_source(changed).resumed(state, 5)


@settings(max_examples=20, deadline=None)
@given(change=st.integers(1, 9), resize=st.integers(1, 9), cut=st.integers(0, 12), linear=st.booleans())
def test_a_mixture_may_change_from_a_step_on(make_source, stores, change, resize, cut, linear):
    old = {"long": 1.0}
    plan = RatePlan(((0, old), (change, {"long": 1.0, "short": 3.0}), (change + 4, {"short": 1.0})), linear)
    first = make_source({"long": stores["long"]}, old)
    state = json.loads(json.dumps(first.state(change)))
    whole = make_source(stores, plan, max_epochs=None)
    if not linear:
        # What comes from `change` on was not yet known when the first steps were taken.
        resumed = make_source(stores, plan, max_epochs=None).resumed(state, change)
        for step in range(change, change + 6):
            assert_same(resumed.batch(step), whole.batch(step))
    # Changing the batch size on the way leaves the steps of the plan where they are.
    resized = make_source(stores, plan, 16, max_epochs=None).resumed(whole.state(resize), resize)
    again = make_source(stores, plan, 16, max_epochs=None).resumed(resized.state(resize + cut), resize + cut)
    assert_same(again.batch(resize + cut + 1), resized.batch(resize + cut + 1))
    assert resized.token_counts(resize) == whole.token_counts(resize)
    if resize <= change and not linear:
        assert resized.token_counts(change)["short"] == 0
    with pytest.raises(UserError, match=r"the mixture of the steps before .*RateSchedule"):
        make_source(stores, max_epochs=None).resumed(whole.state(change + 1), change + 1)


def test_too_little_data_is_found_before_the_first_step(make_source, stores):
    source = make_source(stores)
    rows = source.rows_per_epoch["short"]
    enough = 2 * rows // 8
    source.check_enough(enough)
    with pytest.raises(UserError, match=rf"'short' has {rows} rows .* asks for \d+ in 100 steps.*MAX_EPOCHS to 1\.2"):
        source.check_enough(100)
    make_source(stores, max_epochs=1.3).check_enough(100)
    make_source(stores, max_epochs=None).check_enough(10**9)


def test_a_batch_beyond_the_cap_is_refused(make_source, stores):
    source = make_source(stores)
    last = 2 * source.rows_per_epoch["short"] // 8
    source.batch(last - 1)
    with pytest.raises(UserError, match="'short'"):
        source.batch(last + 1)


def test_the_remedy_named_is_enough(make_source, stores):
    with pytest.raises(UserError) as caught:
        make_source(stores).check_enough(100)
    remedy = float(str(caught.value).split("MAX_EPOCHS to ")[1].split(" ")[0])
    make_source(stores, max_epochs=remedy).check_enough(100)


def test_epochs(make_source, stores):
    epochs = make_source(stores, max_epochs=None).epochs(78)
    assert epochs["short"] == pytest.approx(78 * 4 / 312)
    assert epochs["long"] == pytest.approx(78 * 4 / 1249)


def test_a_source_shorter_than_a_row(make_source, stores):
    with pytest.raises(UserError, match=r"'short' has 5000 tokens, fewer than the 5001"):
        make_source({"short": stores["short"]}, length=5000)


def test_a_batch_that_does_not_divide_among_hosts(make_source, stores):
    with pytest.raises(UserError, match="12 does not divide among 8"):
        make_source(stores, batch_size=BatchSchedule(((0, 8), (5, 12))), process_count=8)


def test_seek_is_not_a_replay(make_source, stores):
    source = make_source(stores, max_epochs=None)
    assert batch_lib.check_batch(source.batch(10**12)) == (8, 16)


def test_describe_names_every_source(make_source, stores):
    text = make_source(stores).describe()
    # An example of `long` has four times the tokens, so there are four times as many of `short`.
    assert "long: 0.5000 of the tokens, 0.2000 of the examples; 20,000 tokens in 1 documents" in text
    assert "short" in text
    assert make_source(stores).fingerprint[:12] in text


def test_a_cap_for_each_source(make_source, stores):
    source = make_source(stores, max_epochs={"short": 2.0})
    rows = source.rows_per_epoch
    source.check_enough(2 * rows["short"] * 2 // 8)
    with pytest.raises(UserError, match=r"'short' has .* max_epochs = 2;"):
        source.check_enough(2 * rows["short"] * 2 // 8 + 2)
    # Who is not named may be gone through once.
    with pytest.raises(UserError, match=r"'long' has .* max_epochs = 1;"):
        make_source(stores, {"long": 99, "short": 1}, max_epochs={"short": 2.0}).check_enough(rows["long"] // 8 + 4)
    with pytest.raises(UserError, match=r"max_epochs names 'shirt'; did you mean 'short'|shirt"):
        make_source(stores, max_epochs={"shirt": 2.0})


@pytest.mark.parametrize(("per_epoch", "rows"), [(50, 57), (60, 123), (100, 114), (100, 205), (3, 3 * 1234567 + 1)])
def test_the_advice_to_raise_max_epochs_is_enough(make_source, make_store, tmp_path, per_epoch, rows):
    stores = {"s": make_store(tmp_path / "s", 16 * per_epoch + 1)}
    with pytest.raises(UserError, match="MAX_EPOCHS to") as raised:
        make_source(stores, batch_size=1, max_epochs=1).check_enough(rows)
    enough = float(re.search(r"MAX_EPOCHS to (\S+) or more", str(raised.value))[1])
    make_source(stores, batch_size=1, max_epochs=enough).check_enough(rows)
    assert enough - rows / per_epoch < 0.01 + 1e-9


def test_many_sources_are_located_as_one_by_one(make_source, make_store, tmp_path):
    stores = {f"s{number:02}": make_store(tmp_path / f"s{number:02}", 33 + 7 * number) for number in range(40)}
    source = make_source(stores, batch_size=512, max_epochs=None)
    found = source.locate(source.global_rows(3))
    assert found.epochs.max() > found.epochs.min()
    for place in range(0, 512, 7):
        name, epoch = source.names[found.sources[place]], int(found.epochs[place])
        count = source.mixture.slot(found.rows[place : place + 1])[1]
        size = source.rows_per_epoch[name]
        assert found.indices[place] == permute(count % size, size, order_key(source.seed, epoch, name))[0]


def test_a_rate_that_is_too_small_to_be_honoured_is_said(make_source, stores):
    text = make_source(stores, {"long": 1.0, "short": 1e-5}).describe()
    assert "short: 1e-05 of the tokens was asked for from step 0 on, and 0.00024 is given" in text
    assert "asked for" not in make_source(stores, {"long": 1.0, "short": 1e-3}).describe()
