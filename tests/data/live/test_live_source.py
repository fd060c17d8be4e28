"""Live streams without SeqIO: the same bytes for any hosts, after any kill."""

import contextlib
import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_streams import SEPARATOR, Listed, assert_same, documents, make_live

from t5x_scale.core.errors import UserError
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.batch_source import BatchSource
from t5x_scale.data.freezing import freeze
from t5x_scale.data.live.examples import EndOfStreamError
from t5x_scale.data.mixtures.mixture_schedule import RatePlan
from t5x_scale.data.objectives import CausalLm
from t5x_scale.data.rows.packed_delivery import PackDocuments

STEPS = 12
LONG, SHORT = documents(300, seed=1, longest=90), documents(500, seed=2, longest=9, first=20_000)

VARIANTS = {
    "windows": {},
    "shuffled": {"shuffle_buffer": 7},
    "separate": {"packing": False},
    "packed": {"packing": PackDocuments(), "length": 24},
    "first fit": {"packing": PackDocuments(fit="first", attend_across_documents=True), "shuffle_buffer": 3},
    "sharded": {"shards": 4},
    "sampled": {"mixed": True},
    "sampled and packed": {"mixed": True, "packing": PackDocuments(), "shards": 2, "shuffle_buffer": 5},
    "skipping": {"skip": [(8, 24), (40, 44)], "shards": 2},
    "ramp": {"batch_size": BatchSchedule(((0, 4), (3, 8), (6, 12))), "shards": 4, "length": 8},
}


def sources():
    return [Listed("long", LONG), Listed("short", SHORT)]


@pytest.fixture(scope="module", params=VARIANTS, ids=VARIANTS)
def variant(request):
    """Options, and the batches that they give."""
    options = VARIANTS[request.param]
    source = make_live(sources(), **options)
    return options, [source.batch(step) for step in range(STEPS)]


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_any_number_of_hosts_gives_the_same_bytes(variant, hosts):
    options, batches = variant
    everyone = [make_live(sources(), **options, process_index=i, process_count=hosts) for i in range(hosts)]
    for step, batch in enumerate(batches):
        assert_same(joined([host.batch(step) for host in everyone]), batch)


@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(0, STEPS), max_size=4), ahead=st.integers(0, 3))
def test_killed_at_any_points_and_resumed(variant, cuts, ahead):
    options, batches = variant
    source, step = make_live(sources(), **options), 0
    for cut in [*sorted(cuts), STEPS]:
        for number in range(step, min(cut + ahead, STEPS)):
            assert_same(source.batch(number), batches[number])
        # Written ahead of what was consumed, as a prefetcher does.
        state = json.loads(json.dumps(source.state(cut)))
        source, step = make_live(sources(), **options).resumed(state, cut), cut


def test_any_order_of_steps(variant):
    options, batches = variant
    source = make_live(sources(), **options)
    for step in (5, 2, 3, 11, 0, 7):
        assert_same(source.batch(step), batches[step])


def test_rows_in_any_order_and_more_than_once(variant):
    options, batches = variant
    rows = np.array([3, 0, 3, 2])
    batch = make_live(sources(), **options).batch(4, rows)
    assert_same(batch, {name: values[rows] for name, values in batches[4].items()})


def test_a_resume_on_other_hosts_reads_what_it_has_no_record_of(variant):
    """Process 0 of four knows its own shards; two hosts go on from its checkpoint."""
    options, batches = variant
    first = make_live(sources(), **options, process_index=0, process_count=4)
    for step in range(5):
        first.batch(step)
    state = json.loads(json.dumps(first.state(5)))
    hosts = [make_live(sources(), **options, process_index=i, process_count=2).resumed(state, 5) for i in range(2)]
    for step in (5, 6):
        assert_same(joined([host.batch(step) for host in hosts]), batches[step])


def test_shared_state_knows_every_shard():
    everyone = [make_live(sources(), shards=4, process_index=i, process_count=2) for i in range(2)]
    for host in everyone:
        host.batch(0)
    known = [host.state(1)["shards"] for host in everyone]
    assert [sorted(part) for part in known] == [["0", "1"], ["2", "3"]]
    everyone[0]._share = lambda value: [json.loads(json.dumps(part)) for part in (value, known[1])]
    assert sorted(everyone[0].state(1)["shards"]) == ["0", "1", "2", "3"]


