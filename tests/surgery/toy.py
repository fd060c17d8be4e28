"""Weights with random values for the tests of surgeries, whole models in a few kilobytes."""

import jax
import jax.numpy as jnp
import numpy as np

from t5x_scale.core import batch as fields
from t5x_scale.core import lazy
from t5x_scale.core.leaves import Leaf, Origin
from t5x_scale.core.trees import flatten, unflatten
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.assembly import to_model
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.weights import Weights


def make_architecture(settings=None, **config):
    """A small decoder; `config` are shapes, `settings` the other fields of an `Architecture`."""
    shapes = {"num_layers": 4, "embed_dim": 8, "mlp_dim": 12, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6}
    return Architecture(ModelConfig(**(shapes | {"vocab_size": 20, "dtype": "float32"} | config)), **(settings or {}))


FAMILIES = {
    "llama": make_architecture(),
    "palm": make_architecture({"block": "parallel", "norm": "layer", "tied": True}, num_kv_heads=1),
    "neox": make_architecture(
        dict(
            dict.fromkeys(["norm_bias", "attention_bias", "output_bias", "mlp_bias"], True),
            block="two_norm_parallel",
            norm="layer",
            mlp="plain",
            activation="gelu",
        )
    ),
    "gemma": make_architecture(
        {"block": "sandwich", "norm_offset": 1.0, "windows": (3, None), "tied": True, "logit_soft_cap": 30.0}
    ),
    "qwen": make_architecture({"qk_norm": True, "attention_bias": True}),
    "gpt2": make_architecture({"positions": "learned", "max_length": 16, "norm": "layer", "norm_bias": True}),
}


def tensors(architecture):
    """`{path: (shape, axes)}` of the parameters, written down by hand from the contract of paths."""
    a, c = architecture, architecture.config
    found = {"token_embedder/embedding": ((c.vocab_size, c.embed_dim), ("vocab", "embed"))}
    if a.positions == "learned":
        found["position_embedder/embedding"] = ((a.max_length, c.embed_dim), (None, "embed"))
    found |= _norm("decoder/final_norm", a, (c.embed_dim,), ("embed",))
    if not a.tied:
        found["logits/kernel"] = ((c.embed_dim, c.vocab_size), ("embed", "vocab"))
    for name in _norm_names(a):
        found |= _norm(f"decoder/layers/{name}", a, (c.num_layers, c.embed_dim), ("layers", "embed"))
    for path, (shape, axes) in {**_attention(a), **_mlp(a)}.items():
        found[f"decoder/layers/{path}"] = ((c.num_layers, *shape), ("layers", *axes))
    return found


def make_weights(architecture, seed=0, dtype=np.float32, moments=(), known=True, scale=0.3):
    """Random parameters.

    Args:
      architecture: of the model.
      seed: of all values.
      dtype: of the parameters.
      moments: slots of an optimiser's state to make as well, such as `opt_state/0/mu`; all positive.
      known: whether the weights know their architecture.
      scale: standard deviation; of norms around 1.
    """
    rng = np.random.default_rng(seed)
    leaves, slots = {}, {slot: {} for slot in moments}
    for path, (shape, axes) in tensors(architecture).items():
        values = scale * rng.standard_normal(shape) + path.endswith("scale")
        leaves[path] = Leaf(lazy.from_array(values.astype(dtype)), axes, Origin("restored", f"params/{path}"))
        for slot, entries in slots.items():
            values = np.abs(rng.standard_normal(shape)).astype(np.float32)
            entries[path] = Leaf(lazy.from_array(values), axes, Origin("restored", f"{slot}/{path}"))
    count = Leaf(lazy.from_array(np.asarray(7, np.int32)), (), Origin("restored", "opt_state/0/count"))
    counters = {"opt_state/0/count": count} if moments else {}
    return Weights(leaves, architecture if known else None, moments=slots, counters=counters)


def make_abstract(architecture):
    """Weights of any size, all zeros."""
    leaves = {
        path: Leaf(lazy.full(shape, "bfloat16"), axes, Origin("restored", path))
        for path, (shape, axes) in tensors(architecture).items()
    }
    return Weights(leaves, architecture)


