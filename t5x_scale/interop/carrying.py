"""Which of our models a family can carry: those whose configuration, written and read again, says the same.

So there is no list of features a family to keep in step with its translation: the translation is the list.
"""

from __future__ import annotations

import dataclasses

from t5x_scale.core.errors import UserError
from t5x_scale.interop.families.family import Family
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.records import name_differences


def canonical(architecture: Architecture) -> Architecture:
    """The same function said in one way only, where our words have several for it."""
    a = architecture.normalized()
    if a.attention_scale == a.config.head_dim**-0.5:
        a = dataclasses.replace(a, attention_scale=None)
    if a.router == "topk_softmax":
        # Divided by their sum, the k largest of a softmax over all are the softmax over the k largest.
        a = dataclasses.replace(a, router="softmax_topk", normalize_gates=True)
    if a.rope_scaling is not None and a.rope_scaling.kind == "ntk":
        rotated = int(a.config.head_dim * a.rope_fraction)
        base = a.rope_base * a.rope_scaling.factor ** (rotated / (rotated - 2))
        a = dataclasses.replace(a, rope_base=base, rope_scaling=None)
    # The longest context is on record beside what is computed.
    return dataclasses.replace(a, max_length=architecture.max_length)


def name_refused(family: Family, architecture: Architecture) -> list[str]:
    """The features of an architecture that a family's configuration cannot say, each with its value; [] if none."""
    wanted = canonical(architecture)
    try:
        said = family.to_architecture(family.write_config(wanted))
    except UserError as error:
        return [str(error)]
    absorbed = {name: getattr(wanted, name) for name in family.absorbed}
    said = canonical(dataclasses.replace(said, **absorbed))
    return [_render(difference) for difference in name_differences(wanted, said)]


def _render(difference: str) -> str:
    name, values = difference.split(": ", 1)
    value, other = values.rsplit(" -> ", 1)
    return f"{name}={value} (it has {other})"
