"""Architectures survive JSON, and differences are named."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.models.architecture import BLOCKS, NORMS, Architecture, RopeScalingValues
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.records import architecture_from_json, architecture_to_json, name_differences

CONFIG = ModelConfig(
    num_layers=2, embed_dim=8, mlp_dim=12, num_heads=4, num_kv_heads=2, head_dim=6, vocab_size=11, dtype="float32"
)


@given(
    block=st.sampled_from(BLOCKS),
    norm=st.sampled_from(NORMS),
    windows=st.lists(st.none() | st.integers(1, 9), max_size=3),
    scaling=st.none() | st.builds(RopeScalingValues, st.just("yarn"), st.floats(1, 9), st.integers(1, 99)),
    cap=st.none() | st.floats(1, 99),
)
def test_json_and_back(block, norm, windows, scaling, cap):
    whole = Architecture(
        CONFIG, block=block, norm=norm, windows=tuple(windows), rope_scaling=scaling, logit_soft_cap=cap
    )
    assert architecture_from_json(json.loads(json.dumps(architecture_to_json(whole)))) == whole


def test_a_field_of_another_version_is_named():
    record = architecture_to_json(Architecture(CONFIG))
    with pytest.raises(UserError, match=r"'norm_epsilonn' \(did you mean 'norm_epsilon'"):
        architecture_from_json({**record, "norm_epsilonn": 1.0})


def test_an_older_record_has_defaults():
    record = architecture_to_json(Architecture(CONFIG))
    del record["logit_scale"]
    assert architecture_from_json(record) == Architecture(CONFIG)


def test_differences_name_the_field_and_leave_dtypes_out():
    saved = Architecture(CONFIG, rope_base=1e4, max_length=8)
    asked = dataclasses.replace(saved, rope_base=5e5, max_length=99).with_config(dtype="bfloat16")
    assert name_differences(saved, asked) == ["rope_base: 10000.0 -> 500000.0"]
    assert name_differences(saved, saved) == []
