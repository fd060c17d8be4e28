"""From a configuration to live batches, and to a bounded part of a split for evaluation."""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import pathlib
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5x_scale.core.errors import UserError
from t5x_scale.data.catalog import file_name
from t5x_scale.data.live.documents import DocumentStream
from t5x_scale.data.live.examples import EndOfStreamError, RepeatedExamples
from t5x_scale.data.live.inputs import ALL, LiveInput, LiveNames, resolve_live
from t5x_scale.data.live.rows import LivePacked, LiveWindows, RowKind, RowStream
from t5x_scale.data.live.source import LiveRows, LiveSource
from t5x_scale.data.objectives import Objective
from t5x_scale.data.rows.delivery import Packing, Windows
from t5x_scale.data.rows.packed_delivery import PackDocuments
from t5x_scale.data.store_writer import TokenStoreWriter
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from t5x_scale.data.pipeline import DataConfig

logger = logging.getLogger(__name__)

# Tokens of each source that evaluation holds at most.
EVAL_TOKENS = 2**23


def make_live_pipeline(
    config: DataConfig,
    *,
    default_store_dir: str | os.PathLike,
    process_index: int = 0,
    process_count: int = 1,
) -> LiveSource:
    """The training batches of a run that reads its sources as it goes.

    Args:
      config: the data of the run; `delivery` is "live".
      default_store_dir: where stores would lie, for what is said about them.
      process_index, process_count: this host's place.

    Raises:
      UserError: an unknown task, rates or caps that a live stream cannot have, a batch that does not divide, ….
    """
    vocabulary = load_vocabulary(config.vocabulary)
    separator = vocabulary.separator_id
    objective = config.objective.with_vocabulary(vocabulary)
    _check_numbers(config)
    length, shards = config.sequence_length, config.live_shards
    kind = _make_kind(config.packing, objective, length, separator, config.seed)
    names = LiveNames(config.split, vocabulary, tuple(config.task_modules))
    plan, inputs = resolve_live(config.mixture, rate_unit=config.rate_unit, names=names)

    def rows(name: str, shard: int) -> RowStream:
        examples = inputs[name].stream(
            shard,
            shards,
            seed=config.seed,
            shuffle_buffer=config.live_shuffle_buffer,
            max_epochs=config.max_epochs,
        )
        return kind.make(DocumentStream(examples, separator), f"{name}/{shard}")

    return LiveSource(
        {
            name: LiveRows(functools.partial(rows, name), one.description, one.summary(shards))
            for name, one in inputs.items()
        },
        plan,
        config.schedule,
        kind,
        length=length,
        seed=config.seed,
        parts={
            "objective": objective.name,
            "vocabulary": vocabulary.fingerprint,
            "split": config.split,
            "live_shuffle_buffer": config.live_shuffle_buffer,
        },
        shards=shards,
        skip=config.skipped,
        process_index=process_index,
        process_count=process_count,
        share=share_json if jax.process_count() > 1 else None,
        remedy=_remedy(config, inputs, default_store_dir),
    )


def open_live_eval_stores(
    config: DataConfig,
    *,
    split: str = "validation",
    max_tokens: int = EVAL_TOKENS,
) -> dict[str, TokenStore]:
    """A part of a split of every source, in token stores that go when the process does.

    Evaluation goes over the same rows again and again: these are read once, at most `max_tokens` of each source, from
    the beginning of the split. Every process reads its own.

    Args:
      config: the data of the run.
      split: which split.
      max_tokens: of each source; what a whole split has beyond that is not evaluated, and that is said.

    Returns:
      {source: store}, sorted by name, for `EvalSource`.

    Raises:
      UserError: as `make_live_pipeline`, or a source has no such split.
    """
    vocabulary = load_vocabulary(config.vocabulary)
    names = LiveNames(split, vocabulary, tuple(config.task_modules))
    _, inputs = resolve_live(config.mixture, rate_unit=config.rate_unit, names=names)
    sources = {source.name: source for one in inputs.values() for source in one.sources}
    directory = pathlib.Path(tempfile.mkdtemp(prefix="t5x_scale_live_"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return {
        name: _freeze_part(RepeatedExamples(sources[name], max_epochs=1.0), directory, vocabulary, split, max_tokens)
        for name in sorted(sources)
    }


def share_json(value: Any) -> list[Any]:
    """A JSON value of every process, in their order; all processes must call this together."""
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([len(data)], np.int32))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    everyone = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(everyone, sizes.tolist(), strict=True)]


def _check_numbers(config: DataConfig) -> None:
    caps = config.max_epochs
    for cap in caps.values() if isinstance(caps, Mapping) else [caps]:
        if cap is not None and not cap >= 1:
            raise UserError(
                f"max_epochs is {cap:g}: how long a live stream is, nobody knows before its first pass has ended; give "
                "1 or more, None for no end, or train from a token store (delivery = 'store')"
            )
    buffer = config.live_shuffle_buffer
    if not isinstance(buffer, int) or isinstance(buffer, bool) or buffer < 0:
        raise UserError(f"live_shuffle_buffer is {buffer!r}; it is a number of examples, 0 for the source's own order")


def _make_kind(packing: Packing, objective: Objective, length: int, separator: int, seed: int) -> RowKind:
    if isinstance(packing, Windows):
        return LiveWindows(objective, length, separator, packing.attend_across_documents)
    if isinstance(packing, PackDocuments):
        return LivePacked(objective, length, separator, seed, packing)
    raise UserError(f"live data can be delivered by Windows and PackDocuments, not by {type(packing).__name__}")


def _remedy(config: DataConfig, inputs: Mapping[str, LiveInput], default_store_dir: str | os.PathLike) -> str:
    """The command that builds the stores."""
    words = []
    for name, one in inputs.items():
        is_task = name == one.sources[0].name
        named = {"--task": [name]} if is_task else {"--mixture": [name]}
        if name == ALL:
            named = {"--task": [source.name for source in one.sources]}
        words += [f"{option}={value}" for option, values in named.items() for value in values]
    words += [f"--module={module}" for module in config.task_modules]
    words += [f"--split={config.split}"] if config.split != "train" else []
    words += [f"--vocabulary={config.vocabulary}", f"--store_dir={os.fspath(config.store_dir or default_store_dir)}"]
    return shlex.join(["python", "tools/build_token_store.py", *words])


def _freeze_part(
    examples: RepeatedExamples, directory: pathlib.Path, vocabulary: Vocabulary, split: str, max_tokens: int
) -> TokenStore:
    separator = vocabulary.separator_id
    documents = DocumentStream(examples, separator)
    taken, tokens = [], 0
    try:
        while tokens < max_tokens:
            taken.append(next(documents))
            tokens += len(taken[-1].tokens)
        logger.warning(
            "evaluating '%s' (%s) on its first %s tokens; a token store evaluates all of it",
            examples.name,
            split,
            f"{tokens:,}",
        )
    except EndOfStreamError:
        pass
    target = directory / file_name(examples.name)
    with TokenStoreWriter(
        target,
        source={"task": examples.name, "split": split},
        vocabulary_fingerprint=vocabulary.fingerprint,
        vocabulary_size=vocabulary.size,
        separator_id=separator,
        supervised=any(document.target_start for document in taken),
    ) as writer:
        for document in taken:
            writer.add(document.tokens, document.target_start)
    return TokenStore.open(target, vocabulary.fingerprint)
