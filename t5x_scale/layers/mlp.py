"""Feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.layers.initializers import FanIn, Initializer
from t5x_scale.layers.linear import Linear
from t5x_scale.layers.tensor_names import MLP_GATE, MLP_HIDDEN, MLP_OUT, MLP_UP, named
from t5x_scale.partitioning.shardings import constrain

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "relu_squared": lambda x: jnp.square(nn.relu(x)),
}


def to_activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation function called `name`.

    Raises:
      UserError: naming the nearest known activation.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"unknown activation '{name}'{did_you_mean(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


class GatedMlp(nn.Module):
    """`wo(activation(wi_0 x) * (wi_1 x))`: SwiGLU with `silu` (Shazeer 2020; PaLM, section 2)."""

    embed_dim: int
    mlp_dim: int
    activation: str = "silu"
    use_bias: bool = False
    kernel_init: Initializer = FanIn()
    output_init: Initializer = FanIn()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, D] to [B, L, D]."""
        gate = named(_expand(self, "wi_0")(x), MLP_GATE)
        value = named(_expand(self, "wi_1")(x), MLP_UP)
        h = to_activation(self.activation)(gate) * value
        return _finish(self, h)


class Mlp(nn.Module):
    """`wo(activation(wi x))`: the plain feed-forward layer."""

    embed_dim: int
    mlp_dim: int
    activation: str = "gelu"
    use_bias: bool = False
    kernel_init: Initializer = FanIn()
    output_init: Initializer = FanIn()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, D] to [B, L, D]."""
        h = to_activation(self.activation)(named(_expand(self, "wi")(x), MLP_GATE))
        return _finish(self, h)


def _expand(layer: GatedMlp | Mlp, name: str) -> Linear:
    return Linear(
        (layer.embed_dim,),
        (layer.mlp_dim,),
        ("embed", "mlp"),
        layer.use_bias,
        layer.kernel_init,
        layer.dtype,
        layer.param_dtype,
        name=name,
    )


def _finish(layer: GatedMlp | Mlp, h: jax.Array) -> jax.Array:
    h = named(constrain(h, ("batch", "length", "act_mlp")), MLP_HIDDEN)
    return named(_contract(layer)(h), MLP_OUT)


def _contract(layer: GatedMlp | Mlp) -> Linear:
    return Linear(
        (layer.mlp_dim,),
        (layer.embed_dim,),
        ("mlp", "embed"),
        layer.use_bias,
        layer.output_init,
        layer.dtype,
        layer.param_dtype,
        name="wo",
    )
