"""`make continue-demo`: the demonstration's model taken on in six ways, at equal steps, and compared.

Plain continuation, UL2R with spans behind the text or in place, depth up-scaling, block expansion, and the deeper
model from scratch: each is a file in gin/runs/continue_demo/. Asked of each, and of the model they begin with: the
causal loss on the validation splits, and the accuracy on the tokens of held-out spans, teacher-forced, given both sides
or the left one only. UL2R is held against the causal models given the left side, so that none is judged on a format it
never saw. It does not learn to infill in so few tokens; `make infill-demo` shows what that takes.
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

# Token shares of the mixture, as gin/runs/demo.gin sets them.
SHARES = {"stdlib_code": 0.85, "stdlib_docs": 0.15}
SEED = 1
LEFT, BOTH = "span_from_left", "span_from_both_sides"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Ways to take one model on, and where they are kept.

    Attributes:
      files: directory with a gin file for each way.
      root: directory of the runs, made anew.
      base: run that the ways begin with; `base_file` trains it where it is not there.
      arms: title of each way; `plain` is the one that the others are held against.
      infilling: those that learn to infill.
      in_place: of these, those trained on spans in place, which are asked for spans in that form.
      reshaped: those that begin with the base reshaped by their file.
    """

    files: str
    root: pathlib.Path
    base: pathlib.Path
    base_file: str
    base_title: str
    arms: dict[str, str]
    infilling: tuple[str, ...]
    in_place: tuple[str, ...]
    reshaped: tuple[str, ...] = ()

    @property
    def titles(self) -> dict[str, str]:
        """Of the base, called `before`, and of every arm."""
        return {"before": self.base_title, **self.arms}

    def run(self) -> str:
        """Trains and measures all of it, keeps the figures, and returns the table with its verdicts."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        if not (self.base / "config.gin").exists():
            run(["-m", "t5x_scale"], ["train", f"--gin_file={self.base_file}"])
        for arm in self.arms:
            self._train(arm)
        places = {"before": self.base, **{arm: self.root / arm for arm in self.arms}}
        rows = {name: self._measure(name, place) for name, place in places.items()}
        results = {self.titles[name]: summarize(rows[name], places[name]) for name in rows}
        gains = self._gains({name: {side: join(rows[name][side]) for side in (LEFT, BOTH)} for name in rows})
        text = table(results) + "\n\n" + "\n".join(self._verdict(*pair, gain) for pair, gain in gains.items())
        text += (
            "\n(95 % confidence, paired bootstrap over rows; loss in nats a token; tokens/s is the training's median)"
        )
        (self.root / "table.txt").write_text(text + "\n")
        compared = {f"{arm} against {name}": dataclasses.asdict(gain) for (arm, name), gain in gains.items()}
        figures = {"models": results, "infilling": compared}
        (self.root / "results.json").write_text(json.dumps(figures, indent=2) + "\n")
        return text

    def _train(self, arm: str) -> None:
        gin = f"--gin_file={self.files}/{arm}.gin"
        if arm in self.reshaped:
            run(["-m", "t5x_scale"], ["reshape", gin, str(self.base), str(self.root / f"{arm}_start")])
        run(["-m", "t5x_scale"], ["train", gin])

    def _measure(self, name: str, model_dir: pathlib.Path) -> dict[str, dict[str, RowSums]]:
        """Sums of every validation row, `{objective: {task: sums}}`."""
        output = self.root / f"{name}.json"
        spans = "held_out_spans_in_place" if name in self.in_place else "held_out_spans"
        files = [f"--gin_file={model_dir}/config.gin", f"--gin_file=gin/objectives/{spans}.gin"]
        # The spans are drawn from the seed of the data, so all are asked with one.
        run(["tools/span_accuracy.py"], ["measure", *files, f"--gin.SEED={SEED}", f"--output={output}"])
        return by_objective(json.loads(output.read_text())["rows"])

    def _gains(self, rows: dict[str, dict[str, RowSums]]) -> dict[tuple[str, str], Interval]:
        """What each way of infilling gains from both sides over the causal models from the left."""
        pairs = [(arm, name) for arm in self.infilling for name in ("before", "plain")]
        return {(arm, name): accuracy_gain(rows[arm][BOTH], rows[name][LEFT]) for arm, name in pairs}

    def _verdict(self, arm: str, name: str, gain: Interval) -> str:
        return f"{self.titles[arm]} given both sides is {gain.side} {self.titles[name]} given the left: {gain.render()}"


CONTINUE_DEMO = Comparison(
    files="gin/runs/continue_demo",
    root=pathlib.Path("runs/continue_demo"),
    base=pathlib.Path("runs/demo/pretrain"),
    base_file="gin/runs/demo.gin",
    base_title="the demonstration's model, before",
    arms={
        "plain": "(a) plain continuation",
        "ul2r": "(b) UL2R",
        "deeper": "(c) depth up-scaling, 6 layers",
        "expanded": "(d) block expansion, 6 layers",
        "scratch": "(e) 6 layers from scratch",
        "in_place": "(f) UL2R, spans in place",
    },
    infilling=("ul2r", "in_place"),
    in_place=("in_place",),
    reshaped=("deeper", "expanded"),
)


def run(program: list[str], arguments: list[str]) -> None:
    """Runs a command and stops the demonstration if it fails."""
    shown = ["t5x_scale", *arguments] if program[0] == "-m" else ["python", *program, *arguments]
    print("$ " + shlex.join(shown), flush=True)
    subprocess.run([sys.executable, *program, *arguments], check=True)


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


def main(comparison: Comparison) -> None:
    """Runs a comparison and prints what comes of it."""
    started = time.monotonic()
    print(f"\n{comparison.run()}\n\nThe whole comparison took {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    main(CONTINUE_DEMO)
    print("More tokens, and an optimiser that makes more of them, teach UL2R to infill: make infill-demo.")
