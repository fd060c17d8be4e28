"""Multi-head, grouped-query and multi-query attention: one module, any number of kv heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_scale.layers.initializers import FanIn, Initializer
from t5x_scale.layers.linear import Linear
from t5x_scale.layers.masks import Mask
from t5x_scale.layers.ops.attention import BLOCK, attention, check_implementation
from t5x_scale.layers.positions import Rope
from t5x_scale.layers.tensor_names import ATTENTION_OUT, KEY, QUERY, VALUE, named
from t5x_scale.partitioning.shardings import constrain

# Keys and values of one layer: {"key": [B, S, K, H], "value": [B, S, K, H]}.
Cache = dict[str, jax.Array]


class Attention(nn.Module):
    """Softmax attention. Kernels: query [D, N, H], key and value [D, K, H], out [N, H, D].

    Attributes:
      positions: the position scheme, a module factory (`Rope`, `RelativePositions`, `NoPositions`).
      query_norm, key_norm: module factories for a norm over the head's features before positions, or None.
      use_bias: biases on query, key and value; use_output_bias: on the output.
      window: each query sees at most this many keys, or None.
      logit_scale: multiplies the logits; `head_dim ** -0.5` by default.
      implementation: which kernel attends while a model is trained or evaluated: a key of
        `layers.ops.attention.IMPLEMENTATIONS`, or `auto`. Cached keys are always attended to by the reference.
      block: queries and keys of a block of the TPU's splash kernel, in a ring too. The larger, the less is spent
        between blocks, and the more a causal mask or packed documents are computed in vain; Trillium has vector memory
        for 1,024.
    """

    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    positions: Callable[..., nn.Module] = Rope
    query_norm: Callable[..., nn.Module] | None = None
    key_norm: Callable[..., nn.Module] | None = None
    use_bias: bool = False
    use_output_bias: bool = False
    window: int | None = None
    soft_cap: float | None = None
    logit_scale: float | None = None
    implementation: str = "auto"
    block: int = BLOCK
    kernel_init: Initializer = FanIn()
    output_init: Initializer = FanIn()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array, mask: Mask, positions_BL: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        """Attends within `x_BLD`, or to `cache` after writing the keys and values of `x_BLD` into it.

        Args:
          x_BLD: the normalised input.
          mask: which keys each query sees; with a cache, keys are its slots.
          positions_BL: positions of the inputs; with a cache also the slots they are written to, and -1 marks
            padding that is not written.
          cache: keys and values of earlier tokens, or None.

        Returns:
          The output [B, L, D] and the updated cache.
        """
        # While parameters are drawn, too: a table of them is all that a dry run makes.
        check_implementation(self.implementation)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        scheme = self.positions(
            embed_dim=self.embed_dim, num_heads=self.num_heads, head_dim=self.head_dim, **dtypes, name="positions"
        )
        q, k, v = self._project(x_BLD)
        if self.query_norm is not None:
            q = self.query_norm(dim=self.head_dim, axis="kv", **dtypes, name="query_norm")(q)
        if self.key_norm is not None:
            k = self.key_norm(dim=self.head_dim, axis="kv", **dtypes, name="key_norm")(k)
        k, v = named(scheme.encode_keys(k, positions_BL), KEY), named(v, VALUE)
        key_positions = positions_BL
        if cache is not None:
            cache = _write(cache, k, v, positions_BL)
            k, v = cache["key"].astype(self.dtype), cache["value"].astype(self.dtype)
            key_positions = jnp.arange(k.shape[1], dtype=jnp.int32)[None]
        scale = self.head_dim**-0.5 if self.logit_scale is None else self.logit_scale
        q, bias = scheme.encode_queries(q, positions_BL, key_positions)
        if bias is not None:
            bias = bias * scale
        # Shapes are all that matters while parameters are drawn, outside of the mesh that a kernel may be for.
        is_plain = cache is not None or self.is_initializing()
        options = {
            "scale": scale,
            "window": self.window,
            "soft_cap": self.soft_cap,
            "bias_BNLS": bias,
            "implementation": "reference" if is_plain else self.implementation,
            "block": self.block,
        }
        q = named(constrain(q, ("batch", "length", "act_heads", None)), QUERY)
        out = attention(q, k, v, mask, **options)
        out = constrain(out, ("batch", "length", "act_heads", None))
        return named(self._output(out), ATTENTION_OUT), cache

    def _project(self, x: jax.Array) -> list[jax.Array]:
        heads = {"query": self.num_heads, "key": self.num_kv_heads, "value": self.num_kv_heads}
        return [
            Linear(
                (self.embed_dim,),
                (number, self.head_dim),
                ("embed", "heads" if name == "query" else "kv_heads", "kv"),
                self.use_bias,
                self.kernel_init,
                self.dtype,
                self.param_dtype,
                name=name,
            )(x)
            for name, number in heads.items()
        ]

    def _output(self, x: jax.Array) -> jax.Array:
        return Linear(
            (self.num_heads, self.head_dim),
            (self.embed_dim,),
            ("heads", "kv", "embed"),
            self.use_output_bias,
            self.output_init,
            self.dtype,
            self.param_dtype,
            name="out",
        )(x)

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """Zeros for `length` tokens of `batch_size` sequences, in the compute dtype."""
        shape = (batch_size, length, self.num_kv_heads, self.head_dim)
        return {"key": jnp.zeros(shape, self.dtype), "value": jnp.zeros(shape, self.dtype)}


def _write(cache: Cache, k: jax.Array, v: jax.Array, positions_BL: jax.Array) -> Cache:
    """Writes keys and values at their positions; those at -1 fall outside and are dropped."""
    rows = jnp.arange(k.shape[0])[:, None]
    slots = jnp.where(positions_BL < 0, cache["key"].shape[1], positions_BL)
    return {
        "key": cache["key"].at[rows, slots].set(k.astype(cache["key"].dtype), mode="drop"),
        "value": cache["value"].at[rows, slots].set(v.astype(cache["value"].dtype), mode="drop"),
    }
