"""A plan as a picture: the loss to expect along the run, and how far the laws disagree about its size."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.laws import replay
from t5x_scale.monitor.figures import INK, MUTED, OTHERS, RULE, TRAIN, TRAIN_TINT, to_png
from t5x_scale.planner.amounts import count_text
from t5x_scale.planner.choices import Choice
from t5x_scale.planner.continuing import Continuation
from t5x_scale.planner.plans import Plan

# matplotlib is imported where something is drawn: it takes half a second.


def draw(made: Plan | Continuation, title: str, path: str | os.PathLike) -> None:
    """Writes a PNG file: of a plan its curve and the best sizes, of a continuation what replay costs and keeps.

    Raises:
      UserError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", colors=MUTED, labelsize=8)
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
    if isinstance(made, Plan):
        _draw_curve(left, made)
        _draw_opinions(right, made["parameters"], "best size for these FLOPs")
    else:
        _draw_replay(left, made)
        _draw_opinions(right, made["domain share"], "largest domain share, by others")
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=11)
    try:
        files.to_path(path).write_bytes(to_png(figure))
    except OSError as error:
        raise UserError(f"--report: cannot write {path}: {error.strerror or error}") from error


def _draw_curve(axes: Any, plan: Plan) -> None:
    curve = plan.curve
    tokens = np.array(curve["tokens"])
    axes.fill_between(tokens, curve["low"], curve["high"], color=TRAIN_TINT, alpha=0.5, linewidth=0)
    axes.plot(tokens, curve["loss"], color=TRAIN, linewidth=1.8)
    axes.annotate(curve["law"], (tokens[-1], curve["loss"][-1]), color=TRAIN, fontsize=8, ha="right", va="top")
    others = [opinion for opinion in plan["expected loss"].opinions if opinion.law != curve["law"]]
    bottom, top = min(curve["low"]), max(curve["high"])
    for color, opinion in zip(OTHERS, others, strict=False):
        if bottom * 0.8 < opinion.value < top * 1.2:
            axes.plot([tokens[-1]], [opinion.value], "o", color=color, markersize=5, label=opinion.law)
    axes.set_xscale("log")
    axes.set_xlabel("tokens", color=MUTED)
    axes.set_title(f"Expected loss, {curve['unit']}", loc="left", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=7.5, title="other laws, at the end", title_fontsize=7.5)


def _draw_replay(axes: Any, made: Continuation) -> None:
    shift = replay.SHIFTS[made.shift]
    shares = np.linspace(0, 0.5, 101)
    for color, label, values in (
        (TRAIN, "forgetting, old data", shift.forgetting(shares)),
        (OTHERS[0], "cost of replay, new data", shift.cost(shares)),
    ):
        axes.plot(shares, values, color=color, linewidth=1.8, label=label)
    axes.axvline(1 - made.share, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.set_xlabel("share of old data", color=MUTED)
    axes.set_title(f"Rise of the loss after a {made.shift} shift, nats", loc="left", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8)


def _draw_opinions(axes: Any, choice: Choice, title: str) -> None:
    """A dot a law; hollow where it extrapolates."""
    for place, opinion in enumerate(reversed(choice.opinions)):
        color = TRAIN if opinion.law == choice.law else MUTED
        axes.plot(
            [opinion.value], [place], "o", color=color, markersize=6,
            markerfacecolor="white" if opinion.outside else color,
        )  # fmt: skip
        text = count_text(opinion.value) if opinion.value > 1e3 else f"{opinion.value:.0%}"
        axes.annotate(text, (opinion.value, place), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=7)
    axes.set_yticks(range(len(choice.opinions)), [opinion.law for opinion in reversed(choice.opinions)])
    axes.set_ylim(-0.6, len(choice.opinions) - 0.2)
    if choice.opinions and min(opinion.value for opinion in choice.opinions) > 1e3:
        axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_title(f"{title} (hollow: extrapolated)", loc="left", fontsize=9, color=INK)
