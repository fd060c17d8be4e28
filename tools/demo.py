"""`make demo`: pretrain, kill, resume, compare, continue, evaluate, sample. Every line below is the command line's.

Leaves runs/demo/ with three runs: `reference` (never killed), `pretrain` (killed with SIGKILL in the middle and
resumed) and `continued` (from `pretrain`, on another mixture, from a re-warmed rate).
"""

from __future__ import annotations

import json
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

from t5x_scale.data.catalog import Catalog
from t5x_scale.data.vocabulary import load_vocabulary
from t5x_scale.monitor.metric_log import read_metrics

ROOT = pathlib.Path("runs/demo")
# Token shares of the pretraining mixture, as gin/runs/demo.gin sets them; validation is weighted in the same way.
SHARES = {"stdlib_code": 0.85, "stdlib_docs": 0.15}
PRETRAIN = ["train", "--gin_file=gin/runs/demo.gin"]
PROMPT = "def read_lines(path):\n"
REQUIRED_GAIN = 1.5  # nats below the unigram entropy


def command(arguments: list[str]) -> list[str]:
    """The words of one t5x_scale command."""
    return [sys.executable, "-m", "t5x_scale", *arguments]


def say(text: str) -> None:
    """A heading in the demo's output."""
    print(f"\n=== {text}", flush=True)


def run(arguments: list[str]) -> None:
    """Runs a command and stops the demo if it fails."""
    print("$ " + shlex.join(["t5x_scale", *arguments]), flush=True)
    subprocess.run(command(arguments), check=True)


def kill_in_the_middle(model_dir: pathlib.Path, after_step: int) -> None:
    """Starts the run and kills it with SIGKILL once its log has passed `after_step`."""
    print("$ " + shlex.join(["t5x_scale", *PRETRAIN]), flush=True)
    process = subprocess.Popen(command(PRETRAIN))
    while process.poll() is None:
        time.sleep(0.2)
        if last_step(model_dir) > after_step:
            process.send_signal(signal.SIGKILL)
            process.wait()
            print(f"killed (SIGKILL) after step {last_step(model_dir)}", flush=True)
            return
    sys.exit(f"the run ended by itself with code {process.returncode} before it could be killed")


def last_step(model_dir: pathlib.Path) -> int:
    """The newest step that the run has on record; 0 when there is none yet."""
    if not list(model_dir.glob("metrics/metrics.jsonl*")):
        return 0
    series = read_metrics(model_dir).series.get("train/loss")
    return 0 if series is None else int(series.steps[-1])


def evaluate(name: str) -> dict[str, float]:
    """Loss of a run's newest checkpoint on the validation splits and on their mixture, in nats a token."""
    output = ROOT / f"{name}.json"
    run(["eval", f"--gin_file={ROOT}/{name}/config.gin", f"--output={output}"])
    metrics = json.loads(output.read_text())["metrics"]
    losses = {task: metrics[f"eval/{task}/loss"] for task in SHARES}
    return losses | {"mixture": sum(share * losses[task] for task, share in SHARES.items())}


def unigram_entropies() -> dict[str, float]:
    """Entropy of the token frequencies of the validation splits and of their mixture, in nats.

    It is what the best model that knows no context can reach.
    """
    catalog = Catalog(str(ROOT / "token_stores"), load_vocabulary("stdlib_8k"), ("tasks.stdlib",), 0)
    counts = {task: catalog.open(task, "validation").unigram_counts() for task in SHARES}
    frequencies = {task: count / count.sum() for task, count in counts.items()}
    frequencies["mixture"] = sum(share * frequencies[task] for task, share in SHARES.items())
    return {name: float(-(p[p > 0] * np.log(p[p > 0])).sum()) for name, p in frequencies.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Validation figures in nats a token, one column a task and one for the mixture."""
    columns = (*SHARES, "mixture")
    lines = [f"{'validation, nats a token':28}" + "".join(f"{column:>14}" for column in columns)]
    lines += [f"{name:28}" + "".join(f"{row[column]:14.4f}" for column in columns) for name, row in rows.items()]
    return "\n".join(lines)


def main() -> None:
    started = time.monotonic()
    shutil.rmtree(ROOT, ignore_errors=True)
    say("1. Pretrain a PaLM of 2 million parameters on the standard library: this run is never disturbed")
    run([*PRETRAIN, f'--gin.MODEL_DIR="{ROOT}/reference"'])
    total = last_step(ROOT / "reference")
    say("2. The same run again, killed with SIGKILL in the middle")
    kill_in_the_middle(ROOT / "pretrain", after_step=total // 2)
    say("3. The same command again: it resumes")
    run(PRETRAIN)
    say("4. Are the two final states the same, bit for bit?")
    compared = subprocess.run([sys.executable, "tools/compare_checkpoints.py", ROOT / "reference", ROOT / "pretrain"])
    if compared.returncode:
        sys.exit("the resumed run differs from the undisturbed one")
    say("5. Continue from it on other data: mostly prose, the rate warmed up again")
    run(["train", "--gin_file=gin/runs/demo_continue.gin"])
    say("6. Evaluate both on both validation sets")
    rows = {"pretrained": evaluate("pretrain"), "continued, mostly on prose": evaluate("continued")}
    say("7. Let them write")
    for name in ("pretrain", "continued"):
        run(["infer", f"--gin_file={ROOT}/{name}/config.gin", f"--prompt={PROMPT}", "--prompt=Return the "])
    rows = {"unigram entropy": unigram_entropies(), **rows}
    say("What was learned")
    print(table(rows))
    gain = rows["unigram entropy"]["mixture"] - rows["pretrained"]["mixture"]
    print(f"\nPretraining ends {gain:.2f} nats below the unigram entropy of the same data (asked: {REQUIRED_GAIN}).")
    print("The killed run's final state equals the undisturbed one's, bit for bit.")
    print(f"Loss curves: {ROOT}/pretrain/report/report.html and {ROOT}/continued/report/report.html")
    print(f"The whole demonstration took {(time.monotonic() - started) / 60:.1f} minutes.")
    if gain < REQUIRED_GAIN:
        sys.exit(f"the validation loss is only {gain:.2f} nats below the unigram entropy; {REQUIRED_GAIN} were asked")


if __name__ == "__main__":
    main()
