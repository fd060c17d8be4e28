"""A live stream that goes back and jumps over batches."""

import json

import pytest
from live_streams import Listed, assert_same, documents, make_live


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("skip", [(), ((8, 16),)])
def test_a_live_stream_goes_back_and_jumps_over_batches(shards, skip):
    def make():
        return make_live([Listed("a", documents(200)), Listed("b", documents(150, seed=1))], shards=shards, skip=skip)

    plain, base = make(), make()
    batches = [plain.batch(step) for step in range(14)]
    for step in range(6):
        base.batch(step)
    first, end = base.row_interval(5, 9)
    assert end - first == 4 * 8
    state = json.loads(json.dumps(base.state(4)))
    after = base.skipping([(first, end)]).resumed(state, 4)
    assert_same(after.batch(4), batches[4])
    for step in range(5, 10):
        assert_same(after.batch(step), batches[step + 4])
    # From the beginning of the run, too.
    anew = make().skipping([(first, end)])
    for step in (0, 4):
        assert_same(anew.batch(step), batches[step])
    assert_same(anew.batch(5), batches[9])
