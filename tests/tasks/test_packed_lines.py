"""A packed file of JSON lines that would fill memory is refused when it has filled a little of it."""

import gzip
import tracemalloc

import pytest

from tasks import json_lines


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 1 << 20)
    file = tmp_path / "bomb.jsonl.gz"
    with gzip.open(file, "wb") as packed:
        packed.write(b'{"text": "short"}\n')
        for _ in range(64):
            packed.write(bytes(1 << 20))
    lines = json_lines.read_lines(str(file))
    tracemalloc.start()
    assert next(lines) == b'{"text": "short"}\n'
    with pytest.raises(ValueError, match="a line has more than 1,048,576 bytes"):
        next(lines)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_lines_of_the_longest_length(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 8)
    file = tmp_path / "lines.jsonl.gz"
    file.write_bytes(gzip.compress(b"1234567\n\n12345678"))
    assert list(json_lines.read_lines(str(file))) == [b"1234567\n", b"\n", b"12345678"]
