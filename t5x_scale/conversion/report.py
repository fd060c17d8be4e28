"""What a conversion says when it is done."""

from __future__ import annotations

from t5x_scale.conversion.sources import TOKENIZER
from t5x_scale.core.files import Path
from t5x_scale.core.leaves import render_origins
from t5x_scale.data.vocabulary import has_tokenizer
from t5x_scale.models.weights import Weights


def say_origins(weights: Weights) -> None:
    """Prints the origin of every tensor."""
    print(render_origins(weights.leaves, weights.dropped))


def how_to_go_on(output: Path, weights: Weights) -> str:
    """The words with which the result is trained."""
    lines = [f"written to {output}"]
    if weights.architecture is None:
        lines += ["(no model.gin: its architecture is not one that a gin file of ours is written for)"]
        return "\n".join(lines)
    words = [f"--gin_file={output}/model.gin", "--gin_file=gin/optim/adamw.gin", "--gin_file=gin/runs/continue.gin"]
    words += [f'--gin.INITIAL_CHECKPOINT_PATH=\\"{output}\\"']
    if has_tokenizer(weights.tokenizer):
        words += [f'--gin.VOCABULARY=\\"{output}/{TOKENIZER}\\"']
    return "\n".join([*lines, "go on with it:", "  t5x_scale train " + " \\\n    ".join([*words, "…"])])
