"""Builds the token stores of tasks, mixtures or text files, once, with all cores of this machine or on a cluster.

  python tools/build_token_store.py --task='text:corpus/**/*.txt' --vocabulary=bytes --store_dir=stores
  python tools/build_token_store.py --mixture=my_mixture --module=my_tasks --vocabulary=gs://bucket/vocabulary \\
      --store_dir=gs://bucket/stores --quality --near_duplicates=0.8 --decontaminate=gsm8k:test --licence='CC-BY-4.0'

`t5x_scale train` with the same vocabulary and `DataConfig.store_dir` finds them; it builds what is missing itself, with
all documents. Interrupted or killed, the same command goes on where it was. Duplicates are those within one task.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import NoReturn

from t5x_scale.core.errors import UserError
from t5x_scale.data.building.curation_choice import CurationChoice
from t5x_scale.data.building.runners import LOCAL, make_builder
from t5x_scale.data.catalog import Catalog, describe_curation
from t5x_scale.data.mixtures.named_mixture import look_up
from t5x_scale.data.store_manifest import is_finished
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import load_vocabulary


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags)")


def parse_arguments() -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    names = {"action": "append", "default": []}
    parser.add_argument("--task", **names, help="a registered task, or text:PATTERN; may be given several times")
    parser.add_argument("--mixture", **names, help="a registered mixture: all of its tasks; may be given several times")
    parser.add_argument("--module", **names, help="a module that registers tasks; may be given several times")
    parser.add_argument("--split", default="train")
    parser.add_argument("--vocabulary", required=True, help="as VOCABULARY of a run")
    parser.add_argument("--store_dir", required=True, help="directory of all stores, local or gs://")
    parser.add_argument("--workers", type=int, help="processes; by default one for each core, none for a small source")
    parser.add_argument("--licence", default="", help="a note for the manifest")
    parser.add_argument("--exact_duplicates", action="store_true", help="leave out copies of a document")
    parser.add_argument(
        "--near_duplicates", type=float, nargs="?", const=0.8, metavar="SHARE", help="and those much alike (0.8)"
    )
    parser.add_argument("--min_tokens", type=int, help="leave out shorter documents")
    parser.add_argument("--max_tokens", type=int, help="leave out longer documents")
    parser.add_argument("--quality", action="store_true", help="leave out what Gopher's rules refuse")
    parser.add_argument("--decontaminate", **names, metavar="TASK:SPLIT", help="leave out what overlaps with this")
    parser.add_argument("--runner", default=LOCAL, help="local, or a runner of Apache Beam: direct, dataflow, flink, …")
    parser.add_argument("--beam_option", **names, help="an option of the Beam pipeline, such as project=my_project")
    return parser.parse_args()


def build(args: argparse.Namespace) -> list[TokenStore]:
    """Builds every store; the stores in the order of the names."""
    if args.workers is not None and args.runner != LOCAL:
        raise UserError("--workers is for --runner=local; a runner of Beam has options, such as direct_num_workers=8")
    catalog = Catalog(args.store_dir, load_vocabulary(args.vocabulary), tuple(args.module))
    choice = CurationChoice(
        exact_duplicates=args.exact_duplicates,
        near_duplicates=args.near_duplicates,
        min_tokens=args.min_tokens,
        max_tokens=args.max_tokens,
        quality=args.quality,
        decontaminate=tuple(args.decontaminate),
    )
    curation = choice.make(catalog)
    mixtures = [look_up(name, catalog) for name in [*args.task, *args.mixture]]
    names = list(dict.fromkeys(source for mixture in mixtures for source in mixture.sources))
    if not names:
        raise UserError("nothing to build: name a --task or a --mixture")
    builder = make_builder(args.runner, catalog, args.beam_option)
    settings = {"curation": curation, "licence": args.licence, "workers": args.workers, "builder": builder}
    stores = {}
    for name in names:
        if is_finished(catalog.directory(name, args.split)):
            print(f"'{name}' was built before: delete its store to build it again", file=sys.stderr)
        stores[name] = catalog.build(name, args.split, **settings)
    for mixture in mixtures:
        # Written down, so that a run needs no SeqIO to know them.
        mixture.example_shares({name: stores[name].num_documents for name in mixture.sources})
    return list(stores.values())


def describe(store: TokenStore) -> str:
    manifest = store.manifest
    kind = "supervised, " if manifest.supervised else ""
    licence = f"; licence: {manifest.licence}" if manifest.licence else ""
    return (
        f"{store.directory}\n  {manifest.source['task']}, split {manifest.source['split']}: {kind}"
        f"{store.num_documents:,} documents, {store.num_tokens:,} tokens{licence}\n  {describe_curation(manifest)}"
    )


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Modules of tasks lie where the user works, as for t5x_scale.
    sys.path.insert(0, os.getcwd())
    try:
        print("\n".join(map(describe, build(parse_arguments()))))
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped; finished parts are kept, and the same command goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
