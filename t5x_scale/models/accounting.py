"""What a decoder costs: parameters, FLOPs and bytes, in closed form. Imports neither jax nor flax.

Symbols as in PaLM's appendix B: N parameters, L layers, H query heads, Q head size, T sequence length. A
multiplication and its addition are two FLOPs. Only matrix products are counted: norms, softmax, activations and
look-ups are not.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.models.config import ModelConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Share of the T x T square of queries and keys that counts.
CONVENTIONS = {"full": 1.0, "causal": 0.5}


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What parameters a family has, beside its sizes.

    Attributes:
      gated_mlp: three matrices (SwiGLU) instead of two.
      tied_head: the output table is the token table.
      attention_bias: of queries, keys and values.
      output_bias: of the attention's output.
      mlp_bias: of all matrices of the feed-forward layer.
      norm_bias: norms have a bias beside their scale.
      norms_per_block: norms of the size of the residual stream in one layer.
      qk_norm: a norm over the features of a head for queries, and one for keys.
      learned_positions: rows of a learned table of positions; 0 is none.
      relative_positions: Transformer-XL's, one matrix and two vectors a head in every layer.
    """

    gated_mlp: bool = False
    tied_head: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    norms_per_block: int = 2
    qk_norm: bool = False
    learned_positions: int = 0
    relative_positions: bool = False


_BIASES = {"attention_bias": True, "output_bias": True, "mlp_bias": True, "norm_bias": True}

