"""Predictions against what was measured: published step rates of programs that can be compiled again.

Shapes, batches and remat of the rows are gin files (`gin/calibration/`). What is compared is the time of a step, since
the utilisations are counted in different ways. The constants of `links.Constants` are fitted, and the form of the costs
was chosen, with the rows marked so in sight, and with no others; those of attention in `kernels.KernelModel` come from
no row, but from the compiler's schedules of the kernel for v5p. Of the row on v6e the error was known when both kernels
and its own gin file (its compiler flags, nearer to those published) were looked at again: it is no blind prediction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from t5x_scale.core.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Published:
    """A measured rate; one of the two.

    Attributes:
      name: of the gin file in `gin/calibration/`.
      title: what was trained on what.
      flops_per_second: model FLOPs a second and chip, attention in full.
      tokens_per_second: of all chips.
      is_fitted: whether constants, compiler flags or the row's own gin file were chosen with its error in sight.
      source: where the rate is published.
    """

    name: str
    title: str
    flops_per_second: float | None = None
    tokens_per_second: float | None = None
    is_fitted: bool = False
    source: str = ""

    def step_seconds(self, tokens: int, full_flops: float, num_chips: int) -> float:
        """Time of a step at the published rate.

        Args:
          tokens: of a step.
          full_flops: model FLOPs of a step, attention in full, of all chips.
          num_chips: of the machine.
        """
        if self.tokens_per_second is not None:
            return tokens / self.tokens_per_second
        return full_flops / num_chips / self.flops_per_second


_MAXTEXT = "MaxText's README and performance pages"
PUBLISHED: dict[str, Published] = {
    row.name: row
    for row in (
        Published("maxtext_32b_v5p_64", "MaxText 32B, 64 v5p", 328e12, is_fitted=True, source=_MAXTEXT),
        # It showed that the compiler took 95 % of the memory for full (`partitioning/compiler_flags.py`).
        Published("maxtext_64b_v5p_64", "MaxText 64B, 64 v5p", 323e12, is_fitted=True, source=_MAXTEXT),
        Published("maxtext_128b_v5p_128", "MaxText 128B, 128 v5p", 315e12, source=_MAXTEXT),
        Published("maxtext_256b_v5p_512", "MaxText 256B, 512 v5p", 308e12, source=_MAXTEXT),
        Published("maxtext_512b_v5p_512", "MaxText 512B, 512 v5p", 294e12, source=_MAXTEXT),
        Published("maxtext_1024b_v5p_2048", "MaxText 1024B, 2,048 v5p", 297e12, source=_MAXTEXT),
        Published("maxtext_16b_v5e_256", "MaxText 16B, 256 v5e", 120e12, source=_MAXTEXT),
        # It showed that not all of a product's time is to be stretched alike.
        Published("maxtext_32b_v5e_256", "MaxText 32B, 256 v5e", 132e12, is_fitted=True, source=_MAXTEXT),
        Published("llama2_70b_v5p_512", "Llama 2 70B, 512 v5p", None, 692.0 * 512, is_fitted=True, source=_MAXTEXT),
        Published("llama3.1_8b_v6e_256", "Llama 3.1 8B, 256 v6e", None, 7207.0 * 256, is_fitted=True, source=_MAXTEXT),
        Published(
            "palm_540b_v4_2x3072",
            "PaLM 540B, 6,144 v4",
            tokens_per_second=238.3e3,
            is_fitted=True,
            source="arXiv 2204.02311, table 3",
        ),
    )
}
# What is compared when nothing is named.
COMPARABLE = tuple(PUBLISHED)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A row of the table: published and predicted seconds of a step, and by how much the prediction is off."""

    published: Published
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Of the prediction, as a share of what was measured; positive is too slow."""
        return self.predicted / self.measured - 1


def find_published(name: str) -> Published:
    """The row of a gin file.

    Raises:
      UserError: naming the nearest.
    """
    if name not in PUBLISHED:
        raise UserError(f"nothing is published of {name!r}{did_you_mean(name, PUBLISHED)}")
    return PUBLISHED[name]


def compare(name: str, prediction: Mapping[str, Any]) -> Comparison:
    """Holds a prediction against what was measured.

    Args:
      name: of the gin file.
      prediction: of the program that it makes, as `report.to_json` writes it.

    Raises:
      UserError: nothing is published of it, or the report knows no FLOPs of the model.
    """
    row, model = find_published(name), prediction["model"]
    if model is None:
        raise UserError(f"{name}: the report was made without the FLOPs of the model")
    measured = row.step_seconds(model["tokens"], model["full"], prediction["num_chips"])
    return Comparison(row, measured, prediction["seconds"])


def to_table(comparisons: Iterable[Comparison]) -> str:
    """The comparisons as a table in Markdown, fitted rows first."""
    lines = ["| program | measured | predicted | error | |", "|---|---|---|---|---|"]
    for row in sorted(comparisons, key=lambda row: not row.published.is_fitted):
        use = "in sight" if row.published.is_fitted else "not seen"
        cells = (
            row.published.title,
            f"{row.measured:.2f} s",
            f"{row.predicted:.2f} s",
            f"{100 * row.error:+.0f} %",
            use,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
