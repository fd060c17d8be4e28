"""T5X's decoders: their names of parameters, layers one by one or stacked by a scan, and what only looks alike.

Names are those below `target`, joined with dots. T5X's kernels have all heads in one dimension (`joined_kv`); its scan
puts the dimension of the layers second (`param_scan_axis = 1`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from t5x_scale.core.errors import UserError
from t5x_scale.core.lazy import LazyArray
from t5x_scale.interop.mapping import Row, row
from t5x_scale.interop.operations import Operation, Split, Transpose
from t5x_scale.models.architecture import Architecture

LOGGER = logging.getLogger("t5x_scale.interop")

_OURS = "decoder/layers"
_ONE_BY_ONE, _SCANNED = "decoder.layers_{layer}", "decoder.decoder"
_NORMS = (("pre_norm", "pre_self_attention_layer_norm"), ("pre_mlp_norm", "pre_mlp_layer_norm"))
# Minimal encoder-decoders of T5X share the table of both sides, so that it stands beside the decoder.
_TABLES = ("decoder.token_embedder.embedding", "token_embedder.embedding")


def rows_of(architecture: Architecture, tensors: Mapping[str, LazyArray]) -> list[Row]:
    """The table of a decoder whose tensors are called so."""
    c = architecture.config
    table = _TABLES[1] if _TABLES[1] in tensors else _TABLES[0]
    rows = [row("token_embedder/embedding", table), row("decoder/final_norm/scale", "decoder.decoder_norm.scale")]
    if not architecture.tied:
        rows.append(row("logits/kernel", "decoder.logits_dense.kernel"))
    scan = _scan_axis(architecture, tensors)
    rows += [_layer_row(f"{ours}/scale", f"{theirs}.scale", 1, scan) for ours, theirs in _NORMS]
    for name, heads in (("query", c.num_heads), ("key", c.num_kv_heads), ("value", c.num_kv_heads)):
        path, by_head = f"self_attention/{name}/kernel", (1, (heads, c.head_dim))
        rows.append(_layer_row(path, path.replace("/", "."), 2, scan, by_head))
    out, by_head = "self_attention/out/kernel", (0, (c.num_heads, c.head_dim))
    rows.append(_layer_row(out, out.replace("/", "."), 2, scan, by_head))
    for name in ("wi_0", "wi_1", "wo") if architecture.mlp == "gated" else ("wi", "wo"):
        rows.append(_layer_row(f"mlp/{name}/kernel", f"mlp.{name}.kernel", 2, scan))
    return rows


def _layer_row(
    ours: str, theirs: str, ndim: int, scan: int | None, split: tuple[int, tuple[int, ...]] | None = None
) -> Row:
    """A row for a parameter of `ndim` dimensions a layer, of which `split` takes one apart into heads."""
    if scan is None:
        operations: list[Operation] = [] if split is None else [Split(*split)]
        return row(f"{_OURS}/{ours}", f"{_ONE_BY_ONE}.{theirs}", *operations)
    others = [axis for axis in range(ndim + 1) if axis != scan]
    operations = [] if scan == 0 else [Transpose((scan, *others))]
    if split is not None:
        operations.append(Split(split[0] + 1, split[1]))
    return row(f"{_OURS}/{ours}", f"{_SCANNED}.{theirs}", *operations)


def _scan_axis(architecture: Architecture, tensors: Mapping[str, LazyArray]) -> int | None:
    """The dimension of the layers in stacked tensors; None where each layer has tensors of its own."""
    scale = tensors.get(f"{_SCANNED}.{_NORMS[0][1]}.scale")
    if scale is None:
        return None
    config = architecture.config
    is_first = scale.shape == (config.num_layers, config.embed_dim) and config.num_layers != config.embed_dim
    return 0 if is_first else 1


def check_decoder(tensors: Mapping[str, LazyArray], architecture: Architecture, where: str) -> None:
    """Checks that the tensors are of a decoder that our models can be.

    Raises:
      UserError: they are of an encoder, or have T5's relative positions, or the architecture is none of T5X's.
    """
    for name in tensors:
        if name.startswith("encoder.") or ".encoder_decoder_attention." in name:
            raise UserError(f"{where} is an encoder-decoder ('{name}'); only decoder-only models are read")
        if "relpos_bias" in name:
            raise UserError(
                f"{where} has T5's bucketed relative positions ('{name}'), which are no position scheme of ours; "
                "decoders without them are read"
            )
    for field, wanted in (("block", "serial"), ("norm", "rms"), ("norm_offset", 0.0)):
        value = getattr(architecture, field)
        if value != wanted:
            raise UserError(f"{where} is a T5X decoder, whose {field} is {wanted!r}; the model given has {value!r}")


def warn_of_scales(architecture: Architecture, where: str) -> None:
    """Says what tensors cannot tell: T5X's own decoders scale no attention logits, but those of a tied table."""
    head_dim, embed_dim = architecture.config.head_dim, architecture.config.embed_dim
    scale = head_dim**-0.5 if architecture.attention_scale is None else architecture.attention_scale
    if not math.isclose(scale, 1.0):
        LOGGER.warning(
            "%s: T5X's own decoders do not scale attention logits, the model given multiplies them by %.4g; set its "
            "attention_scale to 1.0 unless the one that was trained rescaled them",
            *(where, scale),
        )
    if architecture.tied and not math.isclose(architecture.logit_scale, embed_dim**-0.5):
        LOGGER.warning(
            "%s: T5X's own decoders multiply the logits of a tied table by embed_dim ** -0.5 = %.4g, the model given "
            "by %.4g; set its logit_scale unless the one that was trained did not",
            *(where, embed_dim**-0.5, architecture.logit_scale),
        )
