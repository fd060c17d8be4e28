"""Small parameter trees for the optimiser tests: a stack of layers, and the same layers apart."""

import types

import jax
import numpy as np
import optax
import pytest

from t5x_scale.core.trees import flatten, unflatten

LAYERS = 2
_LEAVES = {
    "token_embedder/embedding": ((24, 8), ("vocab", "embed")),
    "decoder/layers/attention/query/kernel": ((LAYERS, 8, 4, 4), ("layers", "embed", "heads", "kv")),
    "decoder/layers/mlp/wi/kernel": ((LAYERS, 8, 16), ("layers", "embed", "mlp")),
    "decoder/layers/mlp/experts/wo/kernel": ((LAYERS, 2, 16, 8), ("layers", "expert", "mlp", "embed")),
    "decoder/layers/pre_norm/scale": ((LAYERS, 8), ("layers", "embed")),
    "decoder/layers/gate": ((LAYERS,), ("layers",)),
    "decoder/final_norm/scale": ((8,), ("embed",)),
}
AXES = unflatten({path: axes for path, (_, axes) in _LEAVES.items()})


def random_tree(seed: int, dtype=np.float32, scale: float = 1.0):
    """Normal numpy values whose size differs between leaves and between layers."""
    flat = {}
    for i, (path, (shape, axes)) in enumerate(_LEAVES.items()):
        values = np.random.default_rng([seed, i]).standard_normal(shape) * scale * (1 + i) * 0.1
        if axes[0] == "layers":
            values *= 1 + np.arange(LAYERS).reshape(-1, *[1] * (len(shape) - 1))
        flat[path] = values.astype(dtype)
    return unflatten(flat)


def apart(tree):
    """The same parameters with each layer a subtree of its own: layers/x [L, ...] to layers_0/x, layers_1/x ..."""
    flat = {}
    for path, leaf in flatten(tree).items():
        if "/layers/" not in path:
            flat[path] = leaf
        else:
            for layer in range(LAYERS):
                part = leaf[1:] if isinstance(leaf, tuple) else leaf[layer]
                flat[path.replace("/layers/", f"/layers_{layer}/")] = part
    return unflatten(flat)


_steps = {}


def run(optimizer, params, axes, grads, options=None):
    """Trains on a list of gradients; returns the last parameters and state as numpy."""
    tx = optimizer.make(axes, options or {})

    def step(params, state, g):
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    # Compiling is most of the time of these tests; equal descriptions make equal programs.
    step = _steps.setdefault(repr((optimizer, axes, options)), jax.jit(step))
    state = tx.init(params)
    for g in grads:
        params, state = step(params, state, g)
    return jax.device_get((params, state))


@pytest.fixture(scope="session")
def trees():
    """`axes`, `layers`, `random(seed, dtype, scale)`, `apart(tree)` and `run(optimizer, params, axes, grads)`."""
    return types.SimpleNamespace(axes=AXES, layers=LAYERS, random=random_tree, apart=apart, run=run)
