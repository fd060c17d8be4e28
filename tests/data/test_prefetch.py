import threading
import time
import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_scale.data import prefetch
from t5x_scale.data.prefetch import Prefetcher, host_rows, make_global_batch


class Counting:
    """A source whose batch is its step, and which may fail."""

    def __init__(self, fail_at=None):
        self.fail_at, self.rows = fail_at, []

    def batch(self, step, rows=None):
        if step == self.fail_at:
            raise RuntimeError(f"step {step} broke")
        self.rows.append(rows)
        return {"x": np.full((8, 4), step, np.int32)}


def make_sharding():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec("data"))


def test_batches_come_in_order_from_the_start_step():
    with Prefetcher(Counting(), 5, lambda batch: batch, depth=3) as batches:
        got = [(step, int(batch["x"][0, 0])) for step, batch in (next(batches) for _ in range(20))]
    assert got == [(step, step) for step in range(5, 25)]


def test_global_arrays_hold_the_batch():
    sharding = make_sharding()
    with Prefetcher(Counting(), 3, make_global_batch(sharding)) as batches:
        step, batch = next(batches)
    assert step == 3
    assert batch["x"].sharding.is_equivalent_to(sharding, 2)
    assert batch["x"].shape == (8, 4)
    np.testing.assert_array_equal(batch["x"], np.full((8, 4), 3))


class Gated(Counting):
    """Makes a batch when it is let, which takes three seconds of a clock of its own."""

    def __init__(self):
        super().__init__()
        self.let, self.now = threading.Semaphore(0), 0

    def batch(self, step, rows=None):
        self.let.acquire()
        self.now += 3
        return super().batch(step, rows)


def test_the_wait_is_measured(monkeypatch):
    source = Gated()
    monkeypatch.setattr(prefetch, "time", types.SimpleNamespace(perf_counter=lambda: source.now))
    with Prefetcher(source, 0, lambda batch: batch, depth=1) as batches:
        get = batches._queue.get
        batches._queue.get = lambda: (source.let.release(), get())[1]
        next(batches)
        assert batches.wait_seconds == 3
        # One that is ready is not waited for.
        batches._queue.get = get
        source.let.release()
        while batches._queue.empty():
            time.sleep(0.001)
        next(batches)
        assert (batches.wait_seconds, batches.total_wait_seconds) == (0, 3)
        source.let.release(9)


def test_an_exception_arrives_where_it_happened_and_stays():
    with Prefetcher(Counting(fail_at=2), 0, lambda batch: batch) as batches:
        assert [next(batches)[0] for _ in range(2)] == [0, 1]
        for _ in range(2):
            with pytest.raises(RuntimeError, match="step 2 broke"):
                next(batches)


def test_an_exception_of_the_transfer_arrives():
    def fail(batch):
        raise ValueError("no device")

    with Prefetcher(Counting(), 0, fail) as batches, pytest.raises(ValueError, match="no device"):
        next(batches)


def test_close_joins_the_thread():
    before = threading.active_count()
    batches = Prefetcher(Counting(), 0, lambda batch: batch, depth=1)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    batches.close()
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(batches)


def test_no_more_than_depth_ahead():
    source = Counting()
    with Prefetcher(source, 0, lambda batch: batch, depth=2) as batches:
        next(batches)
        time.sleep(0.2)
        # One delivered, two in the queue, one waiting for room.
        assert len(source.rows) == 4


def test_rows_are_asked_for():
    source = Counting()
    with Prefetcher(source, 7, lambda batch: batch, rows=lambda step: slice(0, step)) as batches:
        next(batches)
    assert source.rows[0] == slice(0, 7)


def test_host_rows_of_one_process_are_all():
    np.testing.assert_array_equal(host_rows(make_sharding(), 8), np.arange(8))
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    np.testing.assert_array_equal(host_rows(NamedSharding(mesh, PartitionSpec()), 8), np.arange(8))
    with pytest.raises(ValueError, match="6 rows do not divide over 4"):
        host_rows(make_sharding(), 6)


class _Hosts:
    """A sharding of rows over several processes: the block of every device, and the devices of this process."""

    def __init__(self, blocks, mine):
        self.device_set = set(range(len(blocks)))
        self._blocks, self._mine = blocks, mine

    def devices_indices_map(self, shape):
        height = shape[0] // (max(self._blocks) + 1)
        return {d: (slice(b * height, (b + 1) * height), slice(None)) for d, b in enumerate(self._blocks)}

    def addressable_devices_indices_map(self, shape):
        return {d: index for d, index in self.devices_indices_map(shape).items() if d in self._mine}


@pytest.mark.parametrize(
    ("blocks", "mine", "rows"),
    [
        ([0, 1, 2, 3], {2, 3}, [4, 5, 6, 7]),
        # One copy a device, as on a machine whose hosts share a model.
        ([0, 0, 1, 1], {2, 3}, [4, 5, 6, 7]),
        # A torus: this host's chips stand apart.
        ([0, 2, 1, 3], {0, 1}, [0, 1, 4, 5]),
        ([3, 0, 2, 1], {0, 1}, [0, 1, 6, 7]),
    ],
)
def test_host_rows_of_several_processes(blocks, mine, rows):
    np.testing.assert_array_equal(host_rows(_Hosts(blocks, mine), 8), rows)


def test_rows_find_their_place_on_a_mesh_in_any_order():
    devices = np.asarray(jax.devices())[[5, 0, 3, 6, 1, 7, 2, 4]].reshape(4, 2)
    sharding = NamedSharding(Mesh(devices, ("data", "context")), PartitionSpec("data", "context"))
    batch = np.arange(32, dtype=np.int32).reshape(8, 4)
    placed = make_global_batch(sharding)({"x": batch[host_rows(sharding, 8)]})["x"]
    np.testing.assert_array_equal(placed, batch)
    assert placed.sharding == sharding
