"""From the rates in a configuration to the token share of every source."""

from __future__ import annotations

from collections.abc import Mapping

from t5x_scale.core import files
from t5x_scale.data import text_source
from t5x_scale.data.catalog import Catalog, file_name, hash_modules, import_seqio_source
from t5x_scale.data.token_store import TokenStore


def resolve_name(name: str, catalog: Catalog) -> tuple[dict[str, float], bool]:
    """The sources behind a registered name.

    Returns:
      ({source: rate}, whether the rates count examples instead of tokens). A task, and `text:...`, is itself.

    Raises:
      UserError: nothing of that name is registered.
    """
    if text_source.is_text_source(name) or catalog.has_store(name):
        return {name: 1.0}, False
    record = files.to_path(catalog.store_dir) / f"{file_name(name)}.mixture.json"
    modules = hash_modules(catalog.task_modules)
    if record.exists():
        recorded = files.read_json(record)
        if recorded["modules"] == modules:
            return recorded["rates"], True
    rates = import_seqio_source(catalog.task_modules).task_or_mixture_names(name)
    if rates == {name: 1.0}:
        return rates, False
    if catalog.process_index == 0:
        files.make_directory(catalog.store_dir)
        files.write_json(record, {"name": name, "rates": rates, "modules": modules})
    return rates, True


def token_rates(rates: Mapping[str, float], stores: Mapping[str, TokenStore]) -> dict[str, float]:
    """Rates by tokens from rates by examples: a source whose examples are longer has more of the tokens."""
    return {
        name: rate * stores[name].num_tokens / stores[name].num_documents for name, rate in rates.items() if rate > 0
    }
