"""The manifest of a token store: what it holds, of what, and whether it was finished."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.describe import digest
from t5x_scale.core.errors import UserError
from t5x_scale.core.patience import read_patiently

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
# Tokens under one checksum. Independent of how the array is cut into files, so that the fingerprint of a corpus is.
CHECKSUM_TOKENS = 2**22
_CONTENT_FIELDS = (
    "format_version",
    "vocabulary_fingerprint",
    "vocabulary_size",
    "separator_id",
    "dtype",
    "num_tokens",
    "num_documents",
    "supervised",
    "checksums",
    "documents_checksum",
    "target_starts_checksum",
)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a finished store says about itself.

    Attributes:
      vocabulary_fingerprint, vocabulary_size, separator_id: the vocabulary that the ids mean something in.
      dtype: "uint16" or "int32".
      num_tokens: tokens, separators included.
      num_documents: documents with at least one token.
      empty_documents: documents that had none and were left out.
      supervised: whether documents are inputs followed by targets.
      checksums: CRC-32 of every `CHECKSUM_TOKENS` tokens in little-endian `dtype`.
      documents_checksum: CRC-32 of the document starts.
      target_starts_checksum: CRC-32 of the target starts; None where the store is not supervised.
      source: where the tokens come from, as JSON: task, split, preprocessors, curation.
      licence: a note on what the text may be used for.
      report: counts of documents: read, and left out for each reason.
      fingerprint: SHA-256 of the content: of all but `empty_documents`, `source`, `licence` and `report`.
      format_version: of the layout described in `data.token_store`.
    """

    vocabulary_fingerprint: str
    vocabulary_size: int
    separator_id: int
    dtype: str
    num_tokens: int
    num_documents: int
    empty_documents: int
    checksums: tuple[int, ...]
    documents_checksum: int
    source: Mapping[str, Any]
    supervised: bool = False
    target_starts_checksum: int | None = None
    licence: str = ""
    report: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    format_version: int = FORMAT_VERSION

    def content_fingerprint(self) -> str:
        """The SHA-256 that `fingerprint` must equal."""
        content = {name: getattr(self, name) for name in _CONTENT_FIELDS}
        return digest(content)


def is_finished(directory: str | os.PathLike) -> bool:
    """Whether `directory` holds a store that was written to its end.

    Raises:
      UnavailableError: nobody can say: the storage does not answer, not even after a while.
      UserError: it refuses.
    """
    path = files.to_path(directory)
    return read_patiently(lambda: files.exists(path / MANIFEST), f"the token store {path}")


def _check_values(manifest: Manifest) -> None:
    """Raises ValueError naming a number that is none: sizes of arrays and of files follow from them."""
    for name in ("vocabulary_size", "num_tokens", "num_documents", "empty_documents"):
        value = getattr(manifest, name)
        if type(value) is not int or not 0 <= value < 2**62:
            raise ValueError(f"{name} is {value!r}")
    if manifest.dtype not in ("uint16", "int32"):
        raise ValueError(f"dtype is {manifest.dtype!r}")


def read_manifest(directory: files.Path) -> Manifest:
    """Reads and checks the manifest of a finished store.

    Raises:
      UserError: the manifest is of another format or damaged; the message names the directory.
    """
    value = files.read_json(directory / MANIFEST)
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        old = isinstance(version, int) and version < FORMAT_VERSION
        advice = "; delete it and build it again" if old else "; read it with the version that wrote it"
        raise UserError(
            f"the token store {directory} has format {version}, this version reads {FORMAT_VERSION}{advice}"
        )
    try:
        manifest = Manifest(**{**value, "checksums": tuple(value["checksums"])})
        _check_values(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the manifest of the token store {directory} is damaged: {error}") from error
    if manifest.fingerprint != manifest.content_fingerprint():
        raise UserError(f"the manifest of the token store {directory} is damaged: its fingerprint does not match")
    return manifest
