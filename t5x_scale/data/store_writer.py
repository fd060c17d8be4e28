"""Writes a token store as a stream; memory is one file of each array, whatever the corpus."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data import store_manifest
from t5x_scale.data.store_manifest import MANIFEST, Manifest
from t5x_scale.data.stored_array import ArrayWriter, default_chunk


class TokenStoreWriter:
    """Writes a store.

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
        supervised: bool = False,
        licence: str = "",
        chunk: int | None = None,
        sharded: bool | None = None,
    ):
        """Args:
          directory: local or `gs://`; created, must not hold a finished store.
          source: JSON-able description kept in the manifest.
          vocabulary_fingerprint, vocabulary_size, separator_id: of the vocabulary of the documents.
          supervised: whether documents are inputs followed by targets.
          licence: a note on what the text may be used for, kept in the manifest.
          chunk: elements of one file; chosen by where the store lies when not given.
          sharded: whether files are shards of small chunks; in an object store, when not given.

        Raises:
          UserError: the directory cannot be written.
        """
        self.directory = files.make_directory(directory)
        self.report: dict[str, Any] = {}
        self._source = dict(source)
        self._supervised = supervised
        self._licence = licence
        self._vocabulary = (vocabulary_fingerprint, vocabulary_size, separator_id)
        dtype = np.dtype("<u2" if vocabulary_size <= 2**16 else "<i4")
        chunk = chunk or default_chunk(directory)
        sharded = files.is_remote(directory) if sharded is None else sharded
        short = max(chunk // 16, 1)

        def make(name: str, dtype: np.dtype, length: int, block: int | None) -> ArrayWriter:
            return ArrayWriter(self.directory / name, dtype, length, block, sharded=sharded)

        self._tokens = make("tokens", dtype, chunk, store_manifest.CHECKSUM_TOKENS)
        self._documents = make("documents", np.dtype("<i8"), short, None)
        self._targets = make("target_starts", np.dtype("<i4"), short, None) if supervised else None
        self._empty = 0

    def add(self, tokens: np.ndarray, target_start: int = 0) -> None:
        """Appends a document and the separator, which is not doubled when the document already ends in it.

        A document without tokens is counted and left out.

        Args:
          tokens: integer [n].
          target_start: of a supervised document, tokens of its inputs; its targets follow and end in a separator
            even where there is nothing else to them.

        Raises:
          UserError: an id outside the vocabulary, or the disk is full.
          ValueError: the inputs are longer than the document.
        """
        tokens = np.asarray(tokens)
        if not 0 <= target_start <= len(tokens):
            raise ValueError(f"inputs of {target_start} tokens in a document of {len(tokens)}")
        if not tokens.size:
            self._empty += 1
            return
        separator = self._vocabulary[2]
        if tokens[-1] != separator or target_start == len(tokens):
            tokens = np.append(tokens, separator)
        self.add_all(tokens, np.array([len(tokens)], np.int64), np.array([target_start], np.int64))

    def add_all(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        target_starts: np.ndarray | None = None,
        *,
        continues: bool = False,
    ) -> None:
        """Appends documents that are closed by separators already.

        Args:
          tokens: integer [sum of lengths], one document after another.
          lengths: int64 [n], each > 0; of a document that goes on in the next call, what there is of it now.
          target_starts: int64 [n], of supervised documents.
          continues: whether the first of them goes on with the last document of the call before.

        Raises:
          UserError: an id outside the vocabulary, or the disk is full.
          ValueError: lengths or target starts do not fit.
        """
        if not lengths.size:
            return
        starts = np.cumsum(lengths) - lengths
        new = slice(int(continues), None)
        target_starts = np.zeros(len(lengths), np.int32) if target_starts is None else target_starts
        self._check_lengths(tokens, lengths, target_starts, new)
        self._check_ids(tokens, starts)
        self._documents.extend(starts[new] + len(self._tokens))
        if self._targets is not None:
            self._targets.extend(target_starts[new])
        self._tokens.extend(tokens)

    def finish(self) -> Manifest:
        """Writes what is buffered, then the manifest: from here on the store opens.

        Raises:
          UserError: there was no document.
        """
        if not len(self._documents):
            raise UserError(f"{self._describe_source()} gave no documents{self._describe_losses()}")
        fingerprint, size, separator = self._vocabulary
        manifest = Manifest(
            vocabulary_fingerprint=fingerprint,
            vocabulary_size=size,
            separator_id=separator,
            dtype=self._tokens.dtype.name,
            num_tokens=len(self._tokens),
            num_documents=len(self._documents),
            empty_documents=self.report.get("empty", self._empty),
            supervised=self._supervised,
            checksums=tuple(self._tokens.finish()),
            documents_checksum=self._documents.finish()[0],
            target_starts_checksum=None if self._targets is None else self._targets.finish()[0],
            source=self._source,
            licence=self._licence,
            report=self.report or {"read": len(self._documents) + self._empty, "empty": self._empty},
        )
        manifest = dataclasses.replace(manifest, fingerprint=manifest.content_fingerprint())
        try:
            files.write_json(self.directory / MANIFEST, dataclasses.asdict(manifest))
        except OSError as error:
            raise UserError(f"cannot write {self.directory / MANIFEST}: {error.strerror or error}") from error
        return manifest

    def _check_lengths(self, tokens: np.ndarray, lengths: np.ndarray, target_starts: np.ndarray, new: slice) -> None:
        # Only a document at an end of the call may be without a token in it.
        if lengths.min() < 0 or np.any(lengths[new][:-1] == 0) or lengths.sum() != len(tokens):
            raise ValueError(f"lengths of {lengths.sum()} tokens, each at least 1, for {len(tokens)} tokens")
        if not self._supervised and np.any(target_starts[new]):
            raise ValueError("inputs before targets in a store that was not begun as supervised")
        # The separator closes the targets, so there is always one token of them.
        if np.any(target_starts < 0) or np.any(target_starts[new][:-1] >= lengths[new][:-1]):
            raise ValueError("a target that begins outside its document")

    def _check_ids(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        fingerprint, size, _ = self._vocabulary
        # Half the time of looking at both ends: what is negative is large when read as unsigned.
        if not len(tokens) or np.ascontiguousarray(tokens).view(f"u{tokens.dtype.itemsize}").max() < size:
            return
        where = int(np.flatnonzero((tokens < 0) | (tokens >= size))[0])
        index = len(self._documents) + self._empty + int(np.searchsorted(starts, where, "right")) - 1
        raise UserError(
            f"document {index} of {self._describe_source()} holds the id {int(tokens[where])}; "
            f"the vocabulary {fingerprint[:12]} has {size} ids"
        )

    def _describe_source(self) -> str:
        split = f", split '{self._source['split']}'" if "split" in self._source else ""
        return f"the data source '{self._source.get('task', 'unnamed')}'{split}"

    def _describe_losses(self) -> str:
        if self.report.get("read"):
            counts = ", ".join(f"{name} {count}" for name, count in self.report.items() if count)
            return f" ({counts})"
        return f" ({self._empty} documents without a token)" if self._empty else ""

    def __enter__(self) -> TokenStoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.finish()
