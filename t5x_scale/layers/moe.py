"""A feed-forward layer of experts: each token passes through a few of many.

Dropless: an expert takes all tokens that choose it, however many, so there is no capacity and no token is left out,
and what a token gets does not depend on the others of its batch. The tokens are sorted by expert and go through
products in groups.

Where experts are split over a mesh axis, no expert ever moves: tokens travel to them, see `expert_rows`.

Experts that choose their tokens (expert choice, Zhou et al. 2022, arXiv 2202.09368) are not offered: whether a token is
among an expert's best depends on the tokens after it. A decoder trained so has seen the future, and cannot do the same
when it generates token by token.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_scale.layers import routing
from t5x_scale.layers.expert_rows import ExpertRows
from t5x_scale.layers.initializers import FanIn, Initializer, Normal
from t5x_scale.layers.masks import Mask
from t5x_scale.layers.mlp import to_activation
from t5x_scale.partitioning.axes import Axes
from t5x_scale.partitioning.shardings import constrain
from t5x_scale.partitioning.shards import Parameter, Rows, sum_over_shards

# The collection of a layer's auxiliary losses. It stays inside of `models/`.
LOSSES = "losses"


class MoeMlp(nn.Module):
    """`sum_e gate_e(x) * expert_e(x)` over the chosen experts, each a `GatedMlp` or an `Mlp` without biases.

    Padding goes to no expert: it costs nothing, its output is 0 and it is in no auxiliary loss.

    Attributes:
      embed_dim: size of the residual stream.
      mlp_dim: hidden size of one expert.
      num_experts: experts of the layer.
      num_experts_per_token: experts that a token chooses.
      activation: of the experts, a name of `mlp.ACTIVATIONS`.
      gated: three matrices an expert instead of two.
      router, normalize_gates, gate_scale: how gates come from the router's scores, see `routing.choose`. With one
        expert a token, gates that are divided by their sum are 1, and the router learns from the losses only.
      router_init: of the router's kernel.
      kernel_init: of `wi`, for every expert anew.
      output_init: of `wo`.
      balance_loss: coefficient of `routing.balance_loss` (Switch Transformer, ST-MoE: 1e-2); 0 is none.
      router_z_loss: coefficient of `routing.router_z_loss` (ST-MoE: 1e-3); 0 is none.
      exchange_buffer: on a mesh that splits experts and tokens over the same axis, room for what one device sends to
        another, in multiples of what that is when all experts are used alike, see `expert_rows`. It changes what
        travels, not the result; 0 sends all tokens to all.
      dtype: of the experts' products; the router's are float32.
      param_dtype: of the stored parameters.
    """

    embed_dim: int
    mlp_dim: int
    num_experts: int
    num_experts_per_token: int
    activation: str = "silu"
    gated: bool = True
    router: str = "softmax_topk"
    normalize_gates: bool = True
    gate_scale: float = 1.0
    router_init: Initializer = Normal(0.02)
    kernel_init: Initializer = FanIn()
    output_init: Initializer = FanIn()
    balance_loss: float = 1e-2
    router_z_loss: float = 1e-3
    exchange_buffer: float = 2.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask = Mask()) -> jax.Array:
        """[B, L, D] to [B, L, D]; `mask` says which positions are padding."""
        routing.check_router(self.router)
        logits = Router(self.embed_dim, self.num_experts, self.router_init, self.param_dtype, name="router")(x)
        choice = routing.choose(
            logits,
            self.num_experts_per_token,
            mask.is_token,
            router=self.router,
            normalize=self.normalize_gates,
            scale=self.gate_scale,
        )
        self._note("balance_loss", self.balance_loss, lambda: routing.balance_loss(choice, mask.is_token))
        self._note("router_z_loss", self.router_z_loss, lambda: routing.router_z_loss(logits, mask.is_token))
        experts = Experts(
            self.embed_dim,
            self.mlp_dim,
            self.num_experts,
            self.activation,
            self.gated,
            self.kernel_init,
            self.output_init,
            self.exchange_buffer,
            self.dtype,
            self.param_dtype,
            name="experts",
        )
        return experts(x, choice.expert, choice.gate)

    def _note(self, name: str, coefficient: float, loss: Any) -> None:
        if coefficient:
            self.sow(LOSSES, name, coefficient * loss(), init_fn=lambda: None, reduce_fn=lambda _, new: new)


class Router(nn.Module):
    """Scores of experts: float32 logits [B, L, E]."""

    embed_dim: int
    num_experts: int
    kernel_init: Initializer
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = ("embed", "expert")
        kernel = _kernel(self, self.kernel_init, (self.embed_dim, self.num_experts), axes, self.embed_dim)
        # Whole on every device, however experts are split: each token is compared with all of them. Each device does so
        # for its own tokens, which a partitioner would gather for the gradient of the kernel.
        whole = Parameter(kernel.astype(jnp.float32), axes, (None, None))
        return sum_over_shards(_scores, [Rows(x.astype(jnp.float32), ("batch", "length", None))], [whole])


def _scores(x: jax.Array, kernel: jax.Array) -> jax.Array:
    contract = (((2,), (0,)), ((), ()))
    return jax.lax.dot_general(x, kernel, contract, precision=jax.lax.Precision.HIGHEST)


class Experts(nn.Module):
    """Feed-forward layers of one shape, and tokens sorted into them."""

    embed_dim: int
    mlp_dim: int
    num_experts: int
    activation: str
    gated: bool
    kernel_init: Initializer
    output_init: Initializer
    exchange_buffer: float
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, expert: jax.Array, gate: jax.Array) -> jax.Array:
        """[B, L, D] to [B, L, D], each token through its experts [B, L, k], weighted by their gates [B, L, k]."""
        work = ExpertRows(to_activation(self.activation), self.num_experts, self.exchange_buffer)
        by_token = ("batch", "length", None)
        rows = [Rows(array, by_token) for array in (x.astype(self.dtype), expert, gate)]
        # The numbers of the experts are split as the experts are, and so tell a device which are its own.
        numbers = Parameter(jnp.arange(self.num_experts, dtype=jnp.int32), ("expert",), ("expert",))
        y = sum_over_shards(work.apply, rows, [numbers, *self._kernels()], work.apply_across)
        return constrain(y, ("batch", "length", "act_embed"))

    def _kernels(self) -> list[Parameter]:
        """The kernels of all experts, the last of which leads back."""
        inner = ("wi_0", "wi_1") if self.gated else ("wi",)
        up, down = (self.embed_dim, self.mlp_dim), (self.mlp_dim, self.embed_dim)
        expand = [self._one(name, self.kernel_init, up, ("embed", "mlp")) for name in inner]
        return [*expand, self._one("wo", self.output_init, down, ("mlp", "embed"))]

    def _one(self, name: str, init: Initializer, shape: tuple[int, int], axes: Axes) -> Parameter:
        kernels = ExpertKernels(self.num_experts, shape, axes, init, self.param_dtype, name=name)()
        stored = ("expert", *axes)
        used = tuple(None if axis == "embed" else axis for axis in stored)
        return Parameter(kernels.astype(self.dtype), stored, used)


class ExpertKernels(nn.Module):
    """One matrix of each expert: the parameter [E, in, out]."""

    num_experts: int
    shape: tuple[int, int]
    axes: Axes
    kernel_init: Initializer
    param_dtype: Any

    @nn.compact
    def __call__(self) -> jax.Array:
        axes = ("expert", *self.axes)
        return _kernel(self, self.kernel_init, (self.num_experts, *self.shape), axes, self.shape[0])


def _kernel(module: nn.Module, init: Initializer, shape: tuple[int, ...], axes: Axes, fan_in: int) -> jax.Array:
    draw = nn.with_logical_partitioning(lambda key, shape, dtype: init(key, shape, dtype, fan_in), axes)
    return module.param("kernel", draw, shape, module.param_dtype)
