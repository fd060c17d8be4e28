"""The token store: a corpus frozen once as tokens and document starts, read at any position.

A store is a directory:

    manifest.json     written last: a directory without it is not a store
    tokens/           zarr3 array [num_tokens], uint16 (vocabularies up to 65536) or int32
    documents/        zarr3 array [num_documents], int64: position of each document's first token
    target_starts/    of a supervised store, zarr3 array [num_documents], int32: tokens of a document that are inputs

Documents follow one another, each closed by the separator (PaLM's [eod]). A document of a supervised store is its
inputs, its targets and the separator. On a local disk the arrays use the plain `bytes` codec and no shards, so every
chunk is a file whose bytes are the tokens, and is memory-mapped; in an object store they are shards, which TensorStore
reads. `data.store_writer` writes a store; `data.building` and `data.freezing` make one of a corpus.
"""

from __future__ import annotations

import os
import zlib

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.core.patience import read_patiently
from t5x_scale.data.mapped_array import MappedArray, is_mappable
from t5x_scale.data.store_manifest import CHECKSUM_TOKENS, Manifest, is_finished, read_manifest
from t5x_scale.data.store_writer import TokenStoreWriter
from t5x_scale.data.stored_array import StoredArray

__all__ = ["TokenStore", "TokenStoreWriter"]


