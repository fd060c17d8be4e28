"""Trains a SentencePiece vocabulary by PaLM's rules from the text of SeqIO tasks or of files.

  python tools/train_vocabulary.py --size=8192 --task_modules=tasks.stdlib \\
      --tasks=stdlib_code,stdlib_docs --output=my_vocabulary
  python tools/train_vocabulary.py --size=32768 --files='gs://bucket/text/*.txt' --output=gs://bucket/vocabulary

Writes OUTPUT/tokenizer.model; a run uses it as `VOCABULARY = "OUTPUT"`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from t5x_scale.core.errors import UserError
from t5x_scale.core.files import make_directory, to_path
from t5x_scale.data.vocabulary import MODEL_FILE, load_vocabulary
from t5x_scale.data.vocabulary_training import train_vocabulary


def iterate_task_texts(modules: list[str], tasks: list[str], split: str) -> Iterator[str]:
    from t5x_scale.data import seqio_source  # TensorFlow, which files do not need.

    seqio_source.import_task_modules(modules)
    for task in tasks:
        yield from seqio_source.iterate_texts(task, split)


def iterate_file_texts(patterns: list[str]) -> Iterator[str]:
    for pattern in patterns:
        path = to_path(pattern)
        files = sorted(path.parent.glob(path.name))
        if not files:
            raise UserError(f"no file matches {pattern}")
        for file in files:
            yield file.read_bytes().decode(errors="replace")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, required=True, help="number of ids, 391 reserved ones included")
    parser.add_argument("--output", required=True, help="directory to write tokenizer.model to")
    parser.add_argument("--task_modules", type=_to_list, default=[], help="modules that register the tasks")
    parser.add_argument("--split", default="train", help="split of the tasks")
    parser.add_argument("--max_characters", type=int, default=20_000_000, help="read no more than this")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tasks", type=_to_list, help="SeqIO tasks, read one after another")
    source.add_argument("--files", type=_to_list, help="text files or globs of one directory each")
    return parser.parse_args()


def _to_list(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    args = parse_arguments()
    if args.tasks:
        texts = iterate_task_texts(args.task_modules, args.tasks, args.split)
    else:
        texts = iterate_file_texts(args.files)
    try:
        directory = make_directory(args.output)
        (directory / MODEL_FILE).write_bytes(train_vocabulary(texts, args.size, args.max_characters))
        print(load_vocabulary(str(directory)))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