def test_windows_are_the_stores_own_stream(tmp_path):
    """Unshuffled, one source: the rows of the store's windows, in its order."""
    store = freeze(
        LONG, tmp_path / "s", source={}, vocabulary_fingerprint="v", vocabulary_size=60_000, separator_id=SEPARATOR
    )
    live = make_live([Listed("long", LONG)])
    raw = store.tokens(0, store.num_tokens)
    for step in range(4):
        batch = live.batch(step)
        inputs, targets = batch["decoder_input_tokens"].ravel(), batch["decoder_target_tokens"].ravel()
        first = step * 8 * 16
        np.testing.assert_array_equal(inputs, raw[first : first + 128])
        np.testing.assert_array_equal(targets, raw[first + 1 : first + 129])


def test_randomness_is_keyed_by_global_row(tmp_path):
    """A batch cut otherwise into steps holds the same rows."""
    small, large = make_live(sources(), batch_size=4), make_live(sources(), batch_size=12)
    assert_same(joined([small.batch(step) for step in range(3)]), large.batch(0))


def test_no_token_is_lost_or_repeated_across_passes():
    source = make_live([Listed("long", LONG)], shards=2, shuffle_buffer=50)
    size = sum(len(document) + 1 for document in LONG if len(document))
    steps = size // (8 * 16)
    targets = np.concatenate([source.batch(step)["decoder_target_tokens"].ravel() for step in range(2 * steps)])
    tokens, counts = np.unique(targets[targets != SEPARATOR], return_counts=True)
    # Two passes: none missing but at the ends, none seen a third time before all were seen twice, to within a row.
    assert len(tokens) > 0.98 * (size - len(LONG))
    assert counts.max() <= 3
    assert (counts == 2).mean() > 0.9


def test_token_shares():
    source = make_live(sources(), {"long": 3, "short": 1})
    batches = joined([source.batch(step) for step in range(16)])["decoder_target_tokens"]
    from_short = (batches >= 20_000).any(axis=1)
    assert from_short.sum() == 32
    assert source.rows_before(16) == {"long": 96, "short": 32}
    assert source.token_counts(16) == {"long": 96 * 16, "short": 32 * 16}


def test_sampling_counts_examples():
    long = Listed("long", [np.full(40, 5)] * 100)
    short = Listed("short", [np.full(1, 7)] * 100)
    source = make_live([long, short], {"long": 1.0, "short": 1.0}, mixed=True)
    targets = joined([source.batch(step) for step in range(100)])["decoder_target_tokens"]
    examples = (targets == 5).sum() / 40, (targets == 7).sum()
    assert examples[0] / sum(examples) == pytest.approx(0.5, abs=0.03)


def test_a_plan_of_rates_goes_by_the_steps_rows():
    plan = RatePlan(((0, {"long": 1.0}), (5, {"short": 1.0})))
    source = make_live(sources(), plan, shards=4)
    for step, is_short in ((4, False), (5, True)):
        tokens = source.batch(step)["decoder_target_tokens"]
        assert ((tokens >= 20_000) | (tokens == SEPARATOR)).all() == is_short
    other = make_live(sources(), RatePlan(((0, {"long": 1.0}), (7, {"short": 1.0}))), shards=4)
    assert (other.resumed(source.state(5), 5).batch(6)["decoder_target_tokens"] < 20_000).all()
    with pytest.raises(UserError, match="the mixture of the steps before 7"):
        other.resumed(source.state(7), 7)


def test_skipped_rows_are_those_that_would_have_come():
    plain, skipping = make_live(sources(), shards=2), make_live(sources(), shards=2, skip=[(16, 40)])
    assert_same(skipping.batch(1), plain.batch(1))
    for step in range(2, 6):
        assert_same(skipping.batch(step), plain.batch(step + 3))
    assert sum(skipping.token_counts(4).values()) == 4 * 8 * 16
    assert skipping.fingerprint == plain.fingerprint


def test_skipping_and_another_batch_size_on_resume():
    state = make_live(sources()).state(5)
    resumed = make_live(sources(), skip=[(40, 56)]).resumed(state, 5)
    assert_same(resumed.batch(5), make_live(sources()).batch(7))
    again = make_live(sources()).resumed(resumed.state(6), 6)
    assert_same(again.batch(6), make_live(sources()).batch(8))
    with pytest.raises(UserError, match=r"must lie ahead: at step 5 .* global rows before 40"):
        make_live(sources(), skip=[(32, 48)]).resumed(state, 5)
    wider = make_live(sources(), batch_size=16).resumed(state, 5)
    plain = make_live(sources())
    assert_same(wider.batch(5), joined([plain.batch(5), plain.batch(6)]))
    assert wider.state(6)["row"] == 5 * 8 + 16
    assert_same(wider.batch(2), plain.batch(2))


