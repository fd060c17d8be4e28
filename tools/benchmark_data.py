"""Measures how fast rows are made: SeqIO's packing, Grain's packing, and ours, on the same documents in one run.

    python tools/benchmark_data.py
    python tools/benchmark_data.py --length=4096 --seconds=10 --json=data.json

The documents are generated ids, of lengths between 16 and --length - 1 with a long tail, tokenised beforehand: SeqIO
and Grain get them from memory, ours come from a token store on disk, through the batches of a run. Real tokens are the
text of the documents and their separators: neither padding nor what an objective adds counts. Contenders take turns,
and each one's best turn is reported: what the machine can do when it is left alone. CPU seconds count all threads, and
so tell what a machine that was not left alone would have done. Last comes a seek: a store opened anew, and one batch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.batch_source import BatchSource
from t5x_scale.data.freezing import freeze
from t5x_scale.data.objectives import CausalLm, Objective, Ul2r
from t5x_scale.data.rows.delivery import Windows
from t5x_scale.data.rows.packed_delivery import PackDocuments
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import Vocabulary, load_vocabulary

SEQIO = "SeqIO, packed"
# A batch that no run comes to by reading.
FAR = 10_000_000
# (real tokens, positions that are no padding, positions) of one batch after another.
Batches = Iterator[tuple[float, int, int]]


def make_documents(num_tokens: int, longest: int, vocabulary: Vocabulary) -> list[np.ndarray]:
    """About `num_tokens` ids, int32, in documents without separators, whose lengths spread as those of web pages do."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(longest / 8), 1.0, num_tokens // 16), 16, longest).astype(np.int64)
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), num_tokens)]
    # Above the control tokens, which stand first in our vocabularies.
    ids = generator.integers(vocabulary.size // 2, vocabulary.size, lengths.sum(), dtype=np.int32)
    return np.split(ids, np.cumsum(lengths)[:-1])


def seqio_packing(documents: list[np.ndarray], options: argparse.Namespace, separator: int) -> Batches:
    """`seqio.DecoderFeatureConverter(pack=True)` over examples in memory."""
    from t5x_scale.data import seqio_source  # Quiets TensorFlow, and keeps it off accelerators.

    del seqio_source
    import seqio
    import tensorflow as tf

    lengths = [len(document) + 1 for document in documents]
    ids = np.concatenate([part for document in documents for part in (document, [separator])]).astype(np.int32)
    examples = tf.data.Dataset.from_tensor_slices(tf.RaggedTensor.from_row_lengths(ids, lengths)).repeat()
    examples = examples.map(lambda ids: {"targets": ids}, num_parallel_calls=tf.data.AUTOTUNE)
    converter = seqio.DecoderFeatureConverter(pack=True)
    rows = converter(examples, {"targets": options.length}).batch(options.batch_size).prefetch(tf.data.AUTOTUNE)
    for batch in rows.as_numpy_iterator():
        filled = np.count_nonzero(batch["decoder_segment_ids"])
        yield filled, filled, batch["decoder_segment_ids"].size


def grain_packing(documents: list[np.ndarray], options: argparse.Namespace, separator: int) -> Batches:
    """Grain's first-fit packing over examples in memory."""
    import grain
    from grain.experimental import FirstFitPackIterDataset

    whole = [np.append(document, np.int32(separator)) for document in documents]
    examples = grain.MapDataset.source(whole).map(lambda ids: {"targets": ids}).repeat().to_iter_dataset()
    rows = FirstFitPackIterDataset(examples, length_struct={"targets": options.length}, num_packing_bins=64)
    for batch in rows.batch(options.batch_size):
        filled = np.count_nonzero(batch["targets_segment_ids"])
        yield filled, filled, batch["targets_segment_ids"].size


def our_batches(
    store: TokenStore, options: argparse.Namespace, objective: Objective, packing: Windows | PackDocuments
) -> Batches:
    """The batches of a run over the store."""
    delivery = packing.make({"documents": store}, objective, options.length)
    schedule = BatchSchedule(options.batch_size)
    source = BatchSource(
        {"documents": store},
        {"documents": 1.0},
        schedule,
        objective,
        length=options.length,
        seed=0,
        delivery=delivery,
        max_epochs=None,
    )
    # Of what fills a row, this share is text; the rest are sentinels, modes and ends.
    made = objective.statistics(options.length)
    text = objective.stride(options.length) * made["raw_tokens_used"] / options.length / made.get("real_positions", 1.0)
    for step in itertools.count():
        fields = source.batch(step)
        size = fields["decoder_input_tokens"].size
        filled = np.count_nonzero(fields["decoder_segment_ids"]) if "decoder_segment_ids" in fields else size
        yield filled * text, filled, size


def measure(batches: Batches, seconds: float) -> dict[str, float]:
    """One turn of so many seconds, after as long a run-up as lets threads of others stop and buffers run empty."""
    time.sleep(1.0)
    until = time.perf_counter() + 1.0
    while time.perf_counter() < until:
        next(batches)
    begin, begin_cpu, sums = time.perf_counter(), time.process_time(), np.zeros(3)
    while (elapsed := time.perf_counter() - begin) < seconds:
        sums += next(batches)
    tokens, filled, size = sums
    per_cpu_second = tokens / (time.process_time() - begin_cpu)
    return {"tokens_per_second": tokens / elapsed, "tokens_per_cpu_second": per_cpu_second, "fill": filled / size}


def measure_seek(store: TokenStore, options: argparse.Namespace) -> dict[str, float]:
    """Seconds from a directory to a batch far away, by a reader that has read nothing yet."""
    begin = time.perf_counter()
    opened = TokenStore.open(store.directory)
    schedule = BatchSchedule(options.batch_size)
    source = BatchSource(
        {"store": opened}, {"store": 1.0}, schedule, CausalLm(), length=options.length, seed=0, max_epochs=None
    )
    ready = time.perf_counter()
    source.batch(FAR)
    return {"open_seconds": ready - begin, "batch_seconds": time.perf_counter() - ready}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000, help="size of the generated corpus")
    parser.add_argument("--length", type=int, default=2048, help="positions of a row")
    parser.add_argument("--batch_size", type=int, default=256, help="rows of a batch")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--vocabulary", default="stdlib_8k", help="of the ids, modes and sentinels")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there, too")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    vocabulary = load_vocabulary(options.vocabulary)
    documents = make_documents(options.tokens, options.length - 1, vocabulary)
    with tempfile.TemporaryDirectory() as directory:
        store = freeze(
            documents,
            pathlib.Path(directory) / "store",
            source={"task": "generated"},
            vocabulary_fingerprint=vocabulary.fingerprint,
            vocabulary_size=vocabulary.size,
            separator_id=vocabulary.eod_id,
        )
        ul2r = Ul2r().with_vocabulary(vocabulary)
        contenders = {
            SEQIO: seqio_packing(documents, options, vocabulary.eod_id),
            "Grain, first-fit": grain_packing(documents, options, vocabulary.eod_id),
            "causal windows": our_batches(store, options, CausalLm(), Windows()),
            "best-fit documents": our_batches(store, options, CausalLm(), PackDocuments()),
            "UL2R windows": our_batches(store, options, ul2r, Windows()),
        }
        print(f"{len(documents):,} documents, {store.num_tokens:,} tokens, rows of {options.length}", flush=True)
        for batches in contenders.values():
            next(batches)  # Imports, plans, buffers.
        turns = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name, batches in contenders.items():
                turns[name].append(measure(batches, options.seconds))
        seek = measure_seek(store, options)
    figures = {name: max(results, key=lambda result: result["tokens_per_second"]) for name, results in turns.items()}
    print(f"{'real tokens':20} {'a second':>13} {'x SeqIO':>8} {'a CPU second':>13} {'fill':>7}")
    for name, row in figures.items():
        row["times_seqio"] = row["tokens_per_second"] / figures[SEQIO]["tokens_per_second"]
        speeds = f"{row['tokens_per_second']:13,.0f} {row['times_seqio']:8.1f} {row['tokens_per_cpu_second']:13,.0f}"
        print(f"{name:20} {speeds} {row['fill']:7.4f}")
    print(
        f"batch {FAR:,} of windows: {1e3 * seek['open_seconds']:.1f} ms to open, {1e3 * seek['batch_seconds']:.1f} ms"
    )
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({"settings": settings, "results": figures, "seek": seek}, indent=2) + "\n")


if __name__ == "__main__":
    main()
