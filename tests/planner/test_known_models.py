"""The shape of a model that is continued is read from whatever says it, or refused in one line."""

import errno
import json
import math
import os
import pathlib
import re

import pytest

from t5x_scale.core import patience
from t5x_scale.core.errors import UnavailableError, UserError
from t5x_scale.interop.families import FAMILIES
from t5x_scale.models.assembly import shapes_of
from t5x_scale.planner.known_models import read_model

MODELS = sorted(pathlib.Path("gin/models").glob("*/*.gin"))
# The first lines of these files say how many parameters there are.
COUNTED = {
    str(path): int(found[1].replace(",", ""))
    for path in MODELS
    if (found := re.search(r": (\d[\d,]{6,}) parameters", path.read_text().split("\nfrom", 1)[0]))
}
CONFIG = {
    "model_type": "mistral",
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


PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "num_hidden_layers": 24, "hidden_size": 1024,
    "intermediate_size": 4096, "num_attention_heads": 16, "vocab_size": 50304, "hidden_act": "gelu",
}  # fmt: skip
GPT2 = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12,
    "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip
COMMAND_R = {
    "architectures": ["CohereForCausalLM"], "model_type": "cohere", "num_hidden_layers": 40, "hidden_size": 8192,
    "intermediate_size": 22528, "num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 256000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("record", "params"),
    [
        (CONFIG, 7_241_732_096),
        ({**CONFIG, "tie_word_embeddings": True}, 7_241_732_096 - 32000 * 4096),
        (MIXTRAL, 46_702_792_704),
        (GEMMA, 2_506_172_416),
        # As published, tables and biases counted.
        (PYTHIA, 405_334_016),
        (GPT2, 124_439_808),
        (COMMAND_R, 34_980_831_232),
    ],
    ids=["mistral", "tied", "mixtral", "gemma", "pythia-410m", "gpt2", "command-r"],
)
def test_published_configurations(tmp_path, record, params):
    assert read_model(write(tmp_path, record)).shape.count.total == params


# What a configuration may say, by family, beside its shapes.
SMALL = {
    "num_hidden_layers": 3, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "vocab_size": 101,
}  # fmt: skip
VARIANTS = {
    "llama": [{"attention_bias": True, "mlp_bias": True}, {"num_key_value_heads": 2, "tie_word_embeddings": True}],
    "qwen2": [{"head_dim": 10}],
    "qwen3": [{}],
    "mixtral": [{"num_local_experts": 3, "num_experts_per_tok": 2}],
    "gemma2": [{}],
    "gpt_neox": [{"use_parallel_residual": False, "attention_bias": False}, {}],
    "gpt2": [{"n_embd": 24, "n_layer": 3, "n_head": 4, "n_inner": 50, "n_positions": 64}],
    "cohere": [{"attention_bias": True}, {"tie_word_embeddings": False}],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_as_many_parameters_are_counted_as_the_imported_model_has(tmp_path, name):
    for more in VARIANTS[name]:
        record = {"model_type": name, **SMALL, **more}
        shapes = shapes_of(FAMILIES[name].to_architecture(record))
        counted = read_model(write(tmp_path, record)).shape.count
        assert counted.total == sum(math.prod(shape) for shape in shapes.values()), more
        assert counted.active <= counted.total


@pytest.mark.parametrize(
    ("record", "part"),
    [
        ([1], "expected an object"),
        ({**CONFIG, "model_type": "bloom"}, "'bloom'; known are llama"),
        ({"num_hidden_layers": 4}, "neither 'architectures' nor 'model_type'"),
        ({**CONFIG, "num_attention_heads": 0}, "num_attention_heads is 0; it must be a positive integer"),
        ({**CONFIG, "num_attention_heads": None}, "no field 'num_attention_heads'"),
        ({**MIXTRAL, "num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
        ({**CONFIG, "intermediate_size": -5}, "intermediate_size is -5; it must be a positive integer"),
        ({**CONFIG, "hidden_size": float("inf")}, "hidden_size is inf"),
        ({**COMMAND_R, "use_qk_norm": True}, "use_qk_norm"),
    ],
)
def test_configurations_of_no_model(tmp_path, record, part):
    with pytest.raises(UserError, match=part) as caught:
        read_model(write(tmp_path, record))
    assert "\n" not in str(caught.value)
    assert "say --params and --tokens_seen instead" in str(caught.value)


@pytest.mark.parametrize("field", ["hidden_size", "intermediate_size", "vocab_size"])
def test_sizes_that_no_model_has(tmp_path, field):
    for size in (10**12, 10**400):
        with pytest.raises(UserError, match=r"config\.json is of a model of more than 1e\+15 parameters"):
            read_model(write(tmp_path, {**CONFIG, field: size, "head_dim": 128}))


def test_a_model_that_is_away_is_not_missing(tmp_path, monkeypatch):
    path = write(tmp_path, CONFIG)
    usual = os.stat

    def stat(place, *given, **named):
        if str(place).startswith(path):
            raise OSError(errno.EHOSTDOWN, "Host is down", str(place))
        return usual(place, *given, **named)

    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(UnavailableError, match=r"--continue_from: .* Host is down; nothing was changed"):
        read_model(path)


def test_a_configuration_that_is_no_json(tmp_path):
    (tmp_path / "config.json").write_text("[" * 10_000)
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        read_model(str(tmp_path))


def test_a_file_that_includes_what_there_is_not(tmp_path):
    (tmp_path / "model.gin").write_text('include "gin/models/none.gin"\n')
    with pytest.raises(UserError, match=r"includes gin/models/none\.gin, which is not there"):
        read_model(str(tmp_path))
