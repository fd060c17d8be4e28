"""`make demo`: pretrain, kill, resume, compare, continue, evaluate, sample. Every line below is the command line's.

Leaves runs/demo/ with three runs: `reference` (never killed), `pretrain` (killed with SIGKILL in the middle and
resumed) and `continued` (from `pretrain`, on another mixture, from a re-warmed rate).
"""

from __future__ import annotations

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from t5x_scale.data.catalog import Catalog
from t5x_scale.data.vocabulary import load_vocabulary
from t5x_scale.monitor.metric_log import read_metrics

ROOT = pathlib.Path("runs/demo")
TASKS = ("stdlib_code", "stdlib_docs")
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
    print("$ t5x_scale " + " ".join(arguments), flush=True)
    subprocess.run(command(arguments), check=True)


def kill_in_the_middle(model_dir: pathlib.Path, after_step: int) -> None:
    """Starts the run and kills it with SIGKILL once its log has passed `after_step`."""
    print("$ t5x_scale " + " ".join(PRETRAIN), flush=True)
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
    return max(read_metrics(model_dir).series.get("train/loss", {0: 0.0}))


def evaluate(name: str) -> dict[str, float]:
    """Loss of a run's newest checkpoint on every validation split, in nats a token."""
    output = ROOT / f"{name}.json"
    run(["eval", f"--gin_file={ROOT}/{name}/config.gin", f"--output={output}"])
    metrics = json.loads(output.read_text())["metrics"]
    return {task: metrics[f"eval/{task}/loss"] for task in TASKS}


def unigram_entropies() -> dict[str, float]:
    """Entropy of the token frequencies of every validation split, in nats: what a model without context can reach."""
    catalog = Catalog(str(ROOT / "token_stores"), load_vocabulary("stdlib_8k"), ("tasks.stdlib",), 0)
    return {task: catalog.open(task, "validation").unigram_entropy() for task in TASKS}


def table(entropies: dict[str, float], losses: dict[str, dict[str, float]]) -> str:
    """Rows of validation loss in nats a token, one column a task and their mean."""
    rows = {"unigram entropy": entropies, **losses}
    lines = [f"{'validation, nats a token':28}" + "".join(f"{task:>14}" for task in (*TASKS, "mean"))]
    for name, values in rows.items():
        cells = [values[task] for task in TASKS]
        lines.append(f"{name:28}" + "".join(f"{cell:14.4f}" for cell in (*cells, sum(cells) / len(cells))))
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
    losses = {"pretrained": evaluate("pretrain"), "continued on prose": evaluate("continued")}
    say("7. Let them write")
    for name in ("pretrain", "continued"):
        run(["infer", f"--gin_file={ROOT}/{name}/config.gin", f"--prompt={PROMPT}", "--prompt=Return the "])
    entropies = unigram_entropies()
    say("What was learned")
    print(table(entropies, losses))
    gain = sum(entropies.values()) / 2 - sum(losses["pretrained"].values()) / 2
    print(f"\nPretraining ends {gain:.2f} nats below the unigram entropy of the same data (asked: {REQUIRED_GAIN}).")
    print("The killed run's final state equals the undisturbed one's, bit for bit.")
    print(f"Loss curves: {ROOT}/pretrain/report/report.html and {ROOT}/continued/report/report.html")
    print(f"The whole demonstration took {(time.monotonic() - started) / 60:.1f} minutes.")
    if gain < REQUIRED_GAIN:
        sys.exit(f"the validation loss is only {gain:.2f} nats below the unigram entropy; {REQUIRED_GAIN} were asked")


if __name__ == "__main__":
    main()
