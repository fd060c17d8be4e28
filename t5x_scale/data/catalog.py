"""From the names in a configuration to open token stores.

SeqIO defines data and token stores deliver it: SeqIO, and with it TensorFlow, is imported only when a store has to be
built, or when the modules that register the tasks are not those the store was built from. What they then say is
compared with what the store recorded, so a task that was edited is noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.machinery
import importlib.util
import logging
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.core.patience import read_patiently
from t5x_scale.data import text_source
from t5x_scale.data.building.build import build_store
from t5x_scale.data.building.interface import Curation, Record
from t5x_scale.data.building.progress import Progress
from t5x_scale.data.building.units import join_records
from t5x_scale.data.building.work import Options
from t5x_scale.data.freezing import ensure
from t5x_scale.data.store_manifest import Manifest, is_finished
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Where stores lie and what is needed to build one that is missing.

    Attributes:
      store_dir: the directory of all stores, local or `gs://`.
      vocabulary: of the run.
      task_modules: dotted names of the modules that register SeqIO tasks.
      process_index: process 0 builds, the others wait.
    """

    store_dir: str
    vocabulary: Vocabulary
    task_modules: Sequence[str] = ()
    process_index: int = 0

    def directory(self, name: str, split: str) -> files.Path:
        """Where the store of a source's split lies; every vocabulary has its own."""
        directory = f"{file_name(name)}-{file_name(split)}-{self.vocabulary.fingerprint[:8]}"
        return files.to_path(self.store_dir) / directory

    def open(self, name: str, split: str) -> TokenStore:
        """Opens the store of a task or of text files, building it first if there is none.

        Raises:
          UserError: what `data.building`, `data.seqio_source` and `data.text_source` raise; the source changed
            since its store was built; or the store is of another split.
        """
        return self._open(name, split, lambda: self._build(name, split, Curation()))

    def build(
        self,
        name: str,
        split: str,
        *,
        curation: Curation | None = None,
        licence: str = "",
        workers: int | None = None,
        builder: Callable[..., object] | None = None,
    ) -> TokenStore:
        """Builds the store of a task or of text files, or opens one that was built in the same way.

        Args:
          name, split: as in `open`, which finds the store afterwards.
          curation: what is left out.
          licence: a note for the manifest.
          workers: as in `data.building.build.build_store`.
          builder: builds elsewhere; see `data.building.runners`.

        Raises:
          UserError: as `open`; or there is a store that was curated in another way.
        """
        curation = curation or Curation()

        def build() -> None:
            if builder is None:
                self._build(name, split, curation, licence=licence, workers=workers)
            else:
                options = Options(self.vocabulary, curation, self.is_supervised(name))
                source = self.describe(name, split)
                builder(name, split, self.directory(name, split), options, source=source, licence=licence)

        store = self._open(name, split, build)
        if store.manifest.source.get("curation", {}) != curation.describe():
            raise UserError(
                f"the token store {store.directory} was built with other filters or none "
                f"({describe_curation(store.manifest)}): delete it, or name another store_dir"
            )
        if licence and store.manifest.licence != licence:
            logger.warning("%s was built before and says of its licence '%s'", store.directory, store.manifest.licence)
        return store

    def describe(self, name: str, split: str) -> dict[str, Any]:
        """What a store of this source depends on, as JSON values for its manifest."""
        if text_source.is_text_source(name):
            return text_source.describe_source(name, split)
        source = import_seqio_source(self.task_modules)
        return {
            **source.describe_document_source(name, split),
            "fingerprint": source.document_source_fingerprint(name, split),
            "modules": hash_modules(self.task_modules),
        }

    def records(self, name: str, split: str) -> Iterator[Record]:
        """The documents of a source, in its order, not tokenised unless the source does it.

        Raises:
          UserError: at once or at the first `next`, what `data.seqio_source` and `data.text_source` raise.
        """
        if text_source.is_text_source(name):
            return text_source.iterate_records(name, split)
        return import_seqio_source(self.task_modules).iterate_records(name, split, self.vocabulary)

    def documents(self, name: str, split: str) -> Iterator[Record]:
        """As `records`, but every record is a whole document, however long."""
        return join_records(self.records(name, split))

    def is_supervised(self, name: str) -> bool:
        """Whether the documents of a source are inputs followed by targets."""
        is_text = text_source.is_text_source(name)
        return not is_text and import_seqio_source(self.task_modules).is_supervised(name)

    def has_store(self, name: str) -> bool:
        """Whether a split of this source has been frozen already, with any vocabulary."""
        return read_patiently(lambda: self._has_store(name), f"store_dir {self.store_dir}")

    def _has_store(self, name: str) -> bool:
        parent = files.to_path(self.store_dir)
        if not files.exists(parent):
            return False
        if not files.is_directory(parent):
            raise UserError(f"store_dir is {parent}, a file: name a directory for token stores")
        return any(path.name.startswith(f"{file_name(name)}-") and is_finished(path) for path in parent.iterdir())

    def _open(self, name: str, split: str, build: Callable[[], object]) -> TokenStore:
        directory = self.directory(name, split)
        finished = is_finished(directory)
        if not finished and self.process_index == 0:
            logger.info("building the token store of '%s' (%s) in %s", name, split, directory)
        store = ensure(
            directory,
            build,
            vocabulary_fingerprint=self.vocabulary.fingerprint,
            process_index=self.process_index,
        )
        recorded = store.manifest.source.get("split", split)
        if recorded != split:
            raise UserError(
                f"the token store {directory} holds the split '{recorded}' of '{name}', not '{split}': "
                "name another store_dir"
            )
        if finished:
            self._check_unchanged(name, split, store)
        if "curation" in store.manifest.source and self.process_index == 0:
            logger.info("the token store of '%s' (%s): %s", name, split, describe_curation(store.manifest))
        return store

    def _build(self, name: str, split: str, curation: Curation, **settings: Any) -> None:
        options = Options(self.vocabulary, curation, self.is_supervised(name))
        build_store(
            self.records(name, split),
            self.directory(name, split),
            options,
            source=self.describe(name, split),
            progress=self._progress(name, split),
            **settings,
        )

    def _progress(self, name: str, split: str) -> Progress:
        if text_source.is_text_source(name):
            return Progress(name, text_source.count_bytes(name, split), show=True)
        documents = import_seqio_source(self.task_modules).count_examples(name, split)
        return Progress(name, total_documents=documents, show=True)

    def _check_unchanged(self, name: str, split: str, store: TokenStore) -> None:
        recorded = store.manifest.source
        if text_source.is_text_source(name):
            text_source.check_unchanged(name, recorded, store.directory)
            return
        if recorded.get("modules") == hash_modules(self.task_modules):
            return
        try:
            now = import_seqio_source(self.task_modules).document_source_fingerprint(name, split)
        except UserError as error:
            logger.warning("cannot compare '%s' with the task its token store was frozen from: %s", name, error)
            return
        if now != recorded.get("fingerprint"):
            raise UserError(
                f"the task '{name}' changed since its token store {store.directory} was frozen: a run in progress "
                "needs the old task back; a new run can name another store_dir or delete that store"
            )


