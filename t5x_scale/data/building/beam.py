"""Builds a token store with Apache Beam, on Dataflow, Flink, Spark or here: the bytes are those of `build.build_store`.

    shards of the source  →  units  →  parts (files)                  tokenised and filtered, one part at a time
    signatures of parts   →  GroupByKey  →  duplicates                 `beam_duplicates`
    plan  →  files of the store  →  checksums  →  manifest            `parallel_assembly`; the manifest last

Beam needs an environment of its own, because it pins older versions of what others share:

    python3.11 -m venv .venv-beam && .venv-beam/bin/pip install 't5x_scale[beam]'

Every path must be one that all workers see: `gs://`, or a file system they share. Whatever a runner does twice it does
with the same result: a part and a file of the store are there whole or not at all, and what is written again is the
same. A build that failed goes on when it is started again: finished parts stay beside the store until it is finished.

Runners are chosen by Beam's own options, for instance

    --direct_num_workers=8 --direct_running_mode=multi_processing              (here, with all cores)
    --runner=DataflowRunner --project=… --region=… --temp_location=gs://… --sdk_container_image=…
    --runner=FlinkRunner --flink_master=… --environment_type=DOCKER --environment_config=…

where the workers' image holds the same `t5x_scale[beam]`, and the modules that register the tasks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import pickle
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.data.building import parallel_assembly
from t5x_scale.data.building.beam_duplicates import Listing, find_duplicates
from t5x_scale.data.building.build import check_is_free, parts_directory
from t5x_scale.data.building.parallel_assembly import Destination, Plan
from t5x_scale.data.building.parts import PartInfo, find_part, write_part
from t5x_scale.data.building.shards import ShardedSource
from t5x_scale.data.building.units import Unit, make_units
from t5x_scale.data.building.work import Options, process
from t5x_scale.data.freezing import building_directory, heartbeat, place, remove_tree
from t5x_scale.data.store_manifest import is_finished
from t5x_scale.data.token_store import TokenStore

_only = beam.pvalue.AsSingleton
# The index of a part is that of its shard times this, plus that of its unit: in the order of the source.
_UNITS_OF_A_SHARD = 10**8
_BEAT = 2.0
_STEP = re.compile(r" \[while running '.*'\]$")


@dataclasses.dataclass(frozen=True)
class Job:
    """What the workers need to know. It lies in a file, because a runner's description of a pipeline is limited."""

    source: ShardedSource
    shards: Sequence[Any]
    destination: Destination
    unit_characters: int | None


def build_with_beam(
    sharded: ShardedSource,
    target: str | os.PathLike,
    options: Options,
    *,
    source: Mapping[str, Any],
    licence: str = "",
    chunk: int | None = None,
    unit_characters: int | None = None,
    pipeline_options: Sequence[str] = (),
) -> TokenStore:
    """Builds and opens a store. The result does not depend on the runner, nor on how often the build was interrupted.

    One process at a time may build in a directory: call it through `data.freezing.ensure`.

    Args:
      sharded: the source; each shard is read by one worker, and tokenised by all.
      target: local or `gs://`, seen by every worker; must not exist, or be empty.
      options, source, licence, chunk, unit_characters: as in `build.build_store`.
      pipeline_options: of Beam, as on its command line.

    Raises:
      UserError: what the source or a worker refuses, or a runner that cannot be started; no document left.
    """
    target = files.to_path(target)
    if is_finished(target):
        raise UserError(f"{target} already holds a token store")
    check_is_free(target)
    building, parts = building_directory(target), parts_directory(target)
    store = target if files.is_remote(target) else building / "store"
    destination = Destination(parts, store, options, source, licence, chunk)
    job = Job(sharded, list(sharded.list_shards()), destination, unit_characters)
    files.make_directory(parts)
    # Files that an earlier build left might have another layout. Nobody writes here yet.
    remove_tree(store)
    path = _write_job(job, building)
    with _beating(building), _user_errors(), _start(pipeline_options) as pipeline:
        make_pipeline(pipeline, path, len(job.shards), options)
    if store != target:
        place(store, target)
    remove_tree(building)
    return TokenStore.open(target, options.vocabulary.fingerprint)


def make_pipeline(pipeline: beam.Pipeline, path: str, shards: int, options: Options) -> None:
    """Adds all steps of a build.

    Args:
      pipeline: an empty one.
      path: of the file that holds the `Job`.
      shards: of the job.
      options: of the job.
    """
    infos = (
        pipeline
        | "shards" >> beam.Create(range(shards))
        | "deal shards" >> beam.Reshuffle()
        | "read units" >> beam.FlatMap(_read_units, path)
        | "deal units" >> beam.Reshuffle()
        | "make parts" >> beam.Map(_make_part, path)
        # Made once: what follows never goes back to the text.
        | "parts" >> beam.Reshuffle()
    )
    listing = _only(infos | "gather" >> beam.combiners.ToList() | "list" >> beam.Map(Listing.of))
    parts = os.fspath(_load(path).destination.parts)
    found = [
        find_duplicates(infos, listing, deduplicator, parts, f"duplicates {number}")
        | f"duplicates {number}: found" >> beam.Map(_name, number)
        for number, deduplicator in enumerate(options.curation.deduplicators)
    ]
    every = found | "all duplicates" >> beam.Flatten(pipeline=pipeline) | "together" >> beam.combiners.ToDict()
    dropped = _only(every | "unite duplicates" >> beam.Map(_unite, path))
    measured = infos | "measure" >> beam.Map(_measure, listing, dropped, path) | "measures" >> beam.combiners.ToDict()
    plans = measured | "plan" >> beam.Map(_make_plan, listing, dropped)
    plan = _only(plans)
    written = (
        plans
        | "make arrays" >> beam.FlatMap(_make_arrays, path)
        | "deal files" >> beam.Reshuffle()
        | "write files" >> beam.Map(_write_piece, plan, path)
        | "all written" >> beam.combiners.Count.Globally()
    )
    _ = (
        written
        | "checksums to make" >> beam.FlatMap(_list_checksums, plan, path)
        | "deal checksums" >> beam.Reshuffle()
        | "make checksums" >> beam.Map(_make_checksum, plan, path)
        | "all checksums" >> beam.combiners.ToDict()
        | "write manifest" >> beam.Map(_write_manifest, plan, path)
    )


