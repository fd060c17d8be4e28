"""Looks at data: what a token store holds, what an objective makes of it, what a step of a run saw.

  python tools/inspect_token_store.py STORE                              statistics
  python tools/inspect_token_store.py STORE --verify                     reads everything and compares checksums
  python tools/inspect_token_store.py STORE --show=3 --document=1000     documents, decoded
  python tools/inspect_token_store.py STORE --objective=ul2r --length=512 --show=5
  python tools/inspect_token_store.py --objective=ul2r --show=5          the same, of the standard library's source
  python tools/inspect_token_store.py --gin_file=RUN/config.gin --step=5000                   documents of a step
  python tools/inspect_token_store.py --gin_file=RUN/config.gin --step=0 --to_step=20000      mixture of steps

With --gin_file, --gin.NAME=value changes a setting as on the command line of t5x_scale, and a run that has checkpoints
is looked at as it went: with the batch sizes and skipped rows that they have on record.
"""

from __future__ import annotations

import argparse
import os
import sys
import sysconfig
import tempfile
from typing import NoReturn

# The accelerator may be busy with the very run.
os.environ["JAX_PLATFORMS"] = "cpu"

from t5x_scale.core.errors import UserError
from t5x_scale.core.files import to_path
from t5x_scale.data import inspection
from t5x_scale.data.batch_source import BatchSource
from t5x_scale.data.catalog import Catalog
from t5x_scale.data.pipeline import DataConfig, make_pipeline
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import load_vocabulary

LENGTH, CHARACTERS = 512, 2000
SAMPLE_VOCABULARY = "stdlib_8k"


def inspect_store(options: argparse.Namespace) -> str:
    """The text for a store."""
    if options.store is None:
        with tempfile.TemporaryDirectory() as directory:
            return _inspect(make_sample(directory, options.vocabulary or SAMPLE_VOCABULARY), options)
    return _inspect(TokenStore.open(options.store), options)


def make_sample(directory: str, vocabulary: str) -> TokenStore:
    """A store of some of the running Python's own source, to see what an objective does before there is data."""
    files = os.path.join(sysconfig.get_paths()["stdlib"], "[a-d]*.py")
    return Catalog(directory, load_vocabulary(vocabulary)).open(f"text:{files}", "train")


def _inspect(store: TokenStore, options: argparse.Namespace) -> str:
    if options.verify:
        store.verify()
        return f"{store.directory} is intact: {store.num_tokens:,} tokens, {store.num_documents:,} documents"
    if options.objective:
        objective = inspection.make_objective(options.objective, inspection.find_vocabulary(store, options.vocabulary))
        settings = {"packing": options.packing, "seed": options.seed or 0, "limit": options.characters or CHARACTERS}
        length = options.length or LENGTH
        return inspection.describe_examples(store, objective, length, options.show or 1, **settings)
    if options.show or options.document is not None:
        first, vocabulary = options.document or 0, inspection.find_vocabulary(store, options.vocabulary)
        stop = max(min(first + (options.show or 1), store.num_documents), first + 1)
        limit = options.characters or CHARACTERS
        texts = [inspection.describe_document(store, i, vocabulary, limit) for i in range(first, stop)]
        return "\n\n".join(texts)
    try:
        vocabulary = inspection.find_vocabulary(store, options.vocabulary)
    except UserError:
        if options.vocabulary:
            raise
        vocabulary = None  # Statistics do without names.
    return inspection.describe_store(store, vocabulary)


def inspect_run(options: argparse.Namespace, gin_words: list[str]) -> str:
    """The text for steps of a run."""
    data, model_dir = load_run(options.gin_file, gin_words)
    if data.delivery == "live":
        raise UserError(
            "a live run has no documents of a step: they come as the source gives them (DELIVERY = 'store')"
        )
    source = open_run(data, model_dir)
    if options.to_step is not None:
        return inspection.describe_mixture(source, options.step, options.to_step)
    given = {name: getattr(options, name) for name in ("show", "characters")}
    given = {name: value for name, value in given.items() if value is not None}
    return inspection.describe_step(source, options.step, load_vocabulary(data.vocabulary), **given)


