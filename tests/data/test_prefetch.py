import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from t5x_scale.data.prefetch import Prefetcher, host_rows, make_global_batch


class Counting:
    """A source whose batch is its step, and which may be slow or fail."""

    def __init__(self, delay=0.0, fail_at=None):
        self.delay, self.fail_at, self.rows = delay, fail_at, []

    def batch(self, step, rows=None):
        time.sleep(self.delay)
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


def test_the_wait_is_measured():
    with Prefetcher(Counting(delay=0.05), 0, lambda batch: batch, depth=1) as batches:
        next(batches)
        assert batches.wait_seconds > 0.03
        time.sleep(0.2)
        next(batches)
        assert batches.wait_seconds < 0.03
        assert batches.total_wait_seconds > 0.03


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
    assert host_rows(make_sharding(), 8, 4) == slice(0, 8)
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    assert host_rows(NamedSharding(mesh, PartitionSpec()), 8) == slice(0, 8)


class _TwoHosts:
    """A sharding of rows over two processes of two devices, as the second or first of them sees it."""

    def __init__(self, slices):
        self._slices = slices

    def addressable_devices_indices_map(self, shape):
        return {device: (rows, slice(None)) for device, rows in enumerate(self._slices)}


def test_host_rows_of_several_processes():
    assert host_rows(_TwoHosts([slice(4, 6), slice(6, 8)]), 8) == slice(4, 8)
    # Replicated over this host's devices.
    assert host_rows(_TwoHosts([slice(4, 8), slice(4, 8)]), 8) == slice(4, 8)
    with pytest.raises(ValueError, match="do not lie together"):
        host_rows(_TwoHosts([slice(0, 2), slice(4, 6)]), 8)
