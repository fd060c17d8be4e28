import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem


class _Bucket(MemoryFileSystem):
    """An object store in memory that answers to gs://."""

    protocol = ("gs", "gcs")
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        text = str(path)
        return super()._strip_protocol("/" + text.split("://", 1)[1] if "://" in text else text)


@pytest.fixture
def bucket(monkeypatch):
    """The address of an empty bucket."""
    monkeypatch.setattr(_Bucket, "store", {})
    monkeypatch.setattr(_Bucket, "pseudo_dirs", [""])
    monkeypatch.setattr(backend._FileSystemSpecBackend, "_get_filesystem", lambda self, name: _Bucket())
    return "gs://bucket"