def read(leaves):
    """The values of all leaves as numpy, by path."""
    return {path: leaf.array.read() for path, leaf in leaves.items()}


def shapes(leaves):
    """The shapes of all leaves, by path."""
    return {path: leaf.shape for path, leaf in leaves.items()}


def _norm_names(a):
    names = ["pre_norm"]
    if a.block != "parallel":
        names.append("pre_mlp_norm")
    return names + ["post_attention_norm", "post_mlp_norm"] * (a.block == "sandwich")


def _norm(path, a, shape, axes):
    return {f"{path}/{name}": (shape, axes) for name in ["scale", "bias"][: 1 + (a.norm == "layer" and a.norm_bias)]}


def _attention(a):
    c, found = a.config, {}
    for name, heads, axis in (
        ("query", c.num_heads, "heads"),
        ("key", c.num_kv_heads, "kv_heads"),
        ("value", c.num_kv_heads, "kv_heads"),
    ):
        found[f"self_attention/{name}/kernel"] = (c.embed_dim, heads, c.head_dim), ("embed", axis, "kv")
        if a.attention_bias:
            found[f"self_attention/{name}/bias"] = (heads, c.head_dim), (axis, "kv")
        if a.qk_norm and name != "value":
            found[f"self_attention/{name}_norm/scale"] = (c.head_dim,), ("kv",)
    found["self_attention/out/kernel"] = (c.num_heads, c.head_dim, c.embed_dim), ("heads", "kv", "embed")
    if a.output_bias:
        found["self_attention/out/bias"] = (c.embed_dim,), ("embed",)
    return found


def _mlp(a):
    c, found = a.config, {}
    count, expert, room = ((c.num_experts,), ("expert",), "mlp/experts") if c.num_experts else ((), (), "mlp")
    for name in ("wi_0", "wi_1") if a.mlp == "gated" else ("wi",):
        found[f"{room}/{name}/kernel"] = (*count, c.embed_dim, c.mlp_dim), (*expert, "embed", "mlp")
        if a.mlp_bias:
            found[f"{room}/{name}/bias"] = (*count, c.mlp_dim), (*expert, "mlp")
    found[f"{room}/wo/kernel"] = (*count, c.mlp_dim, c.embed_dim), (*expert, "mlp", "embed")
    if a.mlp_bias:
        found[f"{room}/wo/bias"] = (*count, c.embed_dim), (*expert, "embed")
    if c.num_experts:
        found["mlp/router/kernel"] = (c.embed_dim, c.num_experts), ("embed", "expert")
    return found


def logits(weights, length=7):
    """float32 logits [2, length, V] of the model that the weights are, on fixed random tokens."""
    tokens = np.random.default_rng(5).integers(1, 19, (2, length)).astype(np.int32)
    params = unflatten({path: jnp.asarray(values) for path, values in read(weights.leaves).items()})
    model = to_model(weights.architecture)
    return np.asarray(jax.jit(model.logits)(params, {fields.INPUT_TOKENS: tokens}))


def gradients(weights, length=7):
    """The gradient of a fixed sum of those logits, by path."""
    tokens = np.random.default_rng(5).integers(1, 19, (2, length)).astype(np.int32)
    params = unflatten({path: jnp.asarray(values) for path, values in read(weights.leaves).items()})
    model = to_model(weights.architecture)
    signs = np.random.default_rng(6).standard_normal((2, length, weights.architecture.config.vocab_size))

    def objective(params):
        return (model.logits(params, {fields.INPUT_TOKENS: tokens}) * signs).sum()

    return {path: np.asarray(value) for path, value in flatten(jax.jit(jax.grad(objective))(params)).items()}


def with_gradients(weights, first="opt_state/0/mu", second="opt_state/0/nu"):
    """The weights with their gradient as an optimiser's first moment, and its square as the second."""
    found = {slot: {} for slot in (first, second)}
    for path, value in gradients(weights).items():
        axes, origin = weights.leaves[path].axes, Origin("restored", path)
        found[first][path] = Leaf(lazy.from_array(value), axes, origin)
        found[second][path] = Leaf(lazy.from_array(value**2), axes, origin)
    return weights.replace(moments=found)
