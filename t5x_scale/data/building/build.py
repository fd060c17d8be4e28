"""Builds a store from the records of a source, with all cores, as often interrupted as may be.

    <store_dir>/.<name>.building/parts/     finished parts; kept when a build ends early, so that the next one goes on
    <store_dir>/.<name>.building/store/     the store while it is assembled; on a local disk renamed when it is finished

In an object store, where nothing can be renamed, a store is assembled in its place and its manifest written last.
While a build is assembled it needs room for its tokens twice.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.core.parallel import count_cores
from t5x_scale.data.building.assembly import Assembly, assemble
from t5x_scale.data.building.interface import Record
from t5x_scale.data.building.parts import PartInfo, delete_part, list_parts, write_part
from t5x_scale.data.building.pool import make_parts
from t5x_scale.data.building.progress import Progress
from t5x_scale.data.building.units import Unit, make_units
from t5x_scale.data.building.work import Options, process
from t5x_scale.data.freezing import building_directory, heartbeat, place, remove_tree
from t5x_scale.data.store_manifest import is_finished
from t5x_scale.data.token_store import TokenStore

logger = logging.getLogger(__name__)

# A source of fewer units is done before a pool of processes would have started.
SMALL = 4


def build_store(
    records: Iterable[Record],
    target: str | os.PathLike,
    options: Options,
    *,
    source: Mapping[str, Any],
    licence: str = "",
    workers: int | None = None,
    chunk: int | None = None,
    unit_characters: int | None = None,
    progress: Progress | None = None,
) -> TokenStore:
    """Builds and opens a store. The result does not depend on `workers`, nor on how often the build was killed.

    One process at a time may build in a directory: call it through `data.freezing.ensure`.

    Args:
      records: of the source, in order, read once; memory does not grow with them.
      target: local or `gs://`; must not exist, or be empty.
      options: vocabulary, curation, whether it is supervised.
      source, licence, chunk: as in `TokenStoreWriter`.
      workers: processes; 0 for none but this one. By default one for each core, and none for a small source.
      unit_characters: as in `make_units`.
      progress: is told of every part.

    Raises:
      UserError: what the source or a worker refuses; no document left; a full disk; a worker that died.
    """
    target = files.to_path(target)
    if workers is not None and workers < 0:
        raise UserError(f"workers is {workers}; it is a number of processes, 0 for none but this one")
    if is_finished(target):
        raise UserError(f"{target} already holds a token store")
    check_is_free(target)
    progress = progress or Progress(target.name)
    directory = files.make_directory(parts_directory(target))
    units = make_units(
        _with_heartbeat(records, building_directory(target)),
        whole_documents=options.curation.is_active,
        unit_characters=unit_characters,
    )
    is_small = False
    with progress:
        try:
            head = list(itertools.islice(units, SMALL))
            is_small = 0 < len(head) < SMALL
            if workers is None:
                workers = count_cores() if len(head) == SMALL else 0
            parts = gather_parts(itertools.chain(head, units), target, options, workers=workers, progress=progress)
            facts = {"source": source, "licence": licence, "chunk": chunk}
            if options.curation.deduplicators:
                infos = sorted(parts, key=lambda info: info.index)
                return finish_store(infos, target, options, progress=progress, **facts)
            return _join_on_the_way(parts, target, options, **facts)
        except BaseException:
            # What took no time to make is not worth keeping. That it did is known once the source has ended.
            if is_small or not list_parts(directory):
                remove_tree(building_directory(target))
            raise


def parts_directory(target: str | os.PathLike) -> files.Path:
    """Where the parts of the store `target` lie until it is finished."""
    return building_directory(files.to_path(target)) / "parts"


def gather_parts(
    units: Iterable[Unit],
    target: str | os.PathLike,
    options: Options,
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> Iterator[PartInfo]:
    """Makes the parts that are not there yet.

    Yields:
      The parts of all units, each as soon as it is there.

    Raises:
      UserError: as `build_store`.
    """
    directory = files.make_directory(parts_directory(target))
    progress = progress or Progress(files.to_path(target).name)
    beat = heartbeat(building_directory(files.to_path(target)))
    finished: collections.deque[PartInfo] = collections.deque()
    missing = _skip_finished(units, directory, options, finished.append)
    for info in _make(missing, directory, options, workers, beat):
        while finished:
            progress.add(finished[0], is_new=False)
            yield finished.popleft()
        progress.add(info, is_new=True)
        yield info
        beat()
    while finished:
        progress.add(finished[0], is_new=False)
        yield finished.popleft()


def finish_store(
    infos: Sequence[PartInfo],
    target: str | os.PathLike,
    options: Options,
    *,
    source: Mapping[str, Any],
    licence: str = "",
    chunk: int | None = None,
    progress: Progress | None = None,
) -> TokenStore:
    """Assembles the parts of `parts_directory(target)` into a store in its place, and deletes them.

    Args:
      infos: of all units, in their order.
      target, options, source, licence, chunk: as `build_store`.

    Raises:
      UserError: as `assemble`; or the place is taken.
    """
    target = files.to_path(target)
    progress = progress or Progress(target.name)
    progress.begin_assembly(len(infos))
    facts = {"source": source, "licence": licence, "chunk": chunk}
    signs = {"on_part": progress.add_assembled, "beat": heartbeat(building_directory(target))}
    with _under_construction(target) as store:
        assemble(parts_directory(target), infos, store, options, **facts, **signs)
    return TokenStore.open(target, options.vocabulary.fingerprint)


def _join_on_the_way(parts: Iterable[PartInfo], target: files.Path, options: Options, **facts: Any) -> TokenStore:
    """As `finish_store`, while the parts are being made: no document waits for another one's judgement."""
    waiting: dict[int, PartInfo] = {}
    with _under_construction(target) as store:
        assembly = Assembly(parts_directory(target), store, options, **facts)
        for info in parts:
            waiting[info.index] = info
            while len(assembly) in waiting:
                assembly.add(waiting.pop(len(assembly)))
        assembly.finish()
    return TokenStore.open(target, options.vocabulary.fingerprint)


