"""The figures of a report, drawn with matplotlib: quiet colours, labels at the curves, nothing that is not data."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from t5x_scale.monitor.metric_log import Series
from t5x_scale.monitor.plan_band import PlanCourse

# matplotlib is imported inside the functions that draw: only a report needs it, and it takes half a second.

MAX_POINTS = 2000
INK, MUTED, RULE = "#1f2a37", "#7b8794", "#e6e9ed"
TRAIN, TRAIN_TINT = "#2f5d8a", "#b4c8dc"
OTHERS = ("#b8623b", "#4f8a68", "#80608f", "#a5822a", "#3b8288", "#a34f5f")
WARNING = "#b3413a"
_DECADES_FOR_LOG = 3.0


def downsample(
    steps: np.ndarray, values: np.ndarray, limit: int = MAX_POINTS, log: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points that keep the envelope: the lowest and the highest of each stretch, in their order.

    A spike of a single step stays visible at any length, which the mean of a stretch would hide. With `log` the
    stretches grow in proportion to their place, for an axis with logarithmic steps.
    """
    count = len(steps)
    if count <= limit:
        return steps, values
    edges = np.geomspace(1, count, limit // 2) if log else np.linspace(0, count, limit // 2 + 1)
    edges = np.unique(np.concatenate([[0], edges.astype(np.int64)]))
    keep: list[int] = []
    for low, high in itertools.pairwise(edges):
        part = values[low:high]
        extremes = {0} if np.all(np.isnan(part)) else {int(np.nanargmin(part)), int(np.nanargmax(part))}
        keep += sorted(int(low) + offset for offset in extremes)
    return steps[keep], values[keep]


def smoothing_half(count: int) -> int:
    """Points on each side that `smooth` averages over for a curve of `count` points; 0 leaves a short one as it is."""
    return count // 40 if count >= 120 else 0


def smooth(values: np.ndarray, half: int) -> np.ndarray:
    """Moving mean over `half` points on each side that skips what is not finite.

    Near the start it looks at most an eighth of its place to each side, so that the first fall is not flattened; at the
    end it has only the left side, so its last value is the mean of the last `half + 1` points.
    """
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    place = np.arange(len(values))
    reach = np.minimum(half, place // 8)
    low, high = place - reach, np.minimum(place + reach + 1, len(values))
    with np.errstate(invalid="ignore"):
        return (sums[high] - sums[low]) / (counts[high] - counts[low])


def draw_loss(
    train: Series | None,
    others: Mapping[str, Series],
    restarts: Sequence[int],
    rewinds: Sequence[int],
    plan: PlanCourse | None = None,
) -> bytes:
    """The loss figure as PNG: training loss with its moving mean, validation losses, and marks where the run restarted.

    Args:
      train: training loss by step, or None.
      others: label -> validation loss by step.
      restarts: steps at which the run was taken up again.
      rewinds: steps that the run went back to.
      plan: the band in which the training loss was expected.
    """
    figure, axes = new_figure(10.0, 5.6)
    log = _scale_steps(axes, [series.steps for series in [train, *others.values()] if series is not None])
    ends: list[tuple[str, float, str]] = []
    high: list[float] = []
    if train is not None:
        line, top = _plot_smoothed(axes, train, width=2.0, log=log)
        ends += _end("training", line, TRAIN)
        high.append(top)
        _mark_not_finite(axes, train)
    for position, (label, series) in enumerate(others.items()):
        color = OTHERS[position % len(OTHERS)]
        values = np.where(np.isfinite(series.values), series.values, np.nan)
        _plot(axes, *downsample(series.steps, values, log=log), color, width=1.6, dots=len(values) <= 60)
        ends += _end(label, values, color)
        high.append(_robust_maximum(values, values))
        _mark_not_finite(axes, series)
    top = max((value for value in high if np.isfinite(value)), default=None)
    bottom = axes.dataLim.y0
    if top is not None and top > bottom:
        axes.set_ylim(bottom - 0.04 * (top - bottom), top + 0.04 * (top - bottom))
    if plan is not None:
        # Behind the limits of the axis: what was expected must not push what happened together.
        axes.fill_between(plan.steps, plan.low, plan.high, color=TRAIN_TINT, alpha=0.3, linewidth=0, zorder=0)
        axes.plot(plan.steps, plan.expected, color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)
        ends += _end("plan", plan.expected, MUTED)
    for step, word in [*((s, "restart") for s in restarts), *((s, "rewind") for s in rewinds)]:
        axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)), zorder=1)
        axes.annotate(
            word,
            (step, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -3),
            textcoords="offset points",
            color=MUTED,
            fontsize=7.5,
            va="top",
        )
    axes.set_xlabel("step", color=MUTED)
    axes.set_title("Loss, nats per token", loc="left", color=INK, fontsize=12, pad=12)
    _label_ends(figure, axes, ends)
    return to_png(figure)