def _start(pipeline_options: Sequence[str]) -> beam.Pipeline:
    given = PipelineOptions(list(pipeline_options))
    standard = given.view_as(StandardOptions)
    if standard.runner in (None, "DirectRunner"):
        # Beam would first try to fetch and start a program of its own, Prism, and then do this.
        standard.runner = "FnApiRunner"
    # It says of every annotation that it is a string.
    logging.getLogger("apache_beam.typehints").setLevel(logging.WARNING)
    try:
        return beam.Pipeline(options=given)
    except ValueError as error:
        raise UserError(f"Apache Beam refuses its options: {' '.join(str(error).split())}") from error


def _write_job(job: Job, building: files.Path) -> str:
    content = pickle.dumps(job)
    path = building / f"job-{hashlib.sha256(content).hexdigest()}.pickle"
    path.write_bytes(content)
    return os.fspath(path)


@functools.lru_cache(maxsize=1)
def _load(path: str) -> Job:
    file = files.to_path(path)
    content = file.read_bytes()
    # Who can write to the directory must not choose what workers run: the name came with the pipeline.
    if file.name != f"job-{hashlib.sha256(content).hexdigest()}.pickle":
        raise UserError(f"{file} is not what its name says: it was changed since the build began")
    return pickle.loads(content)


def _read_units(shard: int, path: str) -> Iterator[Unit]:
    job = _load(path)
    records = job.source.read_shard(job.shards[shard])
    whole = job.destination.options.curation.is_active
    for unit in make_units(records, whole_documents=whole, unit_characters=job.unit_characters):
        yield dataclasses.replace(unit, index=shard * _UNITS_OF_A_SHARD + unit.index)


def _make_part(unit: Unit, path: str) -> PartInfo:
    destination = _load(path).destination
    fingerprint = destination.options.fingerprint
    found = find_part(destination.parts, unit.index)
    if found is not None and (found.unit, found.options) == (unit.digest, fingerprint):
        return found
    part = process(unit, destination.options)
    return write_part(destination.parts, unit.index, part, unit=unit.digest, options=fingerprint)


def _name(documents: np.ndarray, number: int) -> tuple[int, np.ndarray]:
    return number, documents


def _unite(found: dict[int, np.ndarray], path: str) -> tuple[np.ndarray, dict[str, int]]:
    """(all documents left out, how many by reason); who finds a duplicate first counts it."""
    together, counts = np.empty(0, np.int64), {}
    for number, deduplicator in enumerate(_load(path).destination.options.curation.deduplicators):
        united = np.union1d(together, found[number])
        counts[deduplicator.reason] = len(united) - len(together)
        together = united
    return together, counts


def _measure(
    info: PartInfo, listing: Listing, dropped: tuple[np.ndarray, dict[str, int]], path: str
) -> tuple[int, tuple[int, int]]:
    keep = parallel_assembly.find_kept(listing.numbers, dropped[0], listing.place(info))
    return info.index, parallel_assembly.measure_part(_load(path).destination.parts, info, keep)


def _make_plan(
    measured: dict[int, tuple[int, int]], listing: Listing, dropped: tuple[np.ndarray, dict[str, int]]
) -> Plan:
    left_out, counts = dropped
    in_order = [measured[info.index] for info in listing.infos]
    return parallel_assembly.make_plan(listing.infos, left_out, in_order, counts)


def _make_arrays(plan: Plan, path: str) -> list[tuple[str, int]]:
    return parallel_assembly.make_arrays(plan, _load(path).destination)


def _write_piece(piece: tuple[str, int], plan: Plan, path: str) -> None:
    parallel_assembly.write_piece(plan, _load(path).destination, *piece)


def _list_checksums(_: int, plan: Plan, path: str) -> list[tuple[str, int]]:
    return parallel_assembly.list_checksums(plan, _load(path).destination)


def _make_checksum(key: tuple[str, int], plan: Plan, path: str) -> tuple[tuple[str, int], int]:
    return key, parallel_assembly.make_checksum(plan, _load(path).destination, *key)


def _write_manifest(checksums: dict[tuple[str, int], int], plan: Plan, path: str) -> None:
    parallel_assembly.write_manifest(plan, _load(path).destination, checksums)


@contextlib.contextmanager
def _beating(building: files.Path) -> Iterator[None]:
    """Shows those who wait for the store that its builder lives."""
    done, beat = threading.Event(), heartbeat(building)

    def run() -> None:
        while not done.wait(_BEAT):
            beat()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """What a worker refused, as it said it: runners name the step, and wrap what happens elsewhere in a traceback."""
    try:
        yield
    except UserError as error:
        raise UserError(_STEP.sub("", str(error))) from error
    except Exception as error:
        said = re.findall(r"errors\.UserError: (.*)$", str(error), re.MULTILINE)
        if said:
            raise UserError(_STEP.sub("", said[-1])) from error
        raise
