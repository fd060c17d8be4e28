"""Names of a layer's intermediate tensors, by which `models.remat` saves, recomputes or offloads them.

A kernel with a gradient of its own names what that gradient needs inside its forward rule (`context`, and the
normaliser that goes with it): what is named only outside is saved, and the kernel run again all the same.
"""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name

from t5x_scale.layers.ops.grouped_matmul import PRODUCT

RESIDUAL = "residual"
QUERY = "query"
KEY = "key"
VALUE = "value"
CONTEXT = "context"
ATTENTION_OUT = "attention_out"
MLP_GATE = "mlp_gate"
MLP_UP = "mlp_up"
MLP_HIDDEN = "mlp_hidden"
MLP_OUT = "mlp_out"

# In the order of a layer, with what each is.
TENSOR_NAMES: dict[str, str] = {
    RESIDUAL: "the input of the layer [B, L, D]",
    QUERY: "queries as attention takes them, after norms and positions [B, L, N, H]",
    KEY: "keys, likewise [B, L, K, H]",
    VALUE: "values [B, L, K, H]",
    CONTEXT: "what attention gives, before its output product [B, L, N, H]",
    ATTENTION_OUT: "its output product [B, L, D]",
    MLP_GATE: "the product of which the activation is taken [B, L, F]",
    MLP_UP: "the other product of a gated layer [B, L, F]",
    MLP_HIDDEN: "the input of the last product [B, L, F]",
    MLP_OUT: "the last product [B, L, D]",
    PRODUCT: "the products of experts [tokens, F or D]",
}


def named(x: jax.Array, name: str) -> jax.Array:
    """`x` under one of the names above, for the policies of remat; the identity otherwise."""
    assert name in TENSOR_NAMES, name
    return checkpoint_name(x, name)
