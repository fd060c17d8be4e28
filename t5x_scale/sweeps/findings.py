"""What the rows of a sweep show of the shape of a law, and whether it came out, by a rule that stands beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from t5x_scale.core.errors import UserError
from t5x_scale.laws import LAWS
from t5x_scale.laws.isoflop import fit_frontier
from t5x_scale.laws.knowledge import stored_bits
from t5x_scale.sweeps.fits import Fitted
from t5x_scale.sweeps.rows import Row
from t5x_scale.sweeps.tables import find_valleys

# Seeds and batches move a loss by so much: a step up by less is no step up.
_NOISE = 0.01


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
      title: the shape that was looked for.
      expected: what it should be, decided beforehand.
      found: the figures.
      came_out: whether they are that.
    """

    title: str
    expected: str
    found: str
    came_out: bool


def power_law(title: str, fitted: Fitted, quantity: str) -> Finding:
    """Of a law of one quantity: the loss falls with each step of it, near to a power."""
    x, y = fitted.data[quantity], fitted.data["loss"]
    falling = _falls(y[np.argsort(x)])
    exponent = -np.polyfit(np.log(x), np.log(y), 1)[0]
    worst = np.abs(fitted.errors).max()
    found = f"{len(x)} runs, loss {y.max():.3f} to {y.min():.3f}, exponent {exponent:.3f}, worst error {worst:.1%}"
    return Finding(title, "falls at every step, within 5 % of a power", found, bool(falling and worst < 0.05))


def valleys(rows: Sequence[Row]) -> Finding:
    """Of budgets spent on several sizes: each has a lowest loss in between, and it moves up with the budget."""
    title, expected = "IsoFLOP valleys", "every bottom inside, larger sizes for larger budgets"
    try:
        found = find_valleys(type(LAWS["chinchilla_isoflop"]), rows)
    except UserError as error:
        return Finding(title, expected, str(error), False)
    inside = [valley for valley in found if valley.is_inside]
    text = "; ".join(
        f"{v.flops:.2g} FLOPs {v.params / 1e3:.0f}k{'' if v.is_inside else ' (at an end)'}, {v.loss:.3f}" for v in found
    )
    rising = len(inside) == len(found) > 1 and all(np.diff([v.params for v in inside]) > 0)
    if len(inside) > 1:
        exponent = fit_frontier([v.flops for v in inside], [v.params for v in inside]).exponent
        text += f"; best size grows as C^{exponent:.2f}"
    return Finding(title, expected, text, bool(rising))


def repetition(rows: Sequence[Row]) -> Finding:
    """Of one size and number of tokens out of less and less text: few epochs cost little, many much."""
    rows = sorted(rows, key=lambda row: row["epochs"])
    excess = [row["loss"] / rows[0]["loss"] - 1 for row in rows]
    text = ", ".join(f"{row['epochs']:.0f}: {more:+.1%}" for row, more in zip(rows, excess, strict=True))
    few = max((more for row, more in zip(rows, excess, strict=True) if row["epochs"] < 5), default=0.0)
    came_out = few < 0.03 and excess[-1] > 0.1 and _falls(-np.array(excess))
    expected = "up to four cost below 3 %, the most above 10 %, never less with more"
    return Finding("epochs", expected, text, bool(came_out))


def trade_off(rows: Sequence[Row], domain: str, general: str) -> Finding:
    """Of continued training: the domain's loss falls and the general one rises with the domain's share."""
    rows = sorted(rows, key=lambda row: row["shares"].get(domain, 0.0))
    of_domain = np.array([row["losses"][domain] for row in rows])
    of_general = np.array([row["losses"][general] for row in rows])
    shares = [row["shares"].get(domain, 0.0) for row in rows]
    text = "; ".join(f"{s:.2f}: {d:.3f} / {g:.3f}" for s, d, g in zip(shares, of_domain, of_general, strict=True))
    came_out = _falls(of_domain) and _falls(-of_general)
    expected = "domain loss falls and general loss rises at every step"
    return Finding("share of the domain", expected, f"{text} (domain / general)", came_out)


def knowledge(rows: Sequence[Row], value_bits: float, names: int, tokens_a_person: int) -> Finding:
    """Of people learnt by heart: bits a parameter grow with exposures, and are alike for sizes that cannot hold all.

    Tables do not count: of one of 640 rows these texts use two dozen.
    """
    found = []
    for row in rows:
        # All tokens but those of names and values are certain, so the sum over a person is both losses together.
        bits = stored_bits(row["people"], row["loss"] * tokens_a_person, 0.0, value_bits, names)
        whole = stored_bits(row["people"], float(np.log(row["people"])), 0.0, value_bits, names)
        found.append((row["bare_params"], row["epochs"], bits / row["bare_params"], bits / whole))
    found.sort()
    text = "; ".join(f"{n / 1e3:.0f}k x {e:.0f}: {ratio:.2f} ({share:.0%} known)" for n, e, ratio, share in found)
    usual = float(np.median([e for _, e, _, _ in found]))
    same = [ratio for _, e, ratio, share in found if abs(e / usual - 1) < 0.1 and share < 0.9]
    sizes = [n for n, *_ in found]
    most = max(sizes, key=sizes.count)
    exposed = [ratio for n, e, ratio, _ in sorted(found, key=lambda entry: entry[1]) if n == most]
    level = len(same) > 1 and max(same) < 2 * min(same)
    growing = len(exposed) > 1 and all(np.diff(exposed) > 0)
    expected = "alike within a factor of two where not all is known; more with more exposures"
    return Finding("bits a parameter", expected, text, bool(level and growing))


def prediction(predicted: float, planned: Row | None, largest: float) -> Finding:
    """Of the planned run: its final loss against that of the fitted law; `largest` are the FLOPs of the largest run."""
    title, expected = "the planned run", "within 3 % of the fitted law"
    if planned is None:
        return Finding(title, expected, "it was not trained to its end", False)
    error = predicted / planned["loss"] - 1
    times = planned["flops"] / largest
    size = f"{planned['params'] / 1e3:.0f}k on {planned['tokens'] / 1e6:.2f}M tokens, {planned['flops']:.2g} FLOPs"
    far = f"{times:.1f} times those of the largest run" if times > 1 else "within the sweep"
    found = f"predicted {predicted:.4f}, measured {planned['loss']:.4f}, error {error:+.2%}; {size}, {far}"
    return Finding(title, expected, found, abs(error) < 0.03)


def to_markdown(findings: Sequence[Finding], head: str) -> str:
    """A table for the README."""
    lines = [head, "", "| shape | asked | found | came out |", "|---|---|---|---|"]
    lines += [f"| {f.title} | {f.expected} | {f.found} | {'yes' if f.came_out else 'no'} |" for f in findings]
    return "\n".join(lines) + "\n"


def _falls(values: np.ndarray) -> bool:
    return bool(np.all(np.diff(values) < _NOISE * np.abs(values).max()) and values[-1] < values[0])
