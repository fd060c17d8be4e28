"""Live streams over documents in memory, whose tokens tell where they come from."""

import dataclasses
import functools

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.live.documents import DocumentStream
from t5x_scale.data.live.examples import Document
from t5x_scale.data.live.inputs import LiveInput
from t5x_scale.data.live.rows import LivePacked, LiveWindows
from t5x_scale.data.live.source import LiveRows, LiveSource
from t5x_scale.data.objectives import CausalLm
from t5x_scale.data.pipeline import DataConfig
from t5x_scale.data.rows.packed_delivery import PackDocuments

SEPARATOR = 1


@dataclasses.dataclass(frozen=True)
class LiveConfig(DataConfig):
    """A configuration whose data is live."""

    delivery: str = "live"
    live_shards: int = 1
    live_shuffle_buffer: int = 0


@dataclasses.dataclass
class Listed:
    """A source over a list of documents; counts what is asked of it."""

    name: str
    documents: list
    fail_at: int | None = None
    read: int = 0
    encoded: int = 0

    @property
    def description(self):
        return {"task": self.name}

    def is_sharded_by_files(self, shards):
        return True

    def open(self, epoch, shard, shards):
        for number, document in enumerate(self.documents):
            if number % shards == shard:
                if number == self.fail_at:
                    raise UserError(f"{self.name}: document {number} is broken")
                self.read += 1
                yield (np.asarray(document, np.int64),)

    def encode(self, examples):
        self.encoded += len(examples)
        return [Document(ids.astype(np.int32)) for (ids,) in examples]


def documents(count, seed=0, longest=30, first=10):
    """Documents of random lengths, some of them empty; every token of a run of these is another."""
    lengths = np.random.default_rng(seed).integers(0, longest, count)
    ends = first + np.cumsum(lengths)
    return [np.arange(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def make_live(
    sources,
    rates=None,
    batch_size=8,
    *,
    length=16,
    seed=0,
    shards=1,
    packing=None,
    objective=None,
    shuffle_buffer=0,
    max_epochs=None,
    mixed=False,
    group_rows=4,
    **options,
):
    """A `LiveSource` over lists of documents; `mixed` samples them by examples into one stream."""
    objective = objective or CausalLm()
    schedule = batch_size if isinstance(batch_size, BatchSchedule) else BatchSchedule(batch_size)
    if isinstance(packing, PackDocuments):
        kind = LivePacked(objective, length, SEPARATOR, seed, packing, group_rows)
    else:
        kind = LiveWindows(objective, length, SEPARATOR, True if packing is None else packing)
    rates = rates or {source.name: 1.0 for source in sources}
    inputs = {source.name: LiveInput(source.name, (source,)) for source in sources}
    if mixed:
        inputs = {"mixed": LiveInput("mixed", tuple(sources), tuple(rates[source.name] for source in sources))}
        rates = {"mixed": 1.0}

    def rows(name, shard):
        stream = inputs[name].stream(shard, shards, seed=seed, shuffle_buffer=shuffle_buffer, max_epochs=max_epochs)
        return kind.make(DocumentStream(stream, SEPARATOR), f"{name}/{shard}")

    live = {name: LiveRows(functools.partial(rows, name), one.description) for name, one in inputs.items()}
    parts = {"objective": objective.name, "live_shuffle_buffer": shuffle_buffer}
    return LiveSource(live, rates, schedule, kind, length=length, seed=seed, parts=parts, shards=shards, **options)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name
