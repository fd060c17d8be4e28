import struct

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from t5x_scale.core import files
from t5x_scale.monitor.event_file import EventFile


def read(path):
    data, events = files.to_path(path).read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        record = data[12 : 12 + length]
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(record)
        events.append(event_pb2.Event.FromString(record))
        data = data[16 + length :]
    return events


def read_all(directory):
    return [event for path in sorted(files.to_path(directory).iterdir()) for event in read(path)]


@pytest.mark.parametrize("remote", [False, True])
def test_scalars_and_restarts_arrive_once_and_in_order(tmp_path, bucket, remote):
    directory = f"{bucket}/metrics" if remote else tmp_path
    file = EventFile(directory, part_bytes=200)
    for step in range(1, 21):
        file.write(step, 10.0 + step, {"train/loss": step / 4, "eval/a/loss": float("nan")})
        if step % 3 == 0:
            file.flush()
    file.restart(18, 40.0)
    file.flush()
    file.flush()
    header, *events = read_all(directory)
    assert header.file_version == "brain.Event:2"
    assert [event.step for event in events] == [*range(1, 21), 18]
    assert [value.tag for value in events[0].summary.value] == ["train/loss", "eval/a/loss"]
    assert [event.summary.value[0].simple_value for event in events[:-1]] == [step / 4 for step in range(1, 21)]
    assert events[-1].session_log.status == event_pb2.SessionLog.SessionStatus.START
    parts = len(list(files.to_path(directory).iterdir()))
    assert (parts > 3) if remote else (parts == 1)


def test_a_flush_that_failed_half_way_is_done_over(tmp_path):
    file = EventFile(tmp_path)
    file.write(1, 1.0, {"train/loss": 1.0})
    file.flush()
    (path,) = tmp_path.iterdir()
    with open(path, "ab") as other:
        other.write(b"half a record")
    file.write(2, 2.0, {"train/loss": 1.0})
    file.flush()
    assert [event.step for event in read(path)] == [0, 1, 2]
