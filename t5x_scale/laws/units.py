"""Units of scaling laws, and the two ways to count parameters."""

from __future__ import annotations

import math

# One day at 1e15 FLOP/s.
PF_DAY = 1e15 * 24 * 3600

# A token costs two FLOPs a parameter forward and four backward (Kaplan et al. 2020, section 2.1).
FLOPS_PER_PARAM_TOKEN = 6.0


def to_pf_days(flops: float) -> float:
    """FLOPs in PF-days."""
    return flops / PF_DAY


def from_pf_days(pf_days: float) -> float:
    """PF-days in FLOPs."""
    return pf_days * PF_DAY


def training_flops(params: float, tokens: float) -> float:
    """C = 6·N·D."""
    return FLOPS_PER_PARAM_TOKEN * params * tokens


def to_bits(nats: float) -> float:
    """Nats in bits."""
    return nats / math.log(2)


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """A loss in nats a token as bits a byte, which does not depend on the tokenizer."""
    return to_bits(nats_per_token) / bytes_per_token


def non_embedding_params(num_layers: int, embed_dim: int) -> float:
    """N ≈ 12·n_layer·d_model², of a model whose feed-forward layers are four times as wide (Kaplan et al., table 1)."""
    return 12.0 * num_layers * embed_dim**2


def with_embeddings(params: float, vocab_size: int, embed_dim: int, is_tied: bool = True) -> float:
    """Parameters with the token table, and the output table where it is another one, from those without."""
    return params + (1 if is_tied else 2) * vocab_size * embed_dim


def without_embeddings(params: float, vocab_size: int, embed_dim: int, is_tied: bool = True) -> float:
    """Parameters without the token table, and the output table where it is another one, from those with."""
    return params - (1 if is_tied else 2) * vocab_size * embed_dim
