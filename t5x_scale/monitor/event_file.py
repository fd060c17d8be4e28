"""TensorBoard event files, local or on an object store, without TensorFlow.

tensorboardX's own writer waits when ten events are pending, and for `gs://` it uploads the whole file anew at each
flush, through another client and other credentials than the rest of this project. Only its protocol buffers and
checksums are used here. On an object store a run becomes a row of files, of which only the last is ever uploaded again.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import time as clock
from collections.abc import Mapping

from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

from t5x_scale.core import files

# TensorBoard reads the files of a directory in the order of their names and keeps its place in the last one.
PART_BYTES = 1 << 20


class EventFile:
    """Writes scalars of one process to `directory`. Not thread-safe; only `flush` and a full part do I/O."""

    def __init__(self, directory: str | os.PathLike, part_bytes: int = PART_BYTES):
        self._directory = files.to_path(directory)
        self._remote = files.is_remote(directory)
        self._part_bytes = part_bytes
        self._name = f"events.out.tfevents.{int(clock.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        self._number = 0
        self._written = 0
        self._buffer = io.BytesIO()
        self._dirty = False
        self._add(event_pb2.Event(wall_time=clock.time(), file_version="brain.Event:2"))

    def write(self, step: int, time: float, metrics: Mapping[str, float]) -> None:
        """Adds the scalars of one step (TensorBoard keeps them as float32)."""
        values = [summary_pb2.Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._add(event_pb2.Event(wall_time=time, step=step, summary=summary_pb2.Summary(value=values)))

    def restart(self, step: int, time: float) -> None:
        """Makes TensorBoard hide what was written for steps from `step` on: they are done again."""
        session = event_pb2.SessionLog(status=event_pb2.SessionLog.SessionStatus.START)
        self._add(event_pb2.Event(wall_time=time, step=step, session_log=session))

    def flush(self) -> None:
        """Makes everything written so far visible to TensorBoard."""
        if not self._dirty:
            return
        data = self._buffer.getvalue()
        if self._remote:
            (self._directory / f"{self._name}.{self._number:05d}").write_bytes(data)
            if len(data) >= self._part_bytes:
                self._number += 1
                self._buffer = io.BytesIO()
        else:
            # At a known place, so that a write that failed half-way is done over instead of added to.
            with open(self._directory / self._name, "r+b" if self._written else "wb") as file:
                file.seek(self._written)
                file.write(data)
            self._written += len(data)
            self._buffer = io.BytesIO()
        self._dirty = False

    def _add(self, event: event_pb2.Event) -> None:
        data = event.SerializeToString()
        header = struct.pack("<Q", len(data))
        for part in (header, _checksum(header), data, _checksum(data)):
            self._buffer.write(part)
        self._dirty = True


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
