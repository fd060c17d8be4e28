"""Measures the building of token stores: speed against the tokenizer's own, and memory against the size of the corpus.

  python tools/benchmark_building.py --megabytes=100,1000 --vocabulary=stdlib_8k

Generates text of each size, builds a store of it with all cores, and prints the characters a second, what share this is
of the tokenizer's own speed in one thread times the workers, which share of the cores' time went to the tokenizer (this
one means something on a busy machine too), and the largest memory of this process and its workers. What is generated is
deleted again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pathlib
import resource
import tempfile
import threading
import time

import numpy as np

from t5x_scale.core.parallel import count_cores
from t5x_scale.data import text_source, vocabulary_codecs
from t5x_scale.data.building.build import build_store
from t5x_scale.data.building.units import make_units
from t5x_scale.data.building.work import Options
from t5x_scale.data.vocabulary import Vocabulary, load_vocabulary

FILE_BYTES = 20_000_000
WORDS = 50_000


def generate(directory: pathlib.Path, megabytes: int) -> None:
    """Writes files of lines of made-up words, with frequencies as natural text has them (Zipf's law)."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = np.array(["".join(rng.choice(letters[:18], size)) for size in rng.integers(1, 11, WORDS)])
    written, number = 0, 0
    while written < megabytes * 1_000_000:
        chosen = words[np.minimum(rng.zipf(1.3, FILE_BYTES // 6) - 1, WORDS - 1)]
        text = "\n".join(" ".join(line) for line in np.array_split(chosen, len(chosen) // 12))
        text = text[: min(FILE_BYTES, megabytes * 1_000_000 - written)]
        (directory / f"{number:05d}.txt").write_text(text)
        written, number = written + len(text), number + 1


def measure_tokenizer(name: str, vocabulary: Vocabulary) -> float:
    """Characters of a second of one core's time that the tokenizer alone does, in one thread."""
    vocabulary_codecs.use_one_thread()
    unit = next(make_units(text_source.iterate_records(name, "all")))
    texts = [piece for record in unit.records for piece in record.pieces]
    vocabulary.encode_arrays(texts)
    begun, rounds = time.process_time(), 5
    for _ in range(rounds):
        vocabulary.encode_arrays(texts)
    return rounds * unit.characters / (time.process_time() - begun)


class MemoryWatch(threading.Thread):
    """Looks at the memory of this process and its children five times a second; `most` in MB, (this, children)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = (0.0, 0.0)
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.2):
            children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            found = (_resident("self"), sum(map(_resident, children)))
            self.most = tuple(map(max, self.most, found))

    def stop(self) -> tuple[float, float]:
        self._over.set()
        self.join()
        return self.most


def _resident(process: str) -> float:
    try:
        pages = int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0  # It ended just now.
    return pages * resource.getpagesize() / 1e6


def measure(megabytes: int, vocabulary: Vocabulary, workers: int, scratch: str) -> str:
    """A line about a corpus of this size."""
    with (
        tempfile.TemporaryDirectory(dir=scratch) as folder,
        # Elsewhere, so that what they use is not counted.
        multiprocessing.get_context("spawn").Pool(1) as aside,
    ):
        root = pathlib.Path(folder)
        (root / "text").mkdir()
        aside.apply(generate, (root / "text", megabytes))
        name = f"text:{root}/text/*.txt"
        alone = aside.apply(measure_tokenizer, (name, vocabulary))
        aside.terminate()
        aside.join()
        watch = MemoryWatch()
        watch.start()
        begun, used = time.perf_counter(), _used_seconds()
        records = text_source.iterate_records(name, "all")
        store = build_store(records, root / "store", Options(vocabulary), source={"task": name}, workers=workers)
        seconds, used = time.perf_counter() - begun, _used_seconds() - used
        main, children = watch.stop()
        characters = megabytes * 1e6
        speed = characters / seconds
        return (
            f"{megabytes} MB: {seconds:.1f} s with {workers} workers, {speed / 1e6:.1f} M characters/s, "
            f"{store.num_tokens / seconds / 1e6:.2f} M tokens/s; tokenizer alone {alone / 1e6:.1f} M characters/s in "
            f"one thread; ratio {speed / alone / workers:.2f}, {characters / alone / used:.2f} of the cores' time; "
            f"memory {main:.0f} MB + {children:.0f} MB in workers"
        )


def _used_seconds() -> float:
    """Cores' time of this process and of its children that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", default="100,1000", help="sizes, one after another")
    parser.add_argument("--vocabulary", default="stdlib_8k")
    parser.add_argument("--workers", type=int, default=count_cores())
    parser.add_argument(
        "--scratch", default=tempfile.gettempdir(), help="where the text goes: twice its size is needed"
    )
    args = parser.parse_args()
    vocabulary = load_vocabulary(args.vocabulary)
    for megabytes in map(int, args.megabytes.split(",")):
        print(measure(megabytes, vocabulary, args.workers, args.scratch), flush=True)


if __name__ == "__main__":
    main()