def test_a_resume_reads_one_pass_at_most_and_tokenises_little():
    source = make_live([Listed("long", LONG)])
    for step in range(300):
        source.batch(step)
    state = source.state(300)
    assert state["shards"]["0"]["positions"]["long"][0] >= 2
    size = sum(len(document) + 1 for document in LONG if len(document))
    assert source.epochs(300)["long"] == pytest.approx(300 * 128 / size, abs=0.02)
    listed = Listed("long", LONG)
    assert_same(make_live([listed]).resumed(state, 300).batch(300), source.batch(300))
    # Reading ahead goes on past the position: what is not tokenised are the documents before it.
    example = state["shards"]["0"]["positions"]["long"][1]
    assert listed.read - listed.encoded == example > 0


def change(where):
    changed = [document.copy() for document in LONG]
    changed[where] = np.append(changed[where], 77)
    return changed


@pytest.mark.parametrize(
    "after",
    [change(3), LONG[1:], LONG[:5], [LONG[1], LONG[0], *LONG[2:]], LONG[::-1]],
    ids=["changed", "missing", "shorter", "moved", "reversed"],
)
@pytest.mark.parametrize("packing", [None, PackDocuments()], ids=["windows", "packed"])
def test_a_source_that_gives_other_examples_is_refused(after, packing):
    options = {"packing": packing, "group_rows": 1}
    source = make_live([Listed("long", LONG)], **options)
    for step in range(4):
        source.batch(step)
    state = source.state(4)
    make_live([Listed("long", LONG)], **options).resumed(state, 4).batch(4)
    resumed = make_live([Listed("long", after)], **options).resumed(state, 4)
    for _ in range(2):
        with pytest.raises(UserError, match=r"'long' does not give the same examples again: of the \d+ read before"):
            resumed.batch(4)


def test_a_change_ahead_is_not_looked_at():
    source = make_live([Listed("long", LONG)])
    source.batch(0)
    resumed = make_live([Listed("long", change(200))]).resumed(source.state(1), 1)
    for name, field in source.batch(1).items():
        np.testing.assert_array_equal(resumed.batch(1)[name], field)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"seed": 9}, "seed"),
        ({"length": 8}, "length"),
        ({"shards": 2}, "live_shards"),
        ({"shuffle_buffer": 8}, "live_shuffle_buffer"),
        ({"packing": False}, "packing"),
    ],
)
def test_other_settings_are_refused_by_name(options, part):
    state = make_live(sources()).state(2)
    with pytest.raises(UserError, match=f"differs from the checkpoint's in: {part};"):
        make_live(sources(), **options).resumed(state, 2)


def test_a_checkpoint_of_a_token_store_is_refused(tmp_path):
    store = freeze(LONG, tmp_path / "s", source={}, vocabulary_fingerprint="v", vocabulary_size=60_000, separator_id=1)
    stored = BatchSource({"long": store}, {"long": 1.0}, BatchSchedule(8), CausalLm(), length=16, seed=0)
    with pytest.raises(UserError, match="delivery"):
        make_live([Listed("long", LONG)]).resumed(stored.state(1), 1)
    with pytest.raises(UserError, match="delivery"):
        stored.resumed(make_live([Listed("long", LONG)]).state(1), 1)


