"""From a unit to a part: what a worker does. Pure: the part depends on the unit and the options and on nothing else."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from t5x_scale.core.describe import digest
from t5x_scale.core.errors import UserError
from t5x_scale.data.building.interface import Curation, Record, Signatures
from t5x_scale.data.building.units import Unit
from t5x_scale.data.vocabulary import Vocabulary

# Raised when the same unit and options begin to give another part.
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Options:
    """What the parts depend on beside the source. Picklable.

    Attributes:
      vocabulary: turns text into ids; must have a token that ends a document.
      curation: what is left out.
      supervised: whether records have inputs.
    """

    vocabulary: Vocabulary
    curation: Curation = Curation()
    supervised: bool = False

    @property
    def separator_id(self) -> int:
        """See `Vocabulary.separator_id`."""
        return self.vocabulary.separator_id

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal options, equal fingerprint. Deduplicators are not in it: they look at parts, they do not make them."""
        curation = dataclasses.replace(self.curation, deduplicators=())
        content = {
            "version": _VERSION,
            "vocabulary": self.vocabulary.fingerprint,
            "separator_id": self.separator_id,
            "supervised": self.supervised,
            "whole_documents": self.curation.is_active,
            "curation": curation.describe(),
        }
        return digest(content)


@dataclasses.dataclass(frozen=True)
class Part:
    """What a unit becomes.

    Attributes:
      tokens: uint16 or int32 [n]: documents one after another, closed by separators.
      lengths: int64 [documents], separators included. The first is a rest when `begins` is False; the last one lacks
        its separator when the document goes on in the next part.
      target_starts: int64 [documents]; 0 where there are no inputs.
      begins: whether the first document begins here.
      signatures: by name, an array [documents, ...].
      counts: of documents, "read", "empty", "invalid_utf8" and "filtered: <reason>"; of the unit's "characters".
    """

    tokens: np.ndarray
    lengths: np.ndarray
    target_starts: np.ndarray
    begins: bool
    signatures: Signatures
    counts: dict[str, int]


def process(unit: Unit, options: Options) -> Part:
    """Filters, tokenises and signs the documents of a unit.

    Raises:
      UserError: ids that are not of the vocabulary.
    """
    counts = Counter({"read": 0, "empty": 0, "characters": unit.characters})
    counts["read"] = sum(record.ends for record in unit.records)
    records = [_to_text(record, counts) for record in unit.records]
    curation = options.curation
    texts: list[str] = []
    if curation.text_filters or curation.signers:
        texts = [text_of(record, options.vocabulary) for record in records]
        reasons = [_first_reason(curation.text_filters, text) if text else None for text in texts]
        records, texts = _select(records, texts, reasons, counts)
    documents = _tokenise(records, options.vocabulary)
    if curation.token_filters:
        reasons = [_first_reason(curation.token_filters, ids) if len(ids) else None for ids, _ in documents]
        kept = [index for index, reason in enumerate(reasons) if reason is None]
        counts.update(f"filtered: {reason}" for reason in reasons if reason is not None)
        records, documents = [records[index] for index in kept], [documents[index] for index in kept]
        texts = [texts[index] for index in kept] if texts else texts
    return _make_part(unit, options, records, documents, texts, counts)


def _to_text(record: Record, counts: Counter) -> Record:
    """Bytes as text. Bytes that are not UTF-8 become U+FFFD: one bad byte must not end a build of a thousand files."""
    if not any(isinstance(piece, bytes) for piece in record.pieces):
        return record
    try:
        decoded = [piece.decode() if isinstance(piece, bytes) else piece for piece in record.pieces]
    except UnicodeDecodeError:
        counts["invalid_utf8"] += 1
        decoded = [piece.decode(errors="replace") if isinstance(piece, bytes) else piece for piece in record.pieces]
    if record.inputs is None:
        return Record(tuple(decoded), None, record.ends)
    return Record(tuple(decoded[1:]), decoded[0], record.ends)


def text_of(record: Record, vocabulary: Vocabulary) -> str:
    """What filters and signers look at: inputs and targets joined; ids decoded, bytes that are no UTF-8 replaced."""
    record = _to_text(record, Counter())
    return "".join(piece if isinstance(piece, str) else vocabulary.decode(piece.tolist()) for piece in record.pieces)


def _first_reason(filters: Sequence, value: str | np.ndarray) -> str | None:
    return next((reason for one in filters if (reason := one(value)) is not None), None)


def _select(
    records: list[Record], texts: list[str], reasons: list[str | None], counts: Counter
) -> tuple[list[Record], list[str]]:
    counts.update(f"filtered: {reason}" for reason in reasons if reason is not None)
    kept = [index for index, reason in enumerate(reasons) if reason is None]
    return [records[index] for index in kept], [texts[index] for index in kept]


def _tokenise(records: Sequence[Record], vocabulary: Vocabulary) -> list[tuple[np.ndarray, int]]:
    """(ids int32 [n], how many of them are inputs) of every record. All text goes to the tokeniser at once."""
    pieces = [piece for record in records for piece in record.pieces]
    texts = [piece for piece in pieces if isinstance(piece, str)]
    encoded = iter(vocabulary.encode_arrays(texts) if texts else ())
    ids = iter([next(encoded) if isinstance(piece, str) else _check_ids(piece, vocabulary) for piece in pieces])
    documents = []
    for record in records:
        own = list(itertools.islice(ids, len(record.pieces)))
        joined = own[0] if len(own) == 1 else np.concatenate(own) if own else np.zeros(0, np.int32)
        documents.append((joined, 0 if record.inputs is None else len(own[0])))
    return documents


def _check_ids(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    if ids.size and not (ids.min() >= 0 and ids.max() < vocabulary.size):
        raise UserError(
            f"the source yields ids from {ids.min()} to {ids.max()}, but the vocabulary '{vocabulary.spec}' has "
            f"{vocabulary.size} ids"
        )
    return ids.astype(np.int32, copy=False)


def _make_part(
    unit: Unit,
    options: Options,
    records: list[Record],
    documents: list[tuple[np.ndarray, int]],
    texts: list[str],
    counts: Counter,
) -> Part:
    separator = np.array([options.separator_id], np.int32)
    pieces, lengths, target_starts, signed = [], [], [], []
    for index, (record, (ids, target_start)) in enumerate(zip(records, documents, strict=True)):
        # The last record of a document that lies in several is closed even if there is nothing else to it.
        continued = not lengths and not unit.begins
        if not len(ids) and record.ends and not continued:
            counts["empty"] += 1
            continue
        closed = len(ids) > target_start and ids[-1] == separator[0]
        pieces += [ids] if closed or not record.ends else [ids, separator]
        lengths.append(len(ids) + (record.ends and not closed))
        target_starts.append(target_start)
        if texts:
            signed.append(texts[index])
    tokens = np.concatenate([np.zeros(0, np.int32), *pieces])
    return Part(
        tokens=tokens.astype(np.uint16) if options.vocabulary.size <= 2**16 else tokens,
        lengths=np.array(lengths, np.int64),
        target_starts=np.array(target_starts, np.int64),
        begins=unit.begins,
        signatures=_sign(signed, options.curation),
        counts={name: int(count) for name, count in counts.items() if count},
    )


def _sign(texts: list[str], curation: Curation) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for signer in curation.signers:
        values = [signer(text) for text in texts]
        for name, (dtype, shape) in signer.arrays.items():
            rows = [value[name] for value in values]
            arrays[name] = np.array(rows, dtype).reshape(len(rows), *shape)
    return arrays
