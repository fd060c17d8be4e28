"""What a conversion says when it is done."""

from __future__ import annotations

from t5x_scale.conversion.sources import TOKENIZER
from t5x_scale.core.files import Path
from t5x_scale.core.leaves import render_origins
from t5x_scale.data.vocabulary import has_tokenizer
from t5x_scale.models.weights import Weights
from t5x_scale.surgery.depth import count_layers, find_new_layers

_EXPANSION = "block_expansion"
# The run file that goes with a surgery, where one is shipped.
RUNS = {
    "DepthUpscale": "depth_upscale",
    "ExpandBlocks": _EXPANSION,
    "Upcycle": "upcycle",
    "ExtendVocabulary": "ul2r",
    "ScaleRope": "extend_context",
}


def say_origins(weights: Weights) -> None:
    """Prints the origin of every tensor."""
    print(render_origins(weights.leaves, weights.dropped))


def how_to_go_on(output: Path, weights: Weights) -> str:
    """The words with which the result is trained and asked."""
    lines = [f"written to {output}"]
    if weights.architecture is None:
        return "\n".join([*lines, "(no model.gin: its architecture is not one that a gin file of ours is written for)"])
    model = f"--gin_file={output}/model.gin"
    vocabulary = [f'--gin.VOCABULARY=\\"{output}/{TOKENIZER}\\"'] if has_tokenizer(weights.tokenizer) else []
    run = _find_run(weights)
    # The recipe of block expansion brings its optimiser, for copies behind every fourth layer.
    optimizer = [] if run == _EXPANSION else ["--gin_file=gin/optim/adamw.gin"]
    start = f'--gin.INITIAL_CHECKPOINT_PATH=\\"{output}\\"'
    if run == _EXPANSION:
        start += f" --gin.TRAIN_EVERY={_new_layers(weights)[0] + 1}"
    if run == "ul2r" and not weights.moments:
        start += ' --gin.INITIAL_OPTIMIZER=\\"reset\\"'
    train = [
        model,
        *optimizer,
        f"--gin_file=gin/runs/{run}.gin",
        "--gin_file=gin/hardware/cpu_1.gin",
        start,
        *vocabulary,
    ]
    ask = [model, "--gin_file=gin/runs/ask.gin", "--gin_file=gin/hardware/cpu_1.gin", f'--gin.MODEL_DIR=\\"{output}\\"']
    lines += [
        "go on with it, on your machine and with your MODEL_DIR, MIXTURE_OR_TASK_NAME, TRAIN_STEPS and BATCH_SIZE:"
    ]
    lines += ["  t5x_scale train " + " \\\n    ".join(train)]
    if vocabulary:
        lines += [
            "or ask it:",
            "  t5x_scale infer " + " \\\n    ".join([*ask, *vocabulary, '--prompt="Once upon a time"']),
        ]
    return "\n".join(lines)


def _find_run(weights: Weights) -> str:
    """The run file of the last surgery that has one. That of block expansion is for layers that are still in place."""
    surgeries = [step.get("surgery") for step in weights.recipe]
    runs = [RUNS[name] for name in surgeries if name in RUNS]
    if not _new_layers(weights):
        runs = [run for run in runs if run != _EXPANSION]
    return runs[-1] if runs else "continue"


def _new_layers(weights: Weights) -> tuple[int, ...]:
    return find_new_layers(weights.recipe, count_layers(weights))


def count_tokens(weights: Weights) -> int | None:
    """Tokens that runs of ours trained the model on, as far as they are on record; None if that is not far."""
    trained = [step["trained"].get("tokens") for step in weights.recipe if "trained" in step]
    return None if not trained or None in trained else sum(trained)