def test_an_end_is_said_when_it_is_reached():
    source = make_live([Listed("long", LONG)], max_epochs=1)
    size = sum(len(document) + 1 for document in LONG if len(document))
    steps = (size - 1) // (8 * 16)
    source.check_enough(10**9)
    for step in range(steps):
        source.batch(step)
    for _ in range(2):
        with pytest.raises(UserError, match=r"'long' has 300 examples and was gone through max_epochs = 1 times"):
            source.batch(steps)
    more = make_live([Listed("long", LONG)], max_epochs=1.5).resumed(source.state(steps), steps)
    for step in range(steps, int(1.4 * size) // 128):
        more.batch(step)
    with pytest.raises(UserError, match=r"max_epochs = 1\.5"):
        [more.batch(step) for step in range(steps, 2 * steps)]


def test_a_last_group_is_delivered_and_goes_on_where_it_was():
    """A stream ends within a group of packed rows; more epochs do not change the rows that were delivered."""
    options = {"packing": PackDocuments(), "group_rows": 10**6, "batch_size": 1}
    source = make_live([Listed("long", LONG)], max_epochs=1, **options)
    batches: list = []
    with contextlib.suppress(EndOfStreamError):
        batches.extend(source.batch(step) for step in range(10**6))
    tokens = np.concatenate([batch["decoder_target_tokens"].ravel() for batch in batches])
    assert np.isin(np.concatenate(LONG), tokens).all()
    half = len(batches) // 2
    again = make_live([Listed("long", LONG)], max_epochs=1, **options)
    again.batch(half - 1)
    more = make_live([Listed("long", LONG)], max_epochs=2, **options).resumed(again.state(half), half)
    assert_same(more.batch(len(batches) - 1), batches[-1])
    more.batch(len(batches))


def test_a_broken_example_ends_the_run_where_it_stands_and_not_before():
    whole, broken = make_live([Listed("long", LONG)]), make_live([Listed("long", LONG, fail_at=200)])
    tokens = sum(len(document) + 1 for document in LONG[:200] if len(document))
    steps = (tokens - 1) // 128
    for step in range(steps):
        assert_same(broken.batch(step), whole.batch(step))
    for _ in range(2):
        with pytest.raises(UserError, match="document 200 is broken"):
            broken.batch(steps)
    assert_same(broken.batch(3), whole.batch(3))


def test_a_broken_example_makes_no_group_shorter():
    """Packed rows of a group that could not be read whole would be rows that no other run has."""
    options = {"packing": PackDocuments(), "batch_size": 1, "group_rows": 8}
    whole = make_live([Listed("long", LONG)], **options)
    broken = make_live([Listed("long", LONG, fail_at=200)], **options)
    batches = []
    with contextlib.suppress(UserError):
        batches.extend(broken.batch(step) for step in range(10**6))
    assert len(batches) > 8
    for step, batch in enumerate(batches):
        assert_same(batch, whole.batch(step))


def test_what_is_left_out_is_said_again_at_ten_times_as_much(caplog):
    documents = [*LONG[:20], *([[]] * 30)]
    source = make_live([Listed("some", documents)], max_epochs=40)
    with contextlib.suppress(EndOfStreamError), caplog.at_level(logging.INFO):
        [source.batch(step) for step in range(10**6)]
    said = [message for message in caplog.messages if "left out" in message]
    counts = [int(message.split()[1]) for message in said]
    assert len(counts) == 2
    assert counts[1] >= 10 * counts[0] > 0
    assert said[0].startswith("'some': ")
    dropping = PackDocuments(long_documents="drop")
    caplog.clear()
    make_live([Listed("mixed", [[5] * 100, [6] * 5])], packing=dropping, batch_size=1, group_rows=2).batch(0)
    assert "'mixed/0': 1 documents too long for a row were left out so far" in caplog.messages


def test_nothing_to_deliver():
    with pytest.raises(UserError, match="'none' has no examples"):
        make_live([Listed("none", [])]).batch(0)
    with pytest.raises(UserError, match="shard 1 of 4 of 'one' has no examples: lower live_shards"):
        make_live([Listed("one", LONG[:1])], shards=4).batch(0, np.array([2]))
    with pytest.raises(UserError, match=r"'empty': .* examples in a row have no tokens"):
        make_live([Listed("empty", [[]] * 50)]).batch(0)


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match="batch size 8 does not divide among live_shards = 3"):
        make_live(sources(), shards=3)
    with pytest.raises(UserError, match="live_shards is 0"):
        make_live(sources(), shards=0)
    with pytest.raises(UserError, match="12 does not divide among 8 processes"):
        make_live(sources(), batch_size=12, process_count=8)
    with pytest.raises(UserError, match=r"\(2, 5\) must begin and end at a multiple of live_shards = 2"):
        make_live(sources(), shards=2, skip=[(2, 5)])


def test_the_cost_of_a_seek_is_said_once(caplog):
    source = make_live(sources(), remedy="python tools/build_token_store.py --task long")
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            source.batch(step)
        assert not caplog.records
        resumed = make_live(sources(), remedy="python tools/build_token_store.py --task long").resumed(
            source.state(3), 3
        )
        for step in range(3, 6):
            resumed.batch(step)
        resumed.batch(3)
    (record,) = caplog.records
    assert "seeking to step 3 of a live stream reads" in record.getMessage()
    assert record.getMessage().endswith("build it with: python tools/build_token_store.py --task long")


def test_describe():
    text = make_live(sources(), shards=4, process_count=2).describe()
    assert "reads 2 of 4 live_shards" in text
    assert "long: 0.5000 of the tokens" in text
