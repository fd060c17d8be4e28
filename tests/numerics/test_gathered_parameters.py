"""A mesh of data x fsdp x model, on which the partitioner of jax 0.10.2 returns rows in the wrong order if it may."""

import jax
import numpy as np

from t5x_scale.core import batch as fields
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.interface import DecoderModel
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program

# Wide and short: moving the activations looks cheaper to the partitioner than gathering the parameters.
CONFIG = ModelConfig(
    num_layers=2, embed_dim=256, mlp_dim=1024, num_heads=4, num_kv_heads=1, head_dim=16, vocab_size=64, dtype="float32"
)


def test_every_row_of_a_short_batch_comes_back_in_its_place():
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (8, 4)).astype(np.int32)
    batch = {
        fields.INPUT_TOKENS: tokens,
        fields.TARGET_TOKENS: np.roll(tokens, 1, axis=0),
        fields.LOSS_WEIGHTS: np.eye(8, 4, dtype=np.float32) + np.arange(8, dtype=np.float32)[:, None],
    }
    losses = {}
    for name, mesh, devices in (
        ("one", MeshConfig(), jax.devices()[:1]),
        ("eight", MeshConfig(data=2, fsdp=2, model=2), jax.devices()),
    ):
        runtime = Program(DecoderModel(CONFIG), mesh=mesh, rules=rules.fsdp_model()).make(devices)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, runtime.abstract_params)
        params = jax.jit(runtime.program.model.init, out_shardings=shardings)(jax.random.key(0))
        sums = runtime.eval_step(params, jax.device_put(batch, runtime.batch_sharding))
        losses[name] = float(sums.cross_entropy / sums.weight)
    assert abs(losses["one"] - losses["eight"]) < 1e-5
