"""The token store: a corpus frozen once as tokens and document starts, read at any position.

A store is a directory:

    manifest.json     written last: a directory without it is not a store
    tokens/           zarr3 array [num_tokens], uint16 (vocabularies up to 65536) or int32
    documents/        zarr3 array [num_documents], int64: position of each document's first token

Documents follow one another, each closed by the separator (PaLM's [eod]). The arrays use the plain `bytes` codec and
no shards, so on a local disk every chunk is a file whose bytes are the tokens, and is memory-mapped; elsewhere
TensorStore reads them. Freezing a corpus into a store is `data.freezing`.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data.mapped_array import MappedArray, check_ranges
from t5x_scale.data.store_manifest import CHECKSUM_TOKENS, MANIFEST, Manifest, is_finished, read_manifest

# Elements of one file. Local files are mapped, so large ones cost nothing; an object is fetched whole.
LOCAL_CHUNK = 2**24
REMOTE_CHUNK = 2**18
_REMOTE_CACHE_BYTES = 2**29


class TokenStore:
    """A finished store, open for reading. Safe to share between threads that read."""

    def __init__(self, directory: files.Path, manifest: Manifest):
        self.directory = directory
        self.manifest = manifest
        make = _RemoteArray if files.is_remote(directory) else MappedArray
        self._tokens = make(directory / "tokens", np.dtype(manifest.dtype), manifest.num_tokens)
        self._documents = make(directory / "documents", np.dtype(np.int64), manifest.num_documents)

    @classmethod
    def open(cls, directory: str | os.PathLike, vocabulary_fingerprint: str | None = None) -> TokenStore:
        """Opens a finished store.

        Args:
          directory: local or `gs://`.
          vocabulary_fingerprint: when given, the store must have been built with this vocabulary.

        Raises:
          UserError: the store is missing, unfinished, of another format or vocabulary, or a file of it is missing or
            has another size. One line that names the directory.
        """
        path = files.to_path(directory)
        if not is_finished(path):
            state = "was never finished (no manifest)" if path.exists() else "does not exist"
            raise UserError(f"the token store {path} {state}; build it again")
        manifest = read_manifest(path)
        if vocabulary_fingerprint is not None and manifest.vocabulary_fingerprint != vocabulary_fingerprint:
            raise UserError(
                f"the token store {path} was built with another vocabulary (fingerprint "
                f"{manifest.vocabulary_fingerprint[:12]}, {manifest.vocabulary_size} ids; the run's is "
                f"{vocabulary_fingerprint[:12]}): use that vocabulary or another store_dir"
            )
        return cls(path, manifest)

    @property
    def num_tokens(self) -> int:
        return self.manifest.num_tokens

    @property
    def num_documents(self) -> int:
        return self.manifest.num_documents

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as int32 [stop - start].

        Raises:
          ValueError: the range does not lie within the store.
        """
        return self.windows(np.array([start], np.int64), stop - start)[0]

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Equally long pieces of the stream.

        Args:
          starts: int64 [n], first position of each piece.
          length: tokens of each piece.

        Returns:
          int32 [n, length].

        Raises:
          ValueError: a piece does not lie within the store.
        """
        out = np.empty((len(starts), length), np.int32)
        self._tokens.read_into(np.asarray(starts, np.int64), out)
        return out

    def read_windows(self, starts: np.ndarray, out: np.ndarray, rows: np.ndarray) -> None:
        """As `windows`, but into the rows `rows` [n] of `out`, int32 [any, length], without a copy between."""
        self._tokens.read_into(np.asarray(starts, np.int64), out, rows)

    def document_of(self, position: int) -> int:
        """Index of the document that holds token `position`; a separator belongs to the document it closes."""
        if not 0 <= position < self.num_tokens:
            raise ValueError(f"position {position} is outside the store's {self.num_tokens} tokens")
        low, high = 0, self.num_documents
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._start_of(middle) <= position else (low, middle)
        return low

    def document_span(self, document: int) -> tuple[int, int]:
        """(first, one past the last) position of a document, its separator included."""
        if not 0 <= document < self.num_documents:
            raise ValueError(f"document {document} is outside the store's {self.num_documents} documents")
        last = document + 1 == self.num_documents
        return self._start_of(document), self.num_tokens if last else self._start_of(document + 1)

    def unigram_counts(self) -> np.ndarray:
        """int64 [vocabulary_size]: how often each id occurs. Reads the whole store, a block at a time."""
        counts = np.zeros(self.manifest.vocabulary_size, np.int64)
        for start in range(0, self.num_tokens, CHECKSUM_TOKENS):
            block = self.tokens(start, min(start + CHECKSUM_TOKENS, self.num_tokens))
            counts += np.bincount(block, minlength=len(counts))
        return counts

    def unigram_entropy(self) -> float:
        """Entropy of the id frequencies in nats a token: the loss of a model that knows only frequencies."""
        counts = self.unigram_counts()
        shares = counts[counts > 0] / self.num_tokens
        return float(-np.sum(shares * np.log(shares)))

    def verify(self) -> None:
        """Reads everything and compares it with the checksums.

        Raises:
          UserError: naming the first damaged part.
        """
        for index, start in enumerate(range(0, self.num_tokens, CHECKSUM_TOKENS)):
            stop = min(start + CHECKSUM_TOKENS, self.num_tokens)
            block = self.tokens(start, stop).astype(np.dtype(self.manifest.dtype).newbyteorder("<"))
            if zlib.crc32(block) != self.manifest.checksums[index]:
                raise UserError(
                    f"the token store {self.directory} is damaged: tokens {start} to {stop} do not match their "
                    "checksum; delete the store and build it again"
                )
        checksum = 0
        for start in range(0, self.num_documents, CHECKSUM_TOKENS):
            out = np.empty((1, min(CHECKSUM_TOKENS, self.num_documents - start)), "<i8")
            self._documents.read_into(np.array([start]), out)
            checksum = zlib.crc32(out, checksum)
        if checksum != self.manifest.documents_checksum:
            raise UserError(
                f"the token store {self.directory} is damaged: the document starts do not match their checksum; "
                "delete the store and build it again"
            )

    def _start_of(self, document: int) -> int:
        out = np.empty((1, 1), np.int64)
        self._documents.read_into(np.array([document]), out)
        return int(out[0, 0])


class TokenStoreWriter:
    """Writes a store as a stream; memory is one chunk, whatever the corpus.

    As a context manager it finishes the store when the block ends and leaves it unfinished when the block raises:

        with TokenStoreWriter(directory, source=..., ...) as writer:
            for document in documents:
                writer.add(document)
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        source: Mapping[str, Any],
        vocabulary_fingerprint: str,
        vocabulary_size: int,
        separator_id: int,
        chunk: int | None = None,
    ):
        """Args:
          directory: local or `gs://`; created, must not hold a finished store.
          source: JSON-able description kept in the manifest.
          vocabulary_fingerprint, vocabulary_size, separator_id: of the vocabulary of the documents.
          chunk: elements of one file; chosen by where the store lies when not given.

        Raises:
          UserError: the directory cannot be written.
        """
        self.directory = files.make_directory(directory)
        self._source = dict(source)
        self._vocabulary = (vocabulary_fingerprint, vocabulary_size, separator_id)
        self._separator = np.array([separator_id])
        dtype = np.dtype("<u2" if vocabulary_size <= 2**16 else "<i4")
        chunk = chunk or (REMOTE_CHUNK if files.is_remote(directory) else LOCAL_CHUNK)
        self._tokens = _ArrayWriter(self.directory / "tokens", dtype, chunk, CHECKSUM_TOKENS)
        self._documents = _ArrayWriter(self.directory / "documents", np.dtype("<i8"), max(chunk // 16, 1), None)
        self._empty = 0

    def add(self, tokens: np.ndarray) -> None:
        """Appends a document and the separator, which is not doubled when the document already ends in it.

        A document without tokens is counted and left out.

        Raises:
          UserError: an id outside the vocabulary, or the disk is full.
        """
        tokens = np.asarray(tokens)
        if not tokens.size:
            self._empty += 1
            return
        fingerprint, size, separator = self._vocabulary
        if tokens.min() < 0 or tokens.max() >= size:
            bad = int(tokens.min()) if tokens.min() < 0 else int(tokens.max())
            raise UserError(
                f"document {len(self._documents) + self._empty} of {self._describe_source()} holds the id {bad}; "
                f"the vocabulary {fingerprint[:12]} has {size} ids"
            )
        self._documents.extend(np.array([len(self._tokens)]))
        self._tokens.extend(tokens)
        if tokens[-1] != separator:
            self._tokens.extend(self._separator)

    def finish(self) -> Manifest:
        """Writes what is buffered, then the manifest: from here on the store opens.

        Raises:
          UserError: there was no document.
        """
        if not len(self._documents):
            extra = f" ({self._empty} documents without a token)" if self._empty else ""
            raise UserError(f"{self._describe_source()} gave no documents{extra}")
        checksums, (documents_checksum,) = self._tokens.finish(), self._documents.finish()
        fingerprint, size, separator = self._vocabulary
        manifest = Manifest(
            vocabulary_fingerprint=fingerprint,
            vocabulary_size=size,
            separator_id=separator,
            dtype=self._tokens.dtype.name,
            num_tokens=len(self._tokens),
            num_documents=len(self._documents),
            empty_documents=self._empty,
            checksums=tuple(checksums),
            documents_checksum=documents_checksum,
            source=self._source,
        )
        manifest = dataclasses.replace(manifest, fingerprint=manifest.content_fingerprint())
        try:
            files.write_json(self.directory / MANIFEST, dataclasses.asdict(manifest))
        except OSError as error:
            raise UserError(f"cannot write {self.directory / MANIFEST}: {error.strerror or error}") from error
        return manifest

    def _describe_source(self) -> str:
        split = f", split '{self._source['split']}'" if "split" in self._source else ""
        return f"the data source '{self._source.get('task', 'unnamed')}'{split}"

    def __enter__(self) -> TokenStoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.finish()


def _open_zarr(path: files.Path, *, writable: bool = False, metadata: dict[str, Any] | None = None) -> Any:
    """Opens, or with `metadata` creates, a zarr3 array through TensorStore.

    Creating deletes what is there: in an object store a build that was killed leaves its arrays behind.
    """
    import tensorstore as ts  # A local store is read without it.

    text = os.fspath(path)
    spec: dict[str, Any] = {
        "driver": "zarr3",
        "kvstore": text + "/" if files.is_remote(path) else {"driver": "file", "path": text + "/"},
        # A chunk of nothing but zeros must exist as a file too, or it could not be mapped.
        "store_data_equal_to_fill_value": True,
    }
    if metadata:
        spec["metadata"] = metadata
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0 if writable else _REMOTE_CACHE_BYTES}})
    create = bool(metadata)
    return ts.open(spec, context=context, create=create, delete_existing=create, read=True, write=writable).result()


