"""Joins parts, in order, into a finished store."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_scale.data.building.interface import Curation, Signatures
from t5x_scale.data.building.parts import PartInfo, read_part, read_signatures
from t5x_scale.data.building.work import Options, Part
from t5x_scale.data.store_manifest import Manifest
from t5x_scale.data.store_writer import TokenStoreWriter


class Assembly:
    """A store that grows part by part, in the order of the source."""

    def __init__(
        self,
        parts_directory: str | os.PathLike,
        target: str | os.PathLike,
        options: Options,
        *,
        source: Mapping[str, Any],
        licence: str = "",
        chunk: int | None = None,
    ):
        """Args: as `assemble`."""
        curation = options.curation
        self._parts_directory = parts_directory
        self._joined = 0
        self._counts: Counter[str] = Counter()
        self._writer = TokenStoreWriter(
            target,
            source={**source, **({"curation": curation.describe()} if curation.is_active else {})},
            vocabulary_fingerprint=options.vocabulary.fingerprint,
            vocabulary_size=options.vocabulary.size,
            separator_id=options.separator_id,
            supervised=options.supervised,
            licence=licence,
            chunk=chunk,
        )

    def __len__(self) -> int:
        """Parts joined so far: the index of the next one."""
        return self._joined

    def add(self, info: PartInfo, keep: np.ndarray | None = None) -> None:
        """Joins the next part; of its documents those for which `keep`, bool [documents], holds, or all.

        Raises:
          UserError: the part is damaged, or the disk is full.
        """
        part = read_part(self._parts_directory, info)
        part = part if keep is None else select(part, keep)
        self._writer.add_all(part.tokens, part.lengths, part.target_starts, continues=not part.begins)
        self._joined += 1
        self._counts.update(info.counts)

    def finish(self, duplicates: Mapping[str, int] | None = None) -> Manifest:
        """Writes the rest and the manifest, with `duplicates`, how many were not kept by reason, in its report.

        Raises:
          UserError: no document was left, or the disk is full.
        """
        self._writer.report = make_report([self._counts], duplicates or {})
        return self._writer.finish()


def assemble(
    parts_directory: str | os.PathLike,
    infos: Sequence[PartInfo],
    target: str | os.PathLike,
    options: Options,
    *,
    source: Mapping[str, Any],
    licence: str = "",
    chunk: int | None = None,
    on_part: Callable[[PartInfo], None] | None = None,
    beat: Callable[[], None] = lambda: None,
) -> Manifest:
    """Writes a store of the documents in `infos`, duplicates left out. Memory is one part and the duplicates' search.

    Args:
      parts_directory: where the parts are.
      infos: of all units of the source, in its order.
      target: directory of the store, local or `gs://`; its manifest is written last.
      options: with which the parts were made.
      source, licence, chunk: as in `TokenStoreWriter`.
      on_part: called after each part.
      beat: called often, while duplicates are looked for too.

    Raises:
      UserError: a damaged part, no document left, a full disk.
    """
    keeps, duplicates = find_duplicates(parts_directory, infos, options.curation, beat)
    assembly = Assembly(parts_directory, target, options, source=source, licence=licence, chunk=chunk)
    for info, keep in itertools.zip_longest(infos, keeps):
        assembly.add(info, keep)
        beat()
        if on_part is not None:
            on_part(info)
    return assembly.finish(duplicates)


def find_duplicates(
    parts_directory: str | os.PathLike,
    infos: Sequence[PartInfo],
    curation: Curation,
    beat: Callable[[], None] = lambda: None,
) -> tuple[list[np.ndarray], dict[str, int]]:
    """What the deduplicators decide.

    Returns:
      (for every part a bool array [documents], `[]` without deduplicators; documents left out, by reason).
    """

    def signatures() -> Iterator[Signatures]:
        for part in read_signatures(parts_directory, infos):
            beat()
            yield part

    keeps: list[np.ndarray] = []
    left_out: dict[str, int] = {}
    for deduplicator in curation.deduplicators:
        found = list(deduplicator(signatures))
        if [len(keep) for keep in found] != [info.documents for info in infos]:
            raise ValueError(f"{deduplicator.describe()} decided on other documents than it was given")
        before = sum(int(keep.sum()) for keep in keeps) if keeps else sum(info.documents for info in infos)
        keeps = [old & new for old, new in zip(keeps, found, strict=True)] if keeps else found
        left_out[deduplicator.reason] = before - sum(int(keep.sum()) for keep in keeps)
    return keeps, left_out


def select(part: Part, keep: np.ndarray) -> Part:
    """The documents of a part for which `keep`, bool [documents], holds. The part holds whole documents."""
    return Part(
        tokens=part.tokens[np.repeat(keep, part.lengths)],
        lengths=part.lengths[keep],
        target_starts=part.target_starts[keep],
        begins=part.begins,
        signatures={name: value[keep] for name, value in part.signatures.items()},
        counts=part.counts,
    )


def make_report(counts_of_parts: Iterable[Mapping[str, int]], duplicates: Mapping[str, int]) -> dict[str, int]:
    """Counts of documents for the manifest: read, left out by reason, kept; and the characters read."""
    counts = Counter()
    for part in counts_of_parts:
        counts.update(part)
    counts = {"empty": 0, **counts, **duplicates}
    characters, invalid = counts.pop("characters", 0), counts.pop("invalid_utf8", 0)
    read = counts.pop("read", 0)
    report = {"read": read, **dict(sorted(counts.items())), "kept": read - sum(counts.values())}
    return {**report, "invalid_utf8_replaced": invalid, "characters_read": characters}
