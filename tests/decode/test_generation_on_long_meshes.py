"""Decoding where rows and their cache are split along the length: the completions of one device."""

import jax
import numpy as np
import pytest

from t5x_scale.decode.generation import generate
from t5x_scale.decode.sampling import SamplingConfig
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.shardings import make_sharding

PROMPTS = [[5, 7, 9], [1, 2, 3, 4, 5, 6, 7], [11] * 12]
GREEDY = SamplingConfig(max_new_tokens=8, temperature=0.0)


def complete(model, params, **options):
    tokens = {}
    for piece in generate(model, params, PROMPTS, GREEDY, context_length=32, **options):
        tokens.setdefault(piece.row, []).extend(piece.tokens)
    return tokens


@pytest.mark.parametrize(
    ("sizes", "table"),
    [
        ({"fsdp": 1, "context": 4}, rules.context()),
        ({"fsdp": 2, "context": 2, "model": 2}, rules.context()),
        ({"fsdp": 4, "model": 2}, rules.sequence()),
    ],
)
def test_the_completions_are_those_of_one_device(tiny_model, relative_model, sizes, table):
    for model, params in (tiny_model, relative_model):
        mesh = MeshConfig(**sizes).make_mesh(jax.devices()[: np.prod(list(sizes.values()))])
        placed = jax.tree.map(
            lambda leaf, axes, mesh=mesh: jax.device_put(leaf, make_sharding(mesh, table, axes, leaf.shape)),
            params,
            model.axes(),
        )
        assert complete(model, placed, mesh=mesh, rules=table) == complete(model, params)
