"""How many entries a vocabulary has, by the size of the model around it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from t5x_scale.core.errors import UserError
from t5x_scale.laws import Law
from t5x_scale.planner.choices import Choice, Opinion, ask, gather
from t5x_scale.planner.law_table import Laws, present
from t5x_scale.planner.meshes import MeshPlan
from t5x_scale.planner.shapes import SMALL, embed_dim_near, vocabulary_unit

APPROACHES = ("vocabulary_isoflop", "vocabulary_derivative", "vocabulary_parametric")
# Fewer ids leave little beside the 256 bytes; more tokens of a text than these were never measured.
_FEWEST, _MOST = 512, 512_000


def choose_vocabulary(
    laws: Laws, params: float, given: int | None, mesh: MeshPlan = MeshPlan(), counts_tables: bool = True,
    family: str = "llama",
) -> Choice:  # fmt: skip
    """The vocabulary of a model: the middle one of three approaches, rounded up to what its mesh divides.

    Args:
      laws: by name.
      params: of the model.
      given: what is asked for; it is only rounded up.
      mesh: of the machine.
      counts_tables: whether `params` are all parameters; else those outside the tables.
      family: says how many tables there are.
    """
    unit = vocabulary_unit(params, mesh)
    rest = params

    def opinion_of(law: Law) -> Opinion:
        return ask(law, params=rest, embed_dim=_width(rest))

    for _ in range(8 if counts_tables else 1):
        opinions, left_out = gather(present(laws, APPROACHES[:2]), opinion_of)
        entries = given or _middle(opinions, rest).value
        tables = (1 if family == "palm" else 2) * min(max(entries, _FEWEST), _MOST) * _width(rest)
        if counts_tables:
            # Half of a step towards what is left, so that the smallest models settle too.
            rest = (rest + max(params - tables, params / 3)) / 2
    third, silent = gather(present(laws, APPROACHES[2:]), opinion_of)
    opinions, left_out = (*opinions, *third), (*left_out, *silent)
    if given:
        size = math.ceil(given / unit) * unit
        reason = "given" if size == given else f"given {given:,}, rounded up to a multiple of {unit}"
        return Choice("vocabulary", size, f"{size:,}", reason, opinions, left_out=left_out)
    chosen = _middle(opinions, rest)
    wanted = min(max(chosen.value, _FEWEST), _MOST)
    size = math.ceil(wanted / unit) * unit
    bounds = ""
    if wanted != chosen.value:
        bounds = f"; kept between {_FEWEST:,} and {_MOST:,}"
    reason = f"the middle of three approaches for what lies outside of it, up to a multiple of {unit}{bounds}"
    return Choice("vocabulary", size, f"{size:,}", reason, opinions, chosen.law, left_out)


def _middle(opinions: Sequence[Opinion], params: float) -> Opinion:
    if not opinions:
        raise UserError(f"no law has a vocabulary for {params:.3g} parameters: give --vocab_size")
    return sorted(opinions, key=lambda opinion: opinion.value)[len(opinions) // 2]


def _width(params: float) -> float:
    return max(embed_dim_near(params), 128 if params >= SMALL else 32)
