"""How many entries a vocabulary has, by the size of the model around it."""

from __future__ import annotations

import contextlib
import math

from t5x_scale.core.errors import UserError
from t5x_scale.planner.choices import Choice, ask
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
    opinions = []
    for _ in range(8 if counts_tables else 1):
        width = _width(rest)
        opinions = [ask(law, params=rest, embed_dim=width) for law in present(laws, APPROACHES[:2])]
        middle = sorted(opinion.value for opinion in opinions)[len(opinions) // 2]
        tables = (1 if family == "palm" else 2) * min(max(given or middle, _FEWEST), _MOST) * width
        if counts_tables:
            # Half of a step towards what is left, so that the smallest models settle too.
            rest = (rest + max(params - tables, params / 3)) / 2
    for law in present(laws, APPROACHES[2:]):
        # Of models of a few hundred parameters it knows nothing.
        with contextlib.suppress(UserError):
            opinions.append(ask(law, params=rest, embed_dim=_width(rest)))
    chosen = sorted(opinions, key=lambda opinion: opinion.value)[len(opinions) // 2]
    wanted = given or min(max(chosen.value, _FEWEST), _MOST)
    size = math.ceil(wanted / unit) * unit
    if given:
        reason = "given" if size == given else f"given {given:,}, rounded up to a multiple of {unit}"
        return Choice("vocabulary", size, f"{size:,}", reason, tuple(opinions))
    bounds = ""
    if wanted != chosen.value:
        bounds = f"; kept between {_FEWEST:,} and {_MOST:,}"
    reason = f"the middle of three approaches for what lies outside of it, up to a multiple of {unit}{bounds}"
    return Choice("vocabulary", size, f"{size:,}", reason, tuple(opinions), chosen.law)


def _width(params: float) -> float:
    return max(embed_dim_near(params), 128 if params >= SMALL else 32)
