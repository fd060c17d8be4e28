"""`make continue-demo`: the demonstration's model taken on in six ways, at equal steps, and compared.

Plain continuation, UL2R with spans behind the text or in place, depth up-scaling, block expansion, and the deeper
model from scratch: each is a file in gin/runs/continue_demo/. Asked of each, and of the model they begin with: the
causal loss on the validation splits, and the accuracy on the tokens of held-out spans, teacher-forced, given both sides
or the left one only. UL2R is held against the causal models given the left side, so that none is judged on a format it
never saw.
Leaves runs/continue_demo/ with the runs, table.txt and results.json. Every line it prints with $ is the command line's.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from typing import Any

from t5x_scale.metrics import Interval, RowSums, accuracy_gain, by_objective, mixture_loss
from t5x_scale.monitor.metric_log import read_metrics

BASE, ROOT, FILES = pathlib.Path("runs/demo/pretrain"), pathlib.Path("runs/continue_demo"), "gin/runs/continue_demo"
# Token shares of the mixture, as gin/runs/demo.gin sets them.
SHARES = {"stdlib_code": 0.85, "stdlib_docs": 0.15}
ARMS = {
    "plain": "(a) plain continuation",
    "ul2r": "(b) UL2R",
    "deeper": "(c) depth up-scaling, 6 layers",
    "expanded": "(d) block expansion, 6 layers",
    "scratch": "(e) 6 layers from scratch",
    "in_place": "(f) UL2R, spans in place",
}
# Each is asked for spans from both sides in the form that it was trained on, if it was trained on any.
SPANS = {"in_place": "gin/objectives/held_out_spans_in_place.gin"}
RESHAPED = ("deeper", "expanded")
SEED = 1
LEFT, BOTH = "span_from_left", "span_from_both_sides"


def run(program: list[str], arguments: list[str]) -> None:
    """Runs a command and stops the demonstration if it fails."""
    shown = ["t5x_scale", *arguments] if program[0] == "-m" else ["python", *program, *arguments]
    print("$ " + shlex.join(shown), flush=True)
    subprocess.run([sys.executable, *program, *arguments], check=True)


def train(arm: str) -> None:
    """Reshapes the base where the arm asks for it, and trains."""
    gin = f"--gin_file={FILES}/{arm}.gin"
    if arm in RESHAPED:
        run(["-m", "t5x_scale"], ["reshape", gin, str(BASE), str(ROOT / f"{arm}_start")])
    run(["-m", "t5x_scale"], ["train", gin])


def measure(name: str, model_dir: pathlib.Path) -> dict[str, dict[str, RowSums]]:
    """Sums of every validation row, `{objective: {task: sums}}`."""
    output = ROOT / f"{name}.json"
    spans = SPANS.get(name, "gin/objectives/held_out_spans.gin")
    files = [f"--gin_file={model_dir}/config.gin", f"--gin_file={spans}"]
    # The spans are drawn from the seed of the data, so all are asked with one.
    run(["tools/span_accuracy.py"], ["measure", *files, f"--gin.SEED={SEED}", f"--output={output}"])
    return by_objective(json.loads(output.read_text())["rows"])


def summarize(rows: dict[str, dict[str, RowSums]], model_dir: pathlib.Path) -> dict[str, Any]:
    """The figures of one line of the table."""
    causal = rows["causal_lm"]
    speed = read_metrics(model_dir).series["throughput/tokens_per_second"].values
    return {
        "loss": mixture_loss(causal, SHARES),
        **{f"loss_{task}": causal[task].loss for task in SHARES},
        **{name: join(rows[name]).accuracy for name in (LEFT, BOTH)},
        "tokens_per_second": sorted(speed)[len(speed) // 2],
    }


def join(tasks: dict[str, RowSums]) -> RowSums:
    """The rows of all tasks."""
    return RowSums.join([tasks[task] for task in SHARES])


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line a model."""
    columns = {"loss": "causal loss", "loss_stdlib_code": "of code", "loss_stdlib_docs": "of prose"}
    columns |= {LEFT: "spans, left", BOTH: "spans, both", "tokens_per_second": "tokens/s"}
    lines = [f"{'':34}" + "".join(f"{title:>14}" for title in columns.values())]
    for name, row in results.items():
        cells = [f"{row[key]:14.0f}" if key == "tokens_per_second" else f"{row[key]:14.4f}" for key in columns]
        lines.append(f"{name:34}" + "".join(cells))
    return "\n".join(lines)


def verdict(gain: Interval, arm: str, name: str) -> str:
    """One sentence on a form of UL2R against a causal model."""
    return f"{ARMS[arm]} given both sides is {gain.side} {name} given the left: {gain.render()}"


def main() -> None:
    started = time.monotonic()
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    if not (BASE / "config.gin").exists():
        run(["-m", "t5x_scale"], ["train", "--gin_file=gin/runs/demo.gin"])
    for arm in ARMS:
        train(arm)
    places = {"before": BASE, **{arm: ROOT / arm for arm in ARMS}}
    rows = {name: measure(name, place) for name, place in places.items()}
    titles = {"before": "the demonstration's model, before", **ARMS}
    results = {titles[name]: summarize(rows[name], places[name]) for name in rows}
    text = table(results)
    pairs = [(arm, name) for arm in ("ul2r", "in_place") for name in ("before", "plain")]
    gains = {pair: accuracy_gain(join(rows[pair[0]][BOTH]), join(rows[pair[1]][LEFT])) for pair in pairs}
    text += "\n\n" + "\n".join(verdict(gain, arm, titles[name]) for (arm, name), gain in gains.items())
    text += "\n(95 % confidence, paired bootstrap over rows; loss in nats a token; tokens/s is the training's median)\n"
    (ROOT / "table.txt").write_text(text)
    compared = {f"{arm} against {name}": dataclasses.asdict(gain) for (arm, name), gain in gains.items()}
    figures = {"models": results, "infilling": compared}
    (ROOT / "results.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\n{text}\nThe whole comparison took {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