def draw_panel(title: str, series: Series, *, percent: bool = False, noisy: bool = True) -> bytes:
    """A small figure of one metric as PNG; `noisy` adds the moving mean, `percent` is for shares between 0 and 1."""
    from matplotlib.ticker import PercentFormatter

    figure, axes = new_figure(4.9, 2.7)
    log = _scale_steps(axes, [series.steps])
    _, top = _plot_smoothed(axes, series, width=1.5, log=log, half=None if noisy else 0)
    bottom = axes.dataLim.y0
    if np.isfinite(top) and top > bottom:
        axes.set_ylim(bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom))
    _mark_not_finite(axes, series)
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_title(title, loc="left", color=INK, fontsize=10, pad=8)
    return to_png(figure)


def new_figure(width: float, height: float):
    """A quiet figure of so many inches, and its axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter

    # A Figure of its own, without pyplot: no global state and no window system.
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, labelsize=8.5)
    axes.tick_params(axis="x", length=3, color=MUTED)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_powerlimits((-3, 5))
    axes.yaxis.set_major_formatter(formatter)
    axes.yaxis.get_offset_text().set(color=MUTED, size=8)
    return figure, axes


def _plot(axes, steps: np.ndarray, values: np.ndarray, color: str, *, width: float, dots: bool = False) -> None:
    marker = "o" if dots or np.isfinite(values).sum() == 1 else None
    axes.plot(
        steps,
        values,
        color=color,
        linewidth=width,
        marker=marker,
        markersize=3.5,
        zorder=3,
        solid_capstyle="round",
        solid_joinstyle="round",
    )


def _plot_smoothed(
    axes, series: Series, *, width: float, log: bool, half: int | None = None
) -> tuple[np.ndarray, float]:
    """Draws a curve as a pale line under its moving mean; returns the mean and where the axis should end."""
    values = np.where(np.isfinite(series.values), series.values, np.nan)
    half = smoothing_half(len(values)) if half is None else half
    line = smooth(values, half)
    if half:
        axes.plot(*downsample(series.steps, values, log=log), color=TRAIN_TINT, linewidth=0.8, zorder=2)
    _plot(axes, *downsample(series.steps, line, log=log), TRAIN, width=width)
    return line, _robust_maximum(line, values)


def _scale_steps(axes, all_steps: Sequence[np.ndarray]) -> bool:
    """Linear steps, except where they span more than three decades: the first fall would be a vertical line.

    Returns whether the axis is logarithmic.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    every = np.concatenate([*all_steps, np.zeros(0, np.int64)])
    if not len(every):
        return False
    low, high = int(every.min()), int(every.max())
    first = int(every[every > 0].min()) if high > 0 else 0
    if first and np.log10(high / first) > _DECADES_FOR_LOG:
        formatter = axes.xaxis.get_major_formatter()
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=9))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(formatter)
        axes.set_xlim(first, high * (high / first) ** 0.008)
        return True
    # A little room at the right, so that the last dot is whole.
    axes.set_xlim(low - (high == low), high + max(0.008 * (high - low), float(high == low)))
    return False


def _robust_maximum(line: np.ndarray, values: np.ndarray) -> float:
    """Where the axis ends: all of the line, and the raw values but for the highest half percent."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.nan
    if len(finite) < 50:
        return float(finite.max())
    candidates = [np.percentile(finite, 99.5), finite[0]]
    if line is not values:
        candidates.append(np.nanmax(line))
    return float(max(candidates))


def _mark_not_finite(axes, series: Series) -> None:
    bad, _ = downsample(series.steps[~np.isfinite(series.values)], series.values[~np.isfinite(series.values)])
    if len(bad):
        axes.plot(
            bad,
            np.full(len(bad), 0.0),
            "|",
            color=WARNING,
            markersize=9,
            zorder=4,
            clip_on=False,
            transform=axes.get_xaxis_transform(),
        )
        axes.annotate(
            "not finite",
            (bad[-1], 0.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(4, 4),
            textcoords="offset points",
            color=WARNING,
            fontsize=7.5,
        )


def _end(label: str, values: np.ndarray, color: str) -> list[tuple[str, float, str]]:
    finite = values[np.isfinite(values)]
    return [(f"{label}  {finite[-1]:.3f}", float(finite[-1]), color)] if len(finite) else []


def _label_ends(figure, axes, ends: list[tuple[str, float, str]]) -> None:
    """Names the curves at their right ends, moved apart where they would overlap."""
    if not ends:
        return
    low, high = axes.get_ylim()
    step = 0.045 * (high - low)
    places: list[float] = []
    for _, value, _ in sorted(ends, key=lambda end: end[1]):
        places.append(max(min(max(value, low), high), places[-1] + step if places else low))
    shift = max(places[-1] - high, 0.0)
    for (text, _, color), place in zip(sorted(ends, key=lambda end: end[1]), places, strict=True):
        axes.annotate(
            text,
            (1.0, place - shift),
            xycoords=("axes fraction", "data"),
            xytext=(7, 0),
            textcoords="offset points",
            color=color,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def to_png(figure) -> bytes:
    """The bytes of a figure."""
    buffer = io.BytesIO()
    # No date and no version: the same record gives the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
