"""One layer of a decoder: attention and feed-forward around the residual stream.

A block takes its attention, feed-forward and norms as module factories and passes them their shapes; which
ones they are is the business of a gin file. `(x, mask, positions, cache) -> (x, cache)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from t5x_scale.layers.attention import Attention, Cache
from t5x_scale.layers.masks import Mask
from t5x_scale.layers.mlp import GatedMlp
from t5x_scale.layers.norm import RMSNorm
from t5x_scale.layers.residual import enter_branch, leave_branch
from t5x_scale.models.config import ModelConfig

Factory = Callable[..., nn.Module]


class Block(nn.Module):
    """What all blocks share: the injected parts, built with explicit shapes."""

    config: ModelConfig
    attention: Factory = Attention
    mlp: Factory = GatedMlp
    norm: Factory = RMSNorm

    def _dtypes(self) -> dict[str, Any]:
        return {"dtype": self.config.dtype, "param_dtype": self.config.param_dtype}

    def _attention(self, **name: str) -> nn.Module:
        c = self.config
        return self.attention(
            embed_dim=c.embed_dim,
            num_heads=c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            **self._dtypes(),
            **name,
        )

    def _feed_forward(self, x: jax.Array, mask: Mask) -> jax.Array:
        """The feed-forward layer; one with experts is also told what is padding."""
        c = self.config
        shapes = {"embed_dim": c.embed_dim, "mlp_dim": c.mlp_dim, **self._dtypes(), "name": "mlp"}
        if not c.num_experts:
            return leave_branch(self.mlp(**shapes)(x))
        experts = {"num_experts": c.num_experts, "num_experts_per_token": c.num_experts_per_token}
        return leave_branch(self.mlp(**shapes, **experts)(x, mask))

    def _norm(self, name: str) -> nn.Module:
        return self.norm(dim=self.config.embed_dim, **self._dtypes(), name=name)

    def _enter(self, norm: str, x: jax.Array) -> jax.Array:
        return enter_branch(self._norm(norm)(x))

    def _attend(
        self, x: jax.Array, mask: Mask, positions: jax.Array, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        attended, cache = self._attention(name="self_attention")(x, mask, positions, cache)
        return leave_branch(attended), cache

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """The cache of one layer, as its attention makes it. Needs no parameters."""
        return self._attention(parent=None).empty_cache(batch_size, length)


class ParallelBlock(Block):
    """PaLM's block: `x + Attention(Norm(x)) + Mlp(Norm(x))`, one norm for both (PaLM, section 2)."""

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: Mask, positions: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        h = self._enter("pre_norm", x)
        attended, cache = self._attend(h, mask, positions, cache)
        return x + attended + self._feed_forward(h, mask), cache


class TwoNormParallelBlock(Block):
    """GPT-J's and Pythia's form: `x + Attention(Norm_1(x)) + Mlp(Norm_2(x))`."""

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: Mask, positions: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        h = self._enter("pre_norm", x)
        attended, cache = self._attend(h, mask, positions, cache)
        return x + attended + self._feed_forward(self._enter("pre_mlp_norm", x), mask), cache


class SerialBlock(Block):
    """The usual pre-norm block: `y = x + Attention(Norm_1(x))`, then `y + Mlp(Norm_2(y))`."""

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: Mask, positions: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        h = self._enter("pre_norm", x)
        attended, cache = self._attend(h, mask, positions, cache)
        x = x + attended
        return x + self._feed_forward(self._enter("pre_mlp_norm", x), mask), cache


class SandwichBlock(Block):
    """Gemma 2's block, each branch between two norms: `y = x + Norm_2(Attention(Norm_1(x)))`, then so with the Mlp."""

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: Mask, positions: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        h = self._enter("pre_norm", x)
        attended, cache = self._attend(h, mask, positions, cache)
        x = x + self._norm("post_attention_norm")(attended)
        fed = self._feed_forward(self._enter("pre_mlp_norm", x), mask)
        return x + self._norm("post_mlp_norm")(fed), cache