def load_run(gin_files: list[str], gin_words: list[str]) -> tuple[DataConfig, str]:
    """The data and the directory of a run; its model is not made."""
    from t5x_scale.commands import COMMANDS
    from t5x_scale.config.load import Setting, load, make_arguments

    sys.path.insert(0, os.getcwd())
    settings = []
    for word in gin_words:
        name, equals, value = word.removeprefix("--gin.").partition("=")
        if not name or not equals:
            raise UserError(f"{word}: write --gin.NAME=value")
        settings.append(Setting(name, value, f"--gin.{name}"))
    loaded = load("train", COMMANDS, gin_files, settings)
    arguments = make_arguments(loaded, lambda data, model_dir: None)
    return arguments["data"], arguments["model_dir"]


def open_run(data: DataConfig, model_dir: str) -> BatchSource:
    """The batches of a run, continued from its newest checkpoint if it has one."""
    from t5x_scale.checkpoint.layout import list_steps, read_newest

    source = make_pipeline(data, default_store_dir=to_path(model_dir) / "token_stores")
    directory = to_path(model_dir) / "checkpoints"
    if not directory.exists() or not list_steps(directory):
        return source
    _, document = read_newest(model_dir)
    return source.resumed(document.metadata["data"], document.step)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("store", nargs="?", help="directory of a token store, local or gs://")
    parser.add_argument("--verify", action="store_true", help="read everything and compare checksums")
    parser.add_argument("--show", type=_count, help="how many documents, examples or rows")
    parser.add_argument("--document", type=_count, help="the first document to show")
    parser.add_argument("--vocabulary", help="of the store, where its manifest does not name it")
    parser.add_argument("--objective", help=", ".join(inspection.OBJECTIVES))
    parser.add_argument("--length", type=_count, help=f"positions of a row ({LENGTH})")
    parser.add_argument("--packing", help="windows, or documents")
    parser.add_argument("--seed", type=_count, help="of the examples (0)")
    parser.add_argument("--characters", type=_count, help=f"shown of a text ({CHARACTERS}; 60 in steps)")
    parser.add_argument(
        "--gin_file", action="append", default=[], help="configuration of a run; may be given many times"
    )
    parser.add_argument("--step", type=_count, help="a step of the run, counted from 0")
    parser.add_argument("--to_step", type=_count, help="one past the last step of a range")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def check_options(options: argparse.Namespace, gin_words: list[str]) -> None:
    """Raises UserError if the flags do not say one thing."""
    if (options.store and options.gin_file) or not (options.store or options.gin_file or options.objective):
        raise UserError("give the directory of a token store, or --gin_file of a run and --step")
    if options.gin_file and options.step is None:
        raise UserError("--gin_file needs --step")
    if options.to_step is not None and options.to_step <= options.step:
        raise UserError(f"--to_step={options.to_step} must lie behind --step={options.step}")
    if not options.gin_file and (options.step is not None or options.to_step is not None or gin_words):
        raise UserError("--step, --to_step and --gin.NAME belong to a run: give its --gin_file")
    if 0 in (options.length, options.characters):
        raise UserError("--length and --characters must be 1 or more")
    what, uses = _purpose(options)
    for name, value in vars(options).items():
        if value not in (None, False) and name not in ("store", "gin_file", "step", "vocabulary", *uses):
            raise UserError(f"--{name} says nothing about {what}")


def _purpose(options: argparse.Namespace) -> tuple[str, tuple[str, ...]]:
    """What the flags ask for, and the flags that have a say in it."""
    if options.gin_file and options.to_step is not None:
        return "the mixture of steps", ("to_step",)
    if options.gin_file:
        return "the documents of a step", ("show", "characters")
    if options.verify:
        return "a verification", ("verify",)
    if options.objective:
        return "examples of an objective", ("objective", "show", "length", "packing", "seed", "characters")
    if options.show or options.document is not None:
        return "documents", ("show", "document", "characters")
    return "the statistics of a store", ("show",)


def main() -> int:
    """The command line; returns the exit code."""
    # Taken out first: argparse would take a value with a blank in it for something else than a flag.
    gin_words = [word for word in sys.argv[1:] if word.startswith("--gin.")]
    try:
        options = make_parser().parse_args([word for word in sys.argv[1:] if word not in gin_words])
        check_options(options, gin_words)
        print(inspect_run(options, gin_words) if options.gin_file else inspect_store(options))
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output has seen enough. What is left goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
