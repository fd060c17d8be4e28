"""What a name in a configuration stands for: a source, or a mixture that is registered with SeqIO.

What SeqIO said of a mixture is written beside the stores, so that a machine with neither SeqIO nor TensorFlow can
train on it, for as long as the modules that register it stay as they were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_scale.core import files
from t5x_scale.core.describe import digest
from t5x_scale.data import text_source
from t5x_scale.data.catalog import Catalog, file_name, hash_modules, import_seqio_source

# Stands for the counts of a mixture whose rates need none.
_NO_COUNTS = "constant"


@dataclasses.dataclass(frozen=True)
class NamedMixture:
    """A source, which is a mixture of itself, or a registered mixture.

    Attributes:
      name: as the configuration has it.
      sources: whose stores are needed; those of constant rate 0 are left out.
      is_registered: whether it is a mixture, whose rates count examples.
    """

    name: str
    sources: tuple[str, ...]
    is_registered: bool
    _catalog: Catalog

    def example_shares(self, num_examples: Mapping[str, int]) -> dict[str, float]:
        """{source: share of the examples}; they sum to 1.

        Args:
          num_examples: {source: documents in its store}, for rates that are computed from it.

        Raises:
          UserError: a rate is negative or cannot be computed, or all are zero.
        """
        if not self.is_registered:
            return {self.name: 1.0}
        counts = {name: num_examples[name] for name in self.sources}
        record = _read_record(self.name, self._catalog)
        known = record["rates"] if record else {}
        for key in (_NO_COUNTS, _digest(counts)):
            if key in known:
                return _positive(known[key])
        rates = import_seqio_source(self._catalog.task_modules).task_or_mixture_names(self.name, counts)
        _write_record(self.name, self._catalog, self.sources, {**known, _digest(counts): rates})
        return _positive(rates)


def look_up(name: str, catalog: Catalog) -> NamedMixture:
    """Finds what a task, a registered mixture or `text:...` stands for.

    Raises:
      UserError: nothing of that name is registered, or its rates are no rates.
    """
    if text_source.is_text_source(name) or catalog.has_store(name):
        return NamedMixture(name, (name,), False, catalog)
    record = _read_record(name, catalog)
    if record:
        return NamedMixture(name, tuple(record["sources"]), True, catalog)
    registry = import_seqio_source(catalog.task_modules)
    if not registry.is_mixture(name):
        return NamedMixture(name, (name,), False, catalog)
    if registry.has_counted_rates(name):
        sources, rates = registry.mixture_tasks(name), {}
    else:
        rates = {_NO_COUNTS: registry.task_or_mixture_names(name)}
        sources = tuple(_positive(rates[_NO_COUNTS]))
    _write_record(name, catalog, sources, rates)
    return NamedMixture(name, sources, True, catalog)


def _positive(rates: Mapping[str, float]) -> dict[str, float]:
    return {name: rate for name, rate in rates.items() if rate > 0}


def _record_path(name: str, catalog: Catalog) -> files.Path:
    return files.to_path(catalog.store_dir) / f"{file_name(name)}.mixture.json"


def _read_record(name: str, catalog: Catalog) -> dict[str, Any] | None:
    """What was written about a mixture, unless the code that registers it changed since."""
    path = _record_path(name, catalog)
    if not files.exists(path):
        return None
    record = files.read_json(path)
    return record if "sources" in record and record["modules"] == hash_modules(catalog.task_modules) else None


def _write_record(name: str, catalog: Catalog, sources: tuple[str, ...], rates: Mapping[str, Any]) -> None:
    """Writes {"rates": {counts they were computed from, hashed: {source: share of the examples}}, …}."""
    if catalog.process_index == 0:
        files.make_directory(catalog.store_dir)
        modules = hash_modules(catalog.task_modules)
        record = {"name": name, "sources": sources, "rates": rates, "modules": modules}
        files.write_json(_record_path(name, catalog), record)


def _digest(counts: Mapping[str, int]) -> str:
    return digest(counts)[:16]
