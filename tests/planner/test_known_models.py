"""The shape of a model that is continued is read from whatever says it, or refused in one line."""

import json
import pathlib
import re

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.planner.known_models import read_model

MODELS = sorted(pathlib.Path("gin/models").glob("*/*.gin"))
# The first lines of these files say how many parameters there are.
COUNTED = {
    str(path): int(found[1].replace(",", ""))
    for path in MODELS
    if (found := re.search(r": (\d[\d,]{6,}) parameters", path.read_text().split("\nfrom", 1)[0]))
}
CONFIG = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
MIXTRAL = {**CONFIG, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
GEMMA = {
    "model_type": "gemma", "num_hidden_layers": 18, "hidden_size": 2048, "intermediate_size": 16384,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000,
}  # fmt: skip


@pytest.mark.parametrize("path", COUNTED)
def test_every_gin_file_has_the_parameters_that_it_says(path):
    assert read_model(path).shape.count.total == COUNTED[path]


def test_there_are_such_files_of_many_families():
    assert len(COUNTED) >= 10
    assert {"gin/models/qwen2/0.5b.gin", "gin/models/mixtral/8x7b.gin"} <= COUNTED.keys()


def write(tmp_path, record):
    (tmp_path / "config.json").write_text(json.dumps(record))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("record", "params"),
    [
        (CONFIG, 7_241_732_096),
        ({**CONFIG, "tie_word_embeddings": True}, 7_241_732_096 - 32000 * 4096),
        (MIXTRAL, 46_702_792_704),
        (GEMMA, 2_506_172_416),
    ],
    ids=["mistral", "tied", "mixtral", "gemma"],
)
def test_published_configurations(tmp_path, record, params):
    assert read_model(write(tmp_path, record)).shape.count.total == params


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ([1], "expected an object"),
        ({**CONFIG, "model_type": "cohere"}, "'cohere'; known are llama"),
        ({**CONFIG, "num_attention_heads": 0}, "num_heads must be a positive integer"),
        ({**CONFIG, "num_attention_heads": None}, "lacks"),
        ({**CONFIG, "num_local_experts": 8}, "num_experts_per_tok"),
        ({**CONFIG, "intermediate_size": -5}, "mlp_dim must be a positive integer"),
        ({**CONFIG, "hidden_size": float("inf")}, "lacks"),
    ],
)
def test_configurations_of_no_model(tmp_path, record, part):
    with pytest.raises(UserError, match=part) as caught:
        read_model(write(tmp_path, record))
    assert "\n" not in str(caught.value)


def test_a_file_that_includes_what_there_is_not(tmp_path):
    (tmp_path / "model.gin").write_text('include "gin/models/none.gin"\n')
    with pytest.raises(UserError, match=r"includes gin/models/none\.gin, which is not there"):
        read_model(str(tmp_path))
