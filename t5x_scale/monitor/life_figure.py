"""A picture of the life of a run: how far it was at any time, and what its processes were at."""

from __future__ import annotations

import itertools

from t5x_scale.monitor.figures import INK, MUTED, OTHERS, TRAIN, TRAIN_TINT, WARNING, new_figure, to_png
from t5x_scale.monitor.life import ProcessLife, RunLife
from t5x_scale.monitor.phases import CHECKPOINT, COMPILE, DATA_WAIT, EVALUATION, PROBE, RESTORE, REWIND, STARTUP, STEP

_COLORS = {
    STEP: TRAIN_TINT,
    STARTUP: OTHERS[3],
    RESTORE: OTHERS[2],
    COMPILE: OTHERS[0],
    DATA_WAIT: OTHERS[5],
    CHECKPOINT: OTHERS[1],
    EVALUATION: OTHERS[4],
    REWIND: WARNING,
    PROBE: MUTED,
}
_NAMES = {DATA_WAIT: "waiting for data", STEP: "steps"}
# What is narrower than this share of the picture is not seen, and of weeks there are many thousands.
_THINNEST = 1 / 2000
_UNITS = (
    (86400.0 * 2, 86400.0, "days"),
    (3600.0 * 2, 3600.0, "hours"),
    (120.0, 60.0, "minutes"),
    (0.0, 1.0, "seconds"),
)


def draw_life(life: RunLife) -> bytes:
    """The picture as PNG: steps done over time, a strip of phases below, and a mark where a process ended badly."""
    begin, end = life.lives[0].began, max(entry.ended for entry in life.lives)
    span = max(end - begin, 1e-3)
    unit, name = next((unit, name) for least, unit, name in _UNITS if span >= least)
    figure, axes = new_figure(10.0, 3.0)
    top = max((step for entry in life.lives for _, _, step in entry.marks), default=0) or 1
    strip = (-0.16 * top, 0.10 * top)
    used: set[str] = set()
    for entry in life.lives:
        offset = entry.began - begin
        moves = [(at, step) for at, phase, step in entry.marks if phase not in (STARTUP, RESTORE, REWIND)]
        axes.plot(
            [(offset + at) / unit for at, _ in moves],
            [step for _, step in moves],
            color=TRAIN,
            linewidth=1.6,
            solid_capstyle="round",
        )
        for phase, spans in _spans(entry, span * _THINNEST).items():
            places = [((offset + first) / unit, (last - first) / unit) for first, last in spans]
            axes.broken_barh(places, strip, facecolors=_COLORS.get(phase, MUTED), linewidth=0)
            used.add(phase)
        if not entry.reason.startswith(("done", "told to stop", "running")):
            axes.plot((entry.ended - begin) / unit, entry.marks[-1][2], "x", color=WARNING, markersize=6, zorder=4)
    axes.set_ylim(strip[0] * 1.3, top * 1.06)
    axes.set_xlim(0, span / unit * 1.01)
    axes.set_xlabel(name, color=MUTED)
    axes.set_title("Steps done, and what the first process was at", loc="left", color=INK, fontsize=10, pad=8)
    handles = [_patch(_COLORS[phase], _NAMES.get(phase, phase)) for phase in _COLORS if phase in used]
    axes.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, labelcolor=INK
    )
    return to_png(figure)


def _spans(entry: ProcessLife, thinnest: float) -> dict[str, list[tuple[float, float]]]:
    """{phase: intervals of seconds}; what is too thin to be seen is of what stood before it."""
    found: dict[str, list[tuple[float, float]]] = {}
    drawn = [(0.0, STARTUP, 0), *entry.marks]
    pieces: list[tuple[float, float, str]] = []
    for (first, phase, _), (last, _, _) in itertools.pairwise(drawn):
        if pieces and (last - first < thinnest or pieces[-1][2] == phase):
            pieces[-1] = (pieces[-1][0], last, pieces[-1][2])
        else:
            pieces.append((first, last, phase))
    for first, last, phase in pieces:
        found.setdefault(phase, []).append((first, last))
    return found


def _patch(color: str, label: str) -> object:
    from matplotlib.patches import Patch

    return Patch(facecolor=color, label=label)
