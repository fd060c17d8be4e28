"""The words that a conversion prints are read by the command line as they stand, with what is the user's added."""

import re
import shlex

import pytest
import small_tokenizers
from toy import FAMILIES, make_weights

from t5x_scale.commands import COMMANDS
from t5x_scale.config.load import Setting, load
from t5x_scale.conversion.output import write_checkpoint
from t5x_scale.conversion.report import RUNS, count_tokens, how_to_go_on
from t5x_scale.conversion.starting import apply_transforms
from t5x_scale.surgery import depth, width

YOURS = {"MODEL_DIR": "'run'", "MIXTURE_OR_TASK_NAME": "'any'", "TRAIN_STEPS": "6000", "BATCH_SIZE": "8"}


@pytest.mark.parametrize("surgery", [None, *RUNS])
def test_the_words_for_training_and_asking(tmp_path, surgery):
    steps = () if surgery is None else ({"surgery": surgery, "every": 1, "num_new": None},)
    weights = make_weights(FAMILIES["llama"]).replace(
        tokenizer={"tokenizer.model": small_tokenizers.sentencepiece_model()}, recipe=steps
    )
    text = how_to_go_on(write_checkpoint(tmp_path / "new", weights, source="a test"), weights)
    commands = [line for line in text.replace("\\\n", " ").splitlines() if line.strip().startswith("t5x_scale")]
    assert [shlex.split(line)[1] for line in commands] == ["train", "infer"]
    for line in commands:
        _, command, *words = shlex.split(line)
        files = [word.removeprefix("--gin_file=") for word in words if word.startswith("--gin_file=")]
        given = dict(word.removeprefix("--gin.").split("=", 1) for word in words if word.startswith("--gin."))
        settings = given if command == "infer" else YOURS | given
        found = load(command, COMMANDS, files, [Setting(name, value, name) for name, value in settings.items()])
        assert found.reached[command].calls
    assert f"gin/runs/{RUNS.get(surgery, 'continue')}.gin" in text


@pytest.mark.parametrize(
    ("surgeries", "run", "train_every"),
    [
        ([depth.ExpandBlocks(every=2)], "block_expansion", "3"),
        ([depth.ExpandBlocks(num_new=1), width.WidenMlp(mlp_dim=20)], "block_expansion", "5"),
        # The new layers are somewhere else by then.
        ([depth.ExpandBlocks(every=2), depth.Stack(times=2)], "continue", None),
        ([depth.DepthUpscale(num_removed=1), depth.ExpandBlocks(every=3)], "block_expansion", "4"),
    ],
)
def test_what_is_trained_of_an_expanded_model_are_its_new_layers(tmp_path, surgeries, run, train_every):
    weights = apply_transforms(make_weights(FAMILIES["llama"]), surgeries)
    text = how_to_go_on(tmp_path, weights)
    assert f"gin/runs/{run}.gin" in text
    said = re.search(r"--gin.TRAIN_EVERY=(\d+)", text)
    assert (said and said[1]) == train_every


def test_tokens_of_a_history():
    weights = make_weights(FAMILIES["llama"])
    assert count_tokens(weights) is None
    trained = weights.replace(recipe=({"trained": {"tokens": 5}}, {"surgery": "Stack"}, {"trained": {"tokens": 7}}))
    assert count_tokens(trained) == 12
    assert count_tokens(weights.replace(recipe=({"trained": {"steps": 1}},))) is None
