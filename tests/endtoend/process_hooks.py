"""What a test does to a process before its command begins: `env={"PROCESS_HOOK": "slow_data:0.05"}`."""

import itertools
import threading
import time

from t5x_scale.data.batch_source import BatchSource


def slow_data(seconds):
    """Every batch of this process takes so many seconds more."""
    _around_batches(lambda step: time.sleep(float(seconds)))


def hang_data(step):
    """The source never gives the batch of a step."""
    _around_batches(lambda at: threading.Event().wait() if at == int(step) else None)


def jumping_clock(every):
    """The wall clock jumps a day ahead and a day back, in turn, every so many seconds."""
    honest, jumps = time.time, itertools.cycle((0.0, 86400.0, -86400.0))
    offset = next(jumps)

    def jump():
        nonlocal offset
        while True:
            time.sleep(float(every))
            offset = next(jumps)

    threading.Thread(target=jump, daemon=True).start()
    time.time = lambda: honest() + offset


def _around_batches(before):
    make = BatchSource.batch

    def batch(self, step, rows=None):
        before(step)
        return make(self, step, rows)

    BatchSource.batch = batch
