"""Scaling laws: one small file a law, one interface (see `interface`), and how they are fitted and solved.

Each module of a law holds its instances with the published constants in `LAWS`; they stand here by name.
"""

from __future__ import annotations

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.laws import (
    batch_size,
    besiroglu,
    bimix,
    chinchilla,
    cmr,
    context_length,
    data_constrained,
    dcpt,
    deepseek,
    fine_grained,
    forgetting,
    growth,
    joint_moe,
    kaplan,
    knowledge,
    linear_complexity,
    llama3,
    mccandlish,
    mixed_modal,
    optimal_sparsity,
    porian,
    precision,
    quality,
    quantised_training,
    repeated_sampling,
    repetition,
    replay,
    routed,
    time_transfer,
    trainable,
    transfer,
    upcycling,
    vocabulary,
)
from t5x_scale.laws.constants import Constant
from t5x_scale.laws.domain import Domain
from t5x_scale.laws.interface import Fit, Law, Optimum

_MODULES = (
    kaplan,
    mccandlish,
    chinchilla,
    besiroglu,
    porian,
    data_constrained,
    repetition,
    deepseek,
    vocabulary,
    llama3,
    batch_size,
    time_transfer,
    linear_complexity,
    context_length,
    repeated_sampling,
    routed,
    fine_grained,
    optimal_sparsity,
    joint_moe,
    upcycling,
    bimix,
    dcpt,
    cmr,
    replay,
    forgetting,
    transfer,
    mixed_modal,
    quality,
    knowledge,
    precision,
    quantised_training,
    trainable,
    growth,
)

LAWS: dict[str, Law] = {law.name: law for module in _MODULES for law in module.LAWS}

# What a constant is, and where it is from, stands once, at its field: `help(type(law))` shows it too.
for _law in LAWS.values():
    type(_law).__doc__ = f"{type(_law).__doc__}\n\nConstants:\n{_law.constants_table()}"


def find_law(name: str) -> Law:
    """The law of that name, with the published constants.

    Raises:
      UserError: naming the nearest one.
    """
    if name not in LAWS:
        raise UserError(f"there is no law {name!r}{did_you_mean(name, LAWS) or '; known are ' + ', '.join(LAWS)}")
    return LAWS[name]


__all__ = ["LAWS", "Constant", "Domain", "Fit", "Law", "Optimum", "find_law"]
