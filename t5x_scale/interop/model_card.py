"""The README.md of an exported model: what is on record of it, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_scale import __version__
from t5x_scale.core.environment import package_version
from t5x_scale.core.leaves import render_origins
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.weights import Weights

# Facts that Hugging Face reads from the front matter; written only where somebody stated them.
FRONT_MATTER = ("license", "language", "datasets", "base_model", "pipeline_tag", "tags")
_VERSIONS = ("jax", "numpy")
# Of names in a list, such as the tokens that a surgery added.
_MOST_NAMES = 20


def make_model_card(name: str, weights: Weights, config: Mapping[str, Any], facts: Mapping[str, Any] = {}) -> str:
    """The card of an export, as Markdown with YAML front matter.

    Args:
      name: of the model; its directory's.
      weights: what was exported; its recipe and origins are told.
      config: the config.json.
      facts: what else is known: those of `FRONT_MATTER`, `tokens_trained` (an integer), and any others, which become
        lines of their own.
    """
    facts = {key: value for key, value in facts.items() if value is not None}
    sections = [
        _front_matter(facts),
        f"# {name}\n\n{_what_it_is(weights, config)}",
        f"## Architecture\n\n{_architecture_table(weights.architecture)}" if weights.architecture else "",
        f"## How it was made\n\n{_steps(weights.recipe)}",
        f"## On record\n\n{_facts(facts)}",
        f"## Where its tensors came from\n\n```\n{render_origins(weights.leaves, weights.dropped)}```",
        f"## Versions\n\n{_versions()}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(facts: Mapping[str, Any]) -> str:
    values = {"library_name": "transformers", **{key: facts[key] for key in FRONT_MATTER if key in facts}}
    values["tags"] = [*_as_list(values.pop("tags", [])), "t5x_scale"]
    # Every JSON value is YAML.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _what_it_is(weights: Weights, config: Mapping[str, Any]) -> str:
    count = sum(leaf.array.size for leaf in weights.leaves.values())
    dtypes = ", ".join(sorted({leaf.array.dtype.name for leaf in weights.leaves.values()}))
    kind = config.get("model_type", "unknown")
    return (
        f"A decoder-only language model of {count:,} parameters ({dtypes}) in the `{kind}` format of Hugging Face "
        f"transformers, written by t5x_scale {__version__}. This card says what is on record; it claims nothing about "
        "what the model can do, and no evaluation stands here unless it is listed below."
    )


def _architecture_table(architecture: Architecture) -> str:
    defaults = {field.name: field.default for field in dataclasses.fields(Architecture)}
    always = ("block", "norm", "positions", "mlp", "activation", "tied")
    rows = [(field.name, getattr(architecture.config, field.name)) for field in dataclasses.fields(architecture.config)]
    rows = [(name, value) for name, value in rows if name not in ("dtype", "param_dtype") and value != 0]
    for name, default in defaults.items():
        value = getattr(architecture, name)
        if name != "config" and (name in always or value != default):
            rows.append((name, value))
    return _table([("", "")] + [(f"`{name}`", _plain(value)) for name, value in rows])


def _table(rows: Sequence[tuple[str, str]]) -> str:
    head, *body = [f"| {left} | {right} |" for left, right in rows]
    return "\n".join([head, "|---|---|", *body])


def _plain(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        value = {name: part for name, part in dataclasses.asdict(value).items() if part is not None}
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        if len(value) > _MOST_NAMES and all(isinstance(part, str) for part in value):
            return f"{_plain(value[0])} and {len(value) - 1:,} more"
        return ", ".join(_plain(part) for part in value)
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _steps(recipe: Sequence[Mapping[str, Any]]) -> str:
    if not recipe:
        return "Nothing is on record of how it was made."
    return "\n".join(f"{number}. {_plain(step)}" for number, step in enumerate(recipe, 1))


def _facts(facts: Mapping[str, Any]) -> str:
    tokens = facts.get("tokens_trained")
    lines = ["- tokens trained on with t5x_scale: " + ("not on record" if tokens is None else f"{tokens:,}")]
    others = {key: value for key, value in facts.items() if key not in (*FRONT_MATTER, "tokens_trained")}
    lines += [f"- {key.replace('_', ' ')}: {_plain(value)}" for key, value in others.items()]
    return "\n".join(lines)


def _versions() -> str:
    return ", ".join([f"t5x_scale {__version__}", *(f"{name} {package_version(name)}" for name in _VERSIONS)])
