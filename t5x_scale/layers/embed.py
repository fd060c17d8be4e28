"""Token embeddings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_scale.layers.initializers import Initializer, Normal
from t5x_scale.layers.ops.lookup import lookup


class TokenEmbedder(nn.Module):
    """Looks tokens up in a table [vocab, embed]. PaLM draws it from N(0, 1) (section 5).

    Attributes:
      vocab_size, embed_dim: sizes of the table.
      scale: multiplies the rows, rounded to the compute dtype first, as Gemma rounds its root of `embed_dim`.
      table_init: how the table is drawn.
    """

    vocab_size: int
    embed_dim: int
    scale: float = 1.0
    table_init: Initializer = Normal(1.0)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Rows [B, L, D] for tokens [B, L]."""
        draw = nn.with_logical_partitioning(
            lambda key, shape, dtype: self.table_init(key, shape, dtype, self.embed_dim), ("vocab", "embed")
        )
        table = self.param("embedding", draw, (self.vocab_size, self.embed_dim), self.param_dtype)
        rows = lookup(table, tokens, ("vocab", "embed"), self.dtype)
        return rows if self.scale == 1.0 else rows * jnp.asarray(self.scale, self.dtype)