def describe_curation(manifest: Manifest) -> str:
    """What was left out of a store, in a line: "12 of 100 documents left out (filtered: few words 7, empty 5)"."""
    notes = ("read", "kept", "invalid_utf8_replaced", "characters_read")
    counts = {name: count for name, count in manifest.report.items() if name not in notes and count}
    read = manifest.report.get("read", manifest.num_documents)
    reasons = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return f"{sum(counts.values()):,} of {read:,} documents left out" + (f" ({reasons})" if reasons else "")


def file_name(name: str) -> str:
    """A name without hyphens that can stand in a path; no two sources, and no two splits, share one."""
    readable = re.sub(r"\W+", "_", name).strip("_")[:60]
    return readable if readable == name else f"{readable}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def import_seqio_source(task_modules: Sequence[str]) -> ModuleType:
    """`data.seqio_source`, with the modules that register tasks imported.

    Raises:
      UserError: SeqIO or TensorFlow is not installed, or a module cannot be imported.
    """
    try:
        from t5x_scale.data import seqio_source
    except ImportError as error:
        raise UserError(
            f"reading a SeqIO task needs seqio and TensorFlow, which cannot be imported ({error}); a finished token "
            "store and a 'text:' source do not"
        ) from error
    seqio_source.import_task_modules(task_modules)
    return seqio_source


def hash_modules(modules: Sequence[str]) -> str:
    """A hash of the Python files beside each module, found without importing them."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(f"\0{module}\0".encode())
        folder = _find_folder(module)
        for file in sorted(folder.glob("*.py")) if folder else ():
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _find_folder(module: str) -> pathlib.Path | None:
    """The folder of a module's file. Asking for the whole name at once would import the packages above it."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    for name in rest:
        if spec is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(f"{spec.name}.{name}", spec.submodule_search_locations)
    return pathlib.Path(spec.origin).parent if spec and spec.origin else None