# The folders of gin/models; Chinchilla is Gopher in another shape, Mistral and Mixtral are Llamas. Qwen's small models
# share their table, its large ones do not.
ANATOMIES: dict[str, Anatomy] = {
    "palm": Anatomy(gated_mlp=True, tied_head=True, norms_per_block=1),
    "llama": Anatomy(gated_mlp=True),
    "gopher": Anatomy(tied_head=True, relative_positions=True),
    "gpt3": Anatomy(tied_head=True, learned_positions=2048, **_BIASES),
    "gpt2": Anatomy(tied_head=True, learned_positions=1024, **_BIASES),
    "pythia": Anatomy(**_BIASES),
    "qwen2": Anatomy(gated_mlp=True, attention_bias=True),
    "qwen3": Anatomy(gated_mlp=True, qk_norm=True),
    "gemma": Anatomy(gated_mlp=True, tied_head=True),
    "gemma2": Anatomy(gated_mlp=True, tied_head=True, norms_per_block=4),
}


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters.

    Attributes:
      total: all of them.
      embedding: the token table.
      positions: the learned table of positions.
      head: an output table of its own; 0 when the token table is shared.
      per_layer: one layer, all of its experts.
      experts: matrices of all experts, all layers.
      relative: matrices of relative positions, all layers. They meet distances, not tokens.
      matmul: PaLM's N: what every token is multiplied with, the output table (shared or not) included. Of the experts
        only as many count as a token passes through. Tables that are only looked up, `relative`, norms and biases are
        not in it.
      active: all of them but the experts that a token does not pass through.
    """

    total: int
    embedding: int
    positions: int
    head: int
    per_layer: int
    experts: int
    relative: int
    matmul: int
    active: int


def find_anatomy(family: str) -> Anatomy:
    """The anatomy of a named family.

    Raises:
      UserError: naming the nearest known family.
    """
    if family not in ANATOMIES:
        raise UserError(f"unknown model family '{family}'{did_you_mean(family, ANATOMIES)}")
    return ANATOMIES[family]


def count_parameters(config: ModelConfig, anatomy: Anatomy) -> ParameterCount:
    """Counts in closed form what a decoder of this shape and anatomy has."""
    table = config.vocab_size * config.embed_dim
    norm = config.embed_dim * (2 if anatomy.norm_bias else 1)
    query = config.num_heads * config.head_dim
    relative = config.embed_dim * query if anatomy.relative_positions else 0
    kernels, biases = _layer(config, anatomy)
    experts, idle = _experts(config, anatomy)
    vectors = (2 * query if anatomy.relative_positions else 0) + (2 * config.head_dim if anatomy.qk_norm else 0)
    per_layer = kernels + experts + biases + relative + vectors + anatomy.norms_per_block * norm
    positions = anatomy.learned_positions * config.embed_dim
    head = 0 if anatomy.tied_head else table
    total = table + positions + head + config.num_layers * per_layer + norm
    return ParameterCount(
        total=total,
        embedding=table,
        positions=positions,
        head=head,
        per_layer=per_layer,
        experts=config.num_layers * experts,
        relative=config.num_layers * relative,
        matmul=config.num_layers * (kernels + experts - idle) + table,
        active=total - config.num_layers * idle,
    )


def _layer(config: ModelConfig, anatomy: Anatomy) -> tuple[int, int]:
    """Elements of the kernels and of the biases of one layer, without experts."""
    query, key_value = config.num_heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
    inner = config.mlp_dim * (2 if anatomy.gated_mlp else 1)
    # A router instead of the feed-forward layer, where there are experts.
    feed_forward = config.num_experts or inner + config.mlp_dim
    kernels = config.embed_dim * (2 * query + key_value + feed_forward)
    biases = anatomy.attention_bias * (query + key_value)
    biases += anatomy.output_bias * config.embed_dim
    biases += anatomy.mlp_bias * (inner + config.embed_dim)
    return kernels, biases


def _experts(config: ModelConfig, anatomy: Anatomy) -> tuple[int, int]:
    """Elements of all experts of one layer, and of those that a token does not pass through."""
    one = config.embed_dim * config.mlp_dim * (3 if anatomy.gated_mlp else 2)
    return config.num_experts * one, (config.num_experts - config.num_experts_per_token) * one


def count_tree(shapes: Mapping[str, Sequence[int]], num_experts_per_token: int = 0) -> ParameterCount:
    """Counts the parameters of an actual decoder.

    Args:
      shapes: path -> shape of every parameter, the paths as in `core.trees.flatten`.
      num_experts_per_token: how many experts a token passes through; needed where there are any.
    """
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    layers = {path: size for path, size in sizes.items() if re.match(r"decoder/layers(_\d+)?/", path)}
    relative = sum(size for path, size in layers.items() if path.endswith("/positions/kernel"))
    kernels = sum(size for path, size in layers.items() if path.endswith("/kernel")) - relative
    experts = {path: size for path, size in layers.items() if "/experts/" in path}
    if experts and not num_experts_per_token:
        raise ValueError("count_tree: there are experts, and num_experts_per_token is not given")
    # The last three dimensions of a kernel are expert, in and out.
    chosen = sum(size // shapes[path][-3] * num_experts_per_token for path, size in experts.items())
    idle = sum(experts.values()) - chosen
    embedding = sizes.get("token_embedder/embedding", 0)
    head = sizes.get("logits/kernel", 0)
    return ParameterCount(
        total=sum(sizes.values()),
        embedding=embedding,
        positions=sizes.get("position_embedder/embedding", 0),
        head=head,
        per_layer=sum(layers.values()) // max(_number_of_layers(shapes), 1),
        experts=sum(experts.values()),
        relative=relative,
        matmul=kernels - idle + (head or embedding),
        active=sum(sizes.values()) - idle,
    )


def _number_of_layers(shapes: Mapping[str, Sequence[int]]) -> int:
    stacked = {shape[0] for path, shape in shapes.items() if path.startswith("decoder/layers/")}
    if stacked:
        return max(stacked)
    return len({path.split("/")[1] for path in shapes if path.startswith("decoder/layers_")})


def attention_flops_per_token(
    count: ParameterCount, config: ModelConfig, length: int, *, convention: str = "full"
) -> float:
    """Forward FLOPs a token of the products of queries with keys and of weights with values: `4 L H Q T`.

    Relative positions add a third product of the same size. `convention` "full" counts the whole square, as PaLM
    does; "causal" the half below the diagonal, as MegaScale does.

    Raises:
      UserError: unknown convention.
    """
    if convention not in CONVENTIONS:
        raise UserError(f"unknown FLOPs convention '{convention}'{did_you_mean(convention, CONVENTIONS)}")
    products = 3 if count.relative else 2
    square = 2 * products * config.num_layers * config.num_heads * config.head_dim * length
    return CONVENTIONS[convention] * square


def forward_flops_per_token(
    count: ParameterCount, config: ModelConfig, length: int, *, convention: str = "full"
) -> float:
    """FLOPs a token of one forward pass: `2N + 4LHQT`."""
    return 2 * count.matmul + attention_flops_per_token(count, config, length, convention=convention)


def train_flops_per_token(
    count: ParameterCount, config: ModelConfig, length: int, *, convention: str = "full"
) -> float:
    """Model FLOPs a token of forward and backward, `6N + 12LHQT`: what MFU counts (PaLM, appendix B).

    Rematerialisation is not in it, nor is the step of the optimiser.
    """
    return 3 * forward_flops_per_token(count, config, length, convention=convention)


def hardware_flops_per_token(
    count: ParameterCount, config: ModelConfig, length: int, *, recomputed: float = 1.0, convention: str = "full"
) -> float:
    """FLOPs a token with rematerialisation: what HFU counts.

    Args:
      count: of the model.
      config: of the model.
      length: of a sequence.
      recomputed: share of the forward pass that the backward pass does again; 1 is full remat, `8N + 16LHQT`.
      convention: as for `attention_flops_per_token`.
    """
    return (3 + recomputed) * forward_flops_per_token(count, config, length, convention=convention)


def parameter_bytes(count: ParameterCount, dtype: str) -> int:
    """Bytes of one copy of the parameters (or of their gradients) in `dtype`."""
    return count.total * DTYPE_BYTES[dtype]


def state_bytes(count: ParameterCount, config: ModelConfig, *, moments: int = 2, moment_dtype: str = "float32") -> int:
    """Bytes of the parameters as stored and of the optimiser's state, on all devices together.

    Args:
      count: of the model.
      config: gives the dtype of the parameters.
      moments: tensors of the parameters' shape that the optimiser keeps: 2 for Adam and PaLM's Adafactor, 1 for
        Lion and Muon. Factored moments count as 0.
      moment_dtype: of those.
    """
    return parameter_bytes(count, config.param_dtype) + moments * parameter_bytes(count, moment_dtype)


def cache_bytes(config: ModelConfig, batch_size: int, length: int) -> int:
    """Bytes of the keys and values of `batch_size` sequences of `length` tokens, in the compute dtype."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return batch_size * length * per_token * DTYPE_BYTES[config.dtype]
