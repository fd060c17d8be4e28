"""The shapes of a decoder. Imports neither jax nor flax, so that a planner can use it without a backend."""

from __future__ import annotations

import dataclasses

from t5x_scale.core.errors import UserError, check_choice

# No float16: sums of losses and gradients over a batch leave its range.
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shapes and dtypes of a decoder.

    Attributes:
      num_layers: blocks.
      embed_dim: size of the residual stream.
      mlp_dim: hidden size of the feed-forward layer, of each expert if there are any.
      num_heads: query heads.
      num_kv_heads: key and value heads; 1 is multi-query attention, `num_heads` is multi-head.
      head_dim: size of a head; `num_heads * head_dim` need not equal `embed_dim` (PaLM 540B).
      vocab_size: rows of the embedding.
      dtype: of activations and matrix products.
      param_dtype: of the stored parameters.
      num_experts: feed-forward layers among which each token chooses; 0 is one for all tokens, without a router.
      num_experts_per_token: how many of them a token passes through; 0 if there are none.
    """

    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    num_experts: int = 0
    num_experts_per_token: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("dtype"):
                check_choice(f"ModelConfig.{field.name}", value, DTYPES)
            elif field.name.startswith("num_experts"):
                if not isinstance(value, int) or value < 0:
                    raise UserError(f"ModelConfig.{field.name} must be 0 or a positive integer, not {value!r}")
            elif not isinstance(value, int) or value < 1:
                raise UserError(f"ModelConfig.{field.name} must be a positive integer, not {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"ModelConfig: num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}"
            )
        least = min(self.num_experts, 1)
        if not least <= self.num_experts_per_token <= self.num_experts:
            raise UserError(
                f"ModelConfig: num_experts_per_token={self.num_experts_per_token} must lie between {least} and "
                f"num_experts={self.num_experts}"
            )
