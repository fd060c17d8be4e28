"""Pictures of a fit: what was observed against what is predicted, and along each quantity that was varied alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t5x_scale.core import files
from t5x_scale.laws import LAWS
from t5x_scale.monitor.figures import INK, MUTED, OTHERS, RULE, TRAIN
from t5x_scale.sweeps.fits import Fitted
from t5x_scale.sweeps.rows import Row
from t5x_scale.sweeps.tables import group_budgets

ISOFLOP = type(LAWS["chinchilla_isoflop"])

# Fewer points make no curve.
_LEAST_POINTS = 3
# Shapes and batches are rounded: what differs by less counts as the same.
_SAME = 0.15
_MOST_CURVES = 6


def draw(fitted: Fitted, path: str) -> None:
    """Writes a PNG."""
    # It takes half a second to import.
    from matplotlib.figure import Figure

    curves = {name: found for name in _varied(fitted) if (found := list(_groups(fitted, name)))}
    panels = 1 + len(curves)
    figure = Figure(figsize=(4.6 * panels, 4.0), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels))
    _draw_agreement(axes[0], fitted)
    for axis, (name, groups) in zip(axes[1:], curves.items(), strict=True):
        _draw_curves(axis, fitted, name, groups)
    figure.suptitle(f"{fitted.law.name}, {fitted.fit.rows} rows; {fitted.unit}", fontsize=10, color=INK)
    files.make_directory(files.to_path(path).parent)
    figure.savefig(path, dpi=130)


def draw_valleys(rows: Sequence[Row], path: str) -> None:
    """Writes a PNG of the loss over sizes at each budget, with the parabola through it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.0), layout="constrained")
    axis = figure.subplots()
    for colour, (budget, group) in zip((TRAIN, *OTHERS), group_budgets(ISOFLOP, rows), strict=False):
        params, loss = (np.array([rows[index][name] for index in group]) for name in ("params", "loss"))
        along = np.linspace(np.log(params.min()), np.log(params.max()), 80)
        axis.scatter(params, loss, s=16, color=colour)
        parabola = np.polyval(np.polyfit(np.log(params), loss, 2), along)
        axis.plot(np.exp(along), parabola, color=colour, label=f"{budget:.2g} FLOPs")
    axis.legend(fontsize=7, frameon=False)
    _label(axis, "params", "loss", "log")
    files.make_directory(files.to_path(path).parent)
    figure.savefig(path, dpi=130)


def _varied(fitted: Fitted) -> Iterator[str]:
    for name in fitted.law.quantities:
        if name in fitted.data and len(np.unique(fitted.data[name])) >= _LEAST_POINTS:
            yield name


def _groups(fitted: Fitted, name: str) -> Iterator[np.ndarray]:
    """Indices of rows that differ in one quantity and in nothing else, the largest groups first."""
    others = [other for other in fitted.law.quantities if other in fitted.data and other != name]
    keys = np.zeros((len(fitted.data[name]), 0))
    if others:
        columns = [np.log(np.maximum(fitted.data[other], 1e-9)) for other in others]
        keys = np.round(np.stack(columns, axis=1) / np.log1p(_SAME))
    unique, member = np.unique(keys, axis=0, return_inverse=True)
    groups = [np.flatnonzero(member.ravel() == number) for number in range(len(unique))]
    groups = [group for group in groups if len(np.unique(fitted.data[name][group])) >= _LEAST_POINTS]
    yield from sorted(groups, key=len, reverse=True)[:_MOST_CURVES]


def _draw_agreement(axis: Any, fitted: Fitted) -> None:
    observed = fitted.data[fitted.law.predicts]
    predicted = (1 + fitted.errors) * observed
    ends = [min(observed.min(), predicted.min()), max(observed.max(), predicted.max())]
    axis.plot(ends, ends, color=RULE, zorder=1)
    axis.scatter(observed, predicted, s=16, color=TRAIN, zorder=2)
    _label(axis, f"observed {fitted.law.predicts}", "by the law", "log")


def _draw_curves(axis: Any, fitted: Fitted, name: str, groups: list[np.ndarray]) -> None:
    x = fitted.data[name]
    is_wide = x.min() > 0 and x.max() / x.min() > 4
    for colour, group in zip((TRAIN, *OTHERS), groups, strict=False):
        axis.scatter(x[group], fitted.data[fitted.law.predicts][group], s=16, color=colour)
        ends = x[group].min(), x[group].max()
        along = np.geomspace(*ends, 80) if is_wide else np.linspace(*ends, 80)
        others = {
            other: float(np.median(fitted.data[other][group]))
            for other in fitted.law.quantities
            if other in fitted.data and other != name
        }
        label = ", ".join(f"{other} {value:.3g}" for other, value in others.items())
        axis.plot(along, fitted.law.predict(**{name: along}, **others), color=colour, label=label or None)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False)
    _label(axis, name, fitted.law.predicts, "log" if is_wide else "linear")


def _label(axis: Any, x: str, y: str, scale: str) -> None:
    axis.set(xscale=scale, xlabel=x, ylabel=y)
    if scale == "log" and y != "loss":
        axis.set_yscale("log")
    axis.grid(color=RULE, linewidth=0.6)
    axis.tick_params(labelsize=8, colors=MUTED)
    axis.spines[["top", "right"]].set_visible(False)