def _reason(error: Exception) -> str:
    """What TensorStore says went wrong, without the specification of the array that it appends."""
    return str(error).split(" [tensorstore_spec", 1)[0]


class _ArrayWriter:
    """Appends to a one-dimensional zarr3 array, one file at a time, and sums its blocks on the way."""

    def __init__(self, path: files.Path, dtype: np.dtype, chunk: int, block: int | None):
        self.dtype = dtype
        self._path = path
        self._chunk = chunk
        self._block = block
        # Pages of it that are never reached are never allocated.
        self._buffer = np.empty(chunk, dtype)
        self._filled = 0
        self._written = 0
        self._array: Any = None
        self._checksums = [0]
        self._in_block = 0

    def __len__(self) -> int:
        return self._written + self._filled

    def extend(self, values: np.ndarray) -> None:
        while len(values):
            take = min(self._chunk - self._filled, len(values))
            self._buffer[self._filled : self._filled + take] = values[:take]
            self._filled += take
            values = values[take:]
            if self._filled == self._chunk:
                self._write(self._buffer, self._chunk)

    def finish(self) -> list[int]:
        """Writes the rest and returns the checksums of the blocks (of the whole, when there are no blocks)."""
        if self._filled:
            # All files of a zarr array have one length; an array of a single file is made no longer than it is.
            self._write(self._buffer[: self._filled], self._chunk if self._written else self._filled)
        if self._block and not self._in_block:
            self._checksums.pop()
        return self._checksums

    def _write(self, values: np.ndarray, chunk: int) -> None:
        try:
            if self._array is None:
                self._array = _open_zarr(self._path, writable=True, metadata=_array_metadata(self.dtype, chunk))
            begin, end = self._written, self._written + len(values)
            self._array = self._array.resize(exclusive_max=[end], resize_metadata_only=True).result()
            self._array[begin:end].write(values).result()
        except (ValueError, OSError) as error:
            raise UserError(f"cannot write the token store at {self._path}: {_reason(error)}") from error
        self._written, self._filled = end, 0
        self._sum(values)

    def _sum(self, values: np.ndarray) -> None:
        while len(values):
            take = min(self._block - self._in_block, len(values)) if self._block else len(values)
            self._checksums[-1] = zlib.crc32(values[:take], self._checksums[-1])
            self._in_block += take
            values = values[take:]
            if self._in_block == self._block:
                self._checksums.append(0)
                self._in_block = 0


def _array_metadata(dtype: np.dtype, chunk: int) -> dict[str, Any]:
    return {
        "shape": [0],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "fill_value": 0,
    }


class _RemoteArray:
    """Random access to an array in an object store, through TensorStore. The interface of `MappedArray`."""

    def __init__(self, path: files.Path, dtype: np.dtype, size: int):
        self._path = path
        self._dtype = dtype
        self._size = size
        try:
            self._array = _open_zarr(path)
        except (ValueError, OSError) as error:
            raise UserError(f"the token store {path.parent} is damaged or cannot be read: {_reason(error)}") from error

    def read_into(self, starts: np.ndarray, out: np.ndarray, rows: np.ndarray | None = None) -> None:
        check_ranges(starts, out.shape[1], self._size, self._path)
        # All at once, so that the requests overlap.
        futures = [self._array[start : start + out.shape[1]].read() for start in starts.tolist()]
        for row, future in zip(range(len(out)) if rows is None else rows.tolist(), futures, strict=True):
            out[row] = future.result()