class TokenStore:
    """A finished store, open for reading. Safe to share between threads that read."""

    def __init__(self, directory: files.Path, manifest: Manifest):
        self.directory = directory
        self.manifest = manifest
        self._tokens = _open_array(directory / "tokens", np.dtype(manifest.dtype), manifest.num_tokens)
        self._documents = _open_array(directory / "documents", np.dtype(np.int64), manifest.num_documents)
        self._targets = None
        if manifest.supervised:
            self._targets = _open_array(directory / "target_starts", np.dtype(np.int32), manifest.num_documents)

    @classmethod
    def open(cls, directory: str | os.PathLike, vocabulary_fingerprint: str | None = None) -> TokenStore:
        """Opens a finished store.

        Args:
          directory: local or `gs://`.
          vocabulary_fingerprint: when given, the store must have been built with this vocabulary.

        Raises:
          UserError: the store is missing, unfinished, of another format or vocabulary, or a file of it is missing or
            has another size; or it cannot be reached. One line that names the directory.
        """
        path = files.to_path(directory)
        return read_patiently(lambda: cls._open(path, vocabulary_fingerprint), f"the token store {path}")

    @classmethod
    def _open(cls, path: files.Path, vocabulary_fingerprint: str | None) -> TokenStore:
        if not is_finished(path):
            state = "was never finished (no manifest)" if files.exists(path) else "does not exist"
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
        """Tokens of the stream, separators included."""
        return self.manifest.num_tokens

    @property
    def num_documents(self) -> int:
        """Documents; one without a token is none."""
        return self.manifest.num_documents

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content and the vocabulary: equal fingerprints, equal tokens. See `Manifest`."""
        return self.manifest.fingerprint

    @property
    def is_supervised(self) -> bool:
        """Whether documents are inputs followed by targets."""
        return self.manifest.supervised

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

    def read_windows(self, starts: np.ndarray, out: np.ndarray, rows: np.ndarray, *, again: bool = False) -> None:
        """As `windows`, but into the rows `rows` [n] of `out`, int32 [any, length], without a copy between.

        `again` says that these windows, or such as lie beside them, were read just now: it saves a quarter of the time.
        """
        self._tokens.read_into(np.asarray(starts, np.int64), out, rows, again=again)

    def read_ranges(self, starts: np.ndarray, lengths: np.ndarray, out: np.ndarray, offsets: np.ndarray) -> None:
        """Reads pieces of different lengths: out[offsets[i] : offsets[i] + lengths[i]] is filled from `starts[i]` on.

        Args:
          starts, lengths, offsets: int64 [n].
          out: int32 [any].

        Raises:
          ValueError: a range does not lie within the store, or not within `out`.
        """
        self._tokens.read_ranges(starts, lengths, out, offsets)

    def documents_of(self, positions: np.ndarray) -> np.ndarray:
        """Index of the document that holds each position, int64 [n]; a separator belongs to the document it closes.

        Args:
          positions: int64 [n].

        Raises:
          ValueError: a position is outside the store.
        """
        positions = np.asarray(positions, np.int64)
        if len(positions) and not (positions.min() >= 0 and positions.max() < self.num_tokens):
            raise ValueError(f"a position is outside the store's {self.num_tokens} tokens")
        return self._documents.count_not_above(positions) - 1

    def document_starts(self, first: int, stop: int) -> np.ndarray:
        """Positions of the first tokens of documents [first, stop), int64 [stop - first].

        Raises:
          ValueError: the range does not lie within the store.
        """
        return _read(self._documents, first, stop)

    def target_starts(self, first: int, stop: int) -> np.ndarray:
        """How many tokens at the head of documents [first, stop) are inputs, int64 [stop - first]; 0 in a plain store.

        Raises:
          ValueError: the range does not lie within the store.
        """
        if not 0 <= first <= stop <= self.num_documents:
            raise ValueError(f"documents {first} to {stop} are outside the store's {self.num_documents}")
        return np.zeros(stop - first, np.int64) if self._targets is None else _read(self._targets, first, stop)

    def document_span(self, document: int) -> tuple[int, int]:
        """(first, one past the last) position of a document, its separator included."""
        if not 0 <= document < self.num_documents:
            raise ValueError(f"document {document} is outside the store's {self.num_documents} documents")
        starts = self.document_starts(document, min(document + 2, self.num_documents)).tolist()
        return starts[0], starts[1] if len(starts) == 2 else self.num_tokens

    def unigram_counts(self) -> np.ndarray:
        """int64 [vocabulary_size]: how often each id occurs. Reads the whole store, a block at a time."""
        counts = np.zeros(self.manifest.vocabulary_size, np.int64)
        for start in range(0, self.num_tokens, CHECKSUM_TOKENS):
            block = self.tokens(start, min(start + CHECKSUM_TOKENS, self.num_tokens))
            found = np.bincount(block, minlength=len(counts))
            if len(found) > len(counts):
                raise UserError(
                    f"the token store {self.directory} is damaged: it holds the id {len(found) - 1} and its vocabulary"
                    f" has {len(counts)}: delete the store and build it again"
                )
            counts += found
        return counts

    @property
    def num_bytes(self) -> int:
        """Of the tokens."""
        return self.num_tokens * np.dtype(self.manifest.dtype).itemsize

    @property
    def num_blocks(self) -> int:
        """Parts of the tokens that have a checksum of their own."""
        return len(self.manifest.checksums)

    @property
    def checks_itself(self) -> bool:
        """Whether every chunk is compared with a checksum whenever it is read, as in object stores."""
        return isinstance(self._tokens, StoredArray)

    def verify(self) -> None:
        """Reads everything and compares it with the checksums.

        Raises:
          UserError: naming the first damaged part.
        """
        for block in range(self.num_blocks):
            self.verify_block(block)
        self.verify_documents()

    def verify_block(self, block: int) -> int:
        """Reads one of `num_blocks` parts of the tokens, compares it with its checksum and returns its bytes.

        Raises:
          UserError: naming the part.
        """
        start = block * CHECKSUM_TOKENS
        stop = min(start + CHECKSUM_TOKENS, self.num_tokens)
        out = np.empty((1, stop - start), np.dtype(self.manifest.dtype).newbyteorder("<"))
        self._tokens.read_into(np.array([start], np.int64), out)
        if zlib.crc32(out) != self.manifest.checksums[block]:
            raise UserError(
                f"the token store {self.directory} is damaged: tokens {start} to {stop} do not match their "
                "checksum; delete the store and build it again"
            )
        return out.nbytes

    def verify_documents(self) -> None:
        """Compares where documents, and their targets, begin with the checksums.

        Raises:
          UserError: naming what is damaged.
        """
        documents, targets = self.manifest.documents_checksum, self.manifest.target_starts_checksum
        self._verify_array(self._documents, "<i8", documents, "document starts")
        if self._targets is not None:
            self._verify_array(self._targets, "<i4", targets, "target starts")

    def _verify_array(self, array: MappedArray | StoredArray, dtype: str, expected: int | None, what: str) -> None:
        checksum = 0
        for start in range(0, self.num_documents, CHECKSUM_TOKENS):
            block = _read(array, start, min(start + CHECKSUM_TOKENS, self.num_documents))
            checksum = zlib.crc32(block.astype(dtype), checksum)
        if checksum != expected:
            raise UserError(
                f"the token store {self.directory} is damaged: the {what} do not match their checksum; "
                "delete the store and build it again"
            )


def _open_array(path: files.Path, dtype: np.dtype, size: int) -> MappedArray | StoredArray:
    if files.is_remote(path) or not is_mappable(path):
        return StoredArray(path, dtype, size)
    return MappedArray(path, dtype, size)


def _read(array: MappedArray | StoredArray, first: int, stop: int) -> np.ndarray:
    """Elements [first, stop) as int64 [stop - first]; ValueError when they do not lie within the array."""
    out = np.empty((1, max(stop - first, 0)), np.int64)
    array.read_into(np.array([first], np.int64), out)
    return out[0]