@contextlib.contextmanager
def _under_construction(target: files.Path) -> Iterator[files.Path]:
    """Where to assemble the store; put in its place, and the parts deleted, when the block ends well."""
    building = building_directory(target)
    store = target if files.is_remote(target) else building / "store"
    try:
        if store != target:
            shutil.rmtree(store, ignore_errors=True)
        yield store
        if store != target:
            place(store, target)
    except BaseException:
        if store != target:
            # What is half written can be of no use, and the disk may be full of it.
            shutil.rmtree(store, ignore_errors=True)
        raise
    remove_tree(building)


def _make(
    units: Iterator[Unit], directory: files.Path, options: Options, workers: int, beat: Callable[[], None]
) -> Iterator[PartInfo]:
    if workers:
        yield from make_parts(units, directory, options, workers=workers, beat=beat)
        return
    for unit in units:
        part = process(unit, options)
        yield write_part(directory, unit.index, part, unit=unit.digest, options=options.fingerprint)


def _skip_finished(
    units: Iterable[Unit], directory: files.Path, options: Options, on_finished: Callable[[PartInfo], None]
) -> Iterator[Unit]:
    """The units whose parts are not there; of the others the finished parts are reported."""
    finished = list_parts(directory)
    fingerprint = options.fingerprint
    if any(info.options != fingerprint for info in finished.values()):
        logger.warning("%s holds parts made with other options; starting over", directory)
    elif finished:
        logger.info("going on with %d finished parts in %s", len(finished), directory)
    said = False
    for unit in units:
        info = finished.pop(unit.index, None)
        if info is not None and info.options == fingerprint and info.unit == unit.digest:
            on_finished(info)
            continue
        if info is not None and info.options == fingerprint and not said:
            said = True
            logger.warning(
                "the source changed since the build in %s was interrupted (first in part %d); parts that differ are "
                "made again",
                directory,
                unit.index,
            )
        yield unit
    # Of a source that was longer.
    for index in finished:
        delete_part(directory, index)


def _with_heartbeat(records: Iterable[Record], building: files.Path) -> Iterator[Record]:
    """A source may be slow: each record it gives is a sign of life."""
    beat = heartbeat(building)
    for record in records:
        beat()
        yield record


def check_is_free(target: files.Path) -> None:
    """Refuses a place that is taken, before the work is done and not after.

    Raises:
      UserError: `target` holds something.
    """
    if (
        not files.is_remote(target)
        and files.exists(target)
        and (not files.is_directory(target) or any(target.iterdir()))
    ):
        raise UserError(f"cannot place the token store at {target}: it must not exist or be empty")
