"""What several families share: shapes, windows, and the rows of Llama's naming of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t5x_scale.interop.families.fields import DTYPES, Fields
from t5x_scale.interop.mapping import Row, row
from t5x_scale.interop.operations import Operation, Split, Transpose
from t5x_scale.models.architecture import Architecture, shortest_cycle
from t5x_scale.models.config import ModelConfig

OURS = "decoder/layers"
THEIRS = "model.layers.{layer}"

# Linear layers of torch are [out, in]; ours are [in, out].
TURNED = Transpose((1, 0))

# A buffer of older checkpoints.
INVERSE_FREQUENCIES = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"


def read_shapes(fields: Fields, **changes: Any) -> ModelConfig:
    """The shapes in Llama's field names. Their float16 becomes float32 parameters, in which no value is lost.

    Raises:
      UserError: a number is missing or does not fit the others; in the names of the configuration.
    """
    heads = fields.integer("num_attention_heads")
    embed_dim = fields.integer("hidden_size")
    dtype = fields.choice("dtype" if "dtype" in fields else "torch_dtype", DTYPES, "float32")
    values = {
        "num_layers": fields.layers("num_hidden_layers"),
        "embed_dim": embed_dim,
        "mlp_dim": fields.integer("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": fields.integer("num_key_value_heads", heads),
        "head_dim": fields.integer("head_dim", None) or embed_dim // heads,
        "vocab_size": fields.integer("vocab_size"),
        "dtype": dtype,
        "param_dtype": dtype,
    }
    values |= changes
    if heads % values["num_kv_heads"]:
        raise fields.error("num_key_value_heads", values["num_kv_heads"], f"it must divide num_attention_heads={heads}")
    if not values["head_dim"]:
        raise fields.error("num_attention_heads", heads, f"it must be hidden_size={embed_dim} or less")
    return ModelConfig(**values)


def write_shapes(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_shapes`; dtypes are written by the registry."""
    return {
        "hidden_size": config.embed_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
    }


def read_layer_types(fields: Fields, window: int | None, default: Sequence[str], layers: int) -> tuple[int | None, ...]:
    """Windows from the list `layer_types`, or from the family's rule where there is none."""
    types = fields.get("layer_types", list(default))
    if not isinstance(types, list) or len(types) != layers:
        raise fields.error("layer_types", types, f"it must be a list of {layers}, one a layer")
    kinds = {"full_attention": None, "sliding_attention": window}
    for kind in types:
        if kind not in kinds:
            raise fields.error("layer_types", kind, f"supported are {', '.join(kinds)}")
    if window is None and "sliding_attention" in types:
        raise fields.error("sliding_window", window, "layers of sliding_attention need a window")
    return shortest_cycle([kinds[kind] for kind in types], layers)


def write_layer_types(architecture: Architecture) -> tuple[int | None, list[str]]:
    """The window and the list `layer_types`. Of several windows the first is written; reading it back shows that."""
    windows = every_window(architecture)
    window = next((one for one in windows if one is not None), None)
    return window, ["full_attention" if one is None else "sliding_attention" for one in windows]


def every_window(architecture: Architecture) -> list[int | None]:
    """The window of each layer."""
    windows = architecture.windows or (None,)
    return [windows[layer % len(windows)] for layer in range(architecture.config.num_layers)]


def embedding_rows(architecture: Architecture, embedding: str, head: str) -> list[Row]:
    """The token table, and the output table where it is another."""
    rows = [row("token_embedder/embedding", embedding)]
    return rows if architecture.tied else [*rows, row("logits/kernel", head, TURNED)]


def norm_rows(ours: str, theirs: str, bias: bool = False) -> list[Row]:
    """A norm: a scale, and a bias if it has one."""
    rows = [row(f"{ours}/scale", f"{theirs}.weight")]
    return [*rows, row(f"{ours}/bias", f"{theirs}.bias")] if bias else rows


def linear_rows(ours: str, theirs: str, bias: bool = False) -> list[Row]:
    """A linear layer from one dimension to one."""
    rows = [row(f"{ours}/kernel", f"{theirs}.weight", TURNED)]
    return [*rows, row(f"{ours}/bias", f"{theirs}.bias")] if bias else rows


def attention_rows(architecture: Architecture, halves: Sequence[Operation] = ()) -> list[Row]:
    """Attention with projections of its own for queries, keys and values.

    Args:
      architecture: the heads, and which projections have biases.
      halves: what turns the features of a head, the last dimension, into ours, for queries and keys.
    """
    c = architecture.config
    rows: list[Row] = []
    for ours, theirs, heads in (
        ("query", "q", c.num_heads),
        ("key", "k", c.num_kv_heads),
        ("value", "v", c.num_kv_heads),
    ):
        turn = () if ours == "value" else tuple(halves)
        by_head = Split(0, (heads, c.head_dim))
        path, name = f"{OURS}/self_attention/{ours}", f"{THEIRS}.self_attn.{theirs}_proj"
        rows.append(row(f"{path}/kernel", f"{name}.weight", TURNED, Split(1, by_head.sizes), *turn))
        if architecture.attention_bias:
            rows.append(row(f"{path}/bias", f"{name}.bias", by_head, *turn))
    out = (f"{OURS}/self_attention/out", f"{THEIRS}.self_attn.o_proj")
    rows.append(row(f"{out[0]}/kernel", f"{out[1]}.weight", TURNED, Split(0, (c.num_heads, c.head_dim))))
    if architecture.output_bias:
        rows.append(row(f"{out[0]}/bias", f"{out[1]}.bias"))
    if architecture.qk_norm:
        rows += norm_rows(f"{OURS}/self_attention/query_norm", f"{THEIRS}.self_attn.q_norm")
        rows += norm_rows(f"{OURS}/self_attention/key_norm", f"{THEIRS}.self_attn.k_norm")
    return rows


def gated_mlp_rows(architecture: Architecture) -> list[Row]:
    """Three matrices: the gate, what is gated, and the way back."""
    names = (("wi_0", "gate_proj"), ("wi_1", "up_proj"), ("wo", "down_proj"))
    return [
        one
        for ours, theirs in names
        for one in linear_rows(f"{OURS}/mlp/{ours}", f"{THEIRS}.mlp.{theirs}", architecture.mlp_bias)
    ]
