"""The searches for duplicates on Apache Beam: documents are brought together by key, not sorted in one place.

`data.curation.grouping` says what a round is. In each, keys are grouped (`GroupByKey`); only for documents that share
one with another, and only where links depend on them, signatures are read again, part by part. The links of all rounds
come together in one worker, whose memory is theirs: 16 bytes each, about one link for every duplicate and round.

A deduplicator that is no `Grouping` looks at the signatures of the whole corpus in one worker.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from t5x_scale.data.building.interface import Deduplicator
from t5x_scale.data.building.parallel_assembly import number_documents
from t5x_scale.data.building.parts import PartInfo, read_signatures
from t5x_scale.data.curation.grouping import Rows, find_later

# A round, and the bytes of a key in it.
Key = tuple[int, bytes]


@dataclasses.dataclass(frozen=True)
class Listing:
    """All parts, in the order of the source.

    Attributes:
      infos: of the parts.
      indices: int64 [parts]: their indices, ascending.
      numbers: int64 [parts + 1]: as in `Plan`.
    """

    infos: Sequence[PartInfo]
    indices: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, infos: Iterable[PartInfo]) -> Listing:
        """Of the parts in any order."""
        infos = sorted(infos, key=lambda info: info.index)
        return cls(infos, np.array([info.index for info in infos], np.int64), number_documents(infos))

    def place(self, info: PartInfo) -> int:
        """Where a part stands."""
        return int(np.searchsorted(self.indices, info.index))


def find_duplicates(
    infos: beam.PCollection, listing: beam.pvalue.AsSingleton, deduplicator: Deduplicator, parts: str, label: str
) -> beam.PCollection:
    """One int64 array [n], ascending: the documents, numbered as in `Plan`, that a deduplicator leaves out.

    Args:
      infos: `PartInfo` of every part.
      listing: the `Listing` of them.
      deduplicator: picklable.
      parts: the directory of the parts.
      label: of the steps; different for every deduplicator.
    """
    if not hasattr(deduplicator, "count_rounds"):
        one = infos.pipeline | f"{label}: once" >> beam.Create([None])
        return one | f"{label}: look at all" >> beam.Map(_look_at_all, listing, deduplicator, parts)
    groups = (
        infos
        | f"{label}: keys" >> beam.FlatMap(_make_keys, listing, deduplicator, parts)
        | f"{label}: by key" >> beam.GroupByKey()
        | f"{label}: shared keys" >> beam.FlatMap(_take_shared)
    )
    if deduplicator.compares:
        groups = (
            groups
            | f"{label}: members" >> beam.FlatMap(_list_members, listing)
            | f"{label}: by part" >> beam.GroupByKey()
            | f"{label}: signatures" >> beam.FlatMap(_read_rows, listing, deduplicator.array, parts)
            | f"{label}: by group" >> beam.GroupByKey()
        )
    links = groups | f"{label}: link" >> beam.Map(_link, deduplicator)
    return links | f"{label}: connect" >> beam.CombineGlobally(_Connect())


def _look_at_all(_: None, listing: Listing, deduplicator: Deduplicator, parts: str) -> np.ndarray:
    keep = list(deduplicator(lambda: read_signatures(parts, listing.infos)))
    return np.flatnonzero(~np.concatenate([np.zeros(0, bool), *keep]))


def _make_keys(info: PartInfo, listing: Listing, deduplicator: Any, parts: str) -> Iterator[tuple[Key, int]]:
    """((round, key), number of the document)."""
    first = int(listing.numbers[listing.place(info)])
    (signatures,) = read_signatures(parts, [info])
    array = np.asarray(signatures[deduplicator.array])
    for round_ in range(deduplicator.count_rounds(array.shape[1])):
        for row, key in enumerate(deduplicator.keys(array, round_, first)):
            yield (round_, key.astype("<u8").tobytes()), first + row


def _take_shared(group: tuple[Key, Iterable[int]]) -> Iterator[tuple[Key, np.ndarray]]:
    documents = np.sort(np.fromiter(group[1], np.int64))
    if len(documents) > 1:
        yield group[0], documents


def _list_members(group: tuple[Key, np.ndarray], listing: Listing) -> Iterator[tuple[int, tuple[Key, np.ndarray]]]:
    """(place of the part in the listing, (key, the numbers of the group's documents in it))."""
    key, documents = group
    owners = np.searchsorted(listing.numbers, documents, side="right") - 1
    for owner in np.unique(owners):
        yield int(owner), (key, documents[owners == owner])


def _read_rows(
    wanted: tuple[int, Iterable[tuple[Key, np.ndarray]]], listing: Listing, array: str, parts: str
) -> Iterator[tuple[Key, tuple[np.ndarray, np.ndarray]]]:
    """(key, (numbers of documents, their signatures))."""
    place, groups = wanted
    (signatures,) = read_signatures(parts, [listing.infos[place]])
    first = int(listing.numbers[place])
    for key, documents in groups:
        yield key, (documents, np.asarray(signatures[array])[documents - first])


def _link(group: tuple[Key, Any], deduplicator: Any) -> np.ndarray:
    """int64 [links, 2] of one group."""
    if not deduplicator.compares:
        documents, rows = group[1], None
    else:
        found = sorted(group[1], key=lambda pair: int(pair[0][0]))
        documents = np.concatenate([numbers for numbers, _ in found])
        rows = Rows(documents, np.concatenate([signatures for _, signatures in found]))
    return deduplicator.link(documents, np.zeros(len(documents), np.int64), rows)


class _Connect(beam.CombineFn):
    """Gathers links; the documents that are not the first of their group."""

    def create_accumulator(self) -> list[np.ndarray]:
        return []

    def add_input(self, accumulator: list[np.ndarray], links: np.ndarray) -> list[np.ndarray]:
        if len(links):
            accumulator.append(links)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
        return [np.concatenate(accumulator) for accumulator in accumulators if accumulator]

    def extract_output(self, accumulator: list[np.ndarray]) -> np.ndarray:
        return find_later(np.concatenate([np.empty((0, 2), np.int64), *accumulator]))
