"""Of which parts an architecture is put together; the same tree becomes a model and the text of a gin file."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from t5x_scale.core.errors import UserError
from t5x_scale.layers.attention import Attention
from t5x_scale.layers.embed import TokenEmbedder
from t5x_scale.layers.initializers import Normal
from t5x_scale.layers.mlp import GatedMlp, Mlp
from t5x_scale.layers.moe import MoeMlp
from t5x_scale.layers.norm import LayerNorm, RMSNorm
from t5x_scale.layers.positions import LearnedPositions, NoPositions, RelativePositions, Rope
from t5x_scale.layers.rope_scaling import LinearScaling, Llama3Scaling, NtkScaling, RopeScaling, YarnScaling
from t5x_scale.models.architecture import ROPE_SCALING_FIELDS, Architecture, RopeScalingValues
from t5x_scale.models.blocks import ParallelBlock, SandwichBlock, SerialBlock, TwoNormParallelBlock
from t5x_scale.models.decoder import Decoder, Head
from t5x_scale.models.interface import DecoderModel

BLOCKS: dict[str, type] = {
    "serial": SerialBlock,
    "parallel": ParallelBlock,
    "two_norm_parallel": TwoNormParallelBlock,
    "sandwich": SandwichBlock,
}
NORMS: dict[str, type] = {"rms": RMSNorm, "layer": LayerNorm}
MLPS: dict[str, type] = {"gated": GatedMlp, "plain": Mlp}
POSITIONS: dict[str, type] = {
    "rope": Rope,
    "learned": NoPositions,
    "relative": RelativePositions,
    "none": NoPositions,
}
SCALINGS: dict[str, type[RopeScaling]] = {
    "linear": LinearScaling,
    "ntk": NtkScaling,
    "yarn": YarnScaling,
    "llama3": Llama3Scaling,
}

# The published configurations of most families draw everything from N(0, 0.02^2).
INIT = Normal(0.02)


@dataclasses.dataclass(frozen=True)
class Part:
    """A class with settings of its own: a module factory, which its owner calls with shapes.

    Attributes:
      factory: the class.
      settings: its arguments by name. A `Part` among them is handed on uncalled, any other value as it is.
    """

    factory: type
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_factory(self) -> Any:
        """The class itself where there are no settings, else a partial call of it."""
        if not self.settings:
            return self.factory
        values = {
            name: value.to_factory() if isinstance(value, Part) else value for name, value in self.settings.items()
        }
        return functools.partial(self.factory, **values)


def to_model(architecture: Architecture, remat: str = "none") -> DecoderModel:
    """The decoder that an architecture says, everything drawn from N(0, 0.02^2).

    Args:
      architecture: what the decoder computes.
      remat: what the backward pass keeps of a layer, as in `Decoder`.

    Raises:
      UserError: learned positions without a length, or experts with biases.
    """
    return compose(architecture, remat).to_factory()()


def compose(architecture: Architecture, remat: Any) -> Part:
    """The parts of the decoder that an architecture says, from the model downwards."""
    a = architecture.normalized()
    decoder = Part(
        Decoder,
        {
            "block": _block(a),
            "final_norm": _norm(a),
            "embedder": Part(TokenEmbedder, {"table_init": INIT} | _unless(1.0, scale=a.embedding_scale)),
            "position_embedder": _position_embedder(a),
            "head": None if a.tied else Part(Head, {"table_init": INIT}),
            "remat": remat,
            # One window for all layers is the attention's own.
            **({"windows": a.windows} if len(a.windows) > 1 else {}),
        },
    )
    logits = {"logit_scale": a.logit_scale} | _unless(None, logit_soft_cap=a.logit_soft_cap)
    return Part(DecoderModel, {"config": a.config, "decoder": decoder, **logits})


def to_scaling(values: RopeScalingValues) -> RopeScaling:
    """The scaling that plain values say."""
    fields = {name: getattr(values, name) for name in ROPE_SCALING_FIELDS[values.kind]}
    return SCALINGS[values.kind](factor=values.factor, **fields)


def _block(a: Architecture) -> Part:
    return Part(BLOCKS[a.block], {"attention": _attention(a), "mlp": _mlp(a), "norm": _norm(a)})


def _attention(a: Architecture) -> Part:
    norms = {"query_norm": _norm(a), "key_norm": _norm(a)} if a.qk_norm else {}
    return Part(
        Attention,
        {
            "positions": _positions(a),
            **norms,
            "use_bias": a.attention_bias,
            "use_output_bias": a.output_bias,
            **_unless(None, window=a.windows[0] if len(a.windows) == 1 else None),
            **_unless(None, soft_cap=a.attention_soft_cap, logit_scale=a.attention_scale),
            "kernel_init": INIT,
            "output_init": INIT,
        },
    )


def _mlp(a: Architecture) -> Part:
    inits = {"kernel_init": INIT, "output_init": INIT}
    if not a.config.num_experts:
        return Part(MLPS[a.mlp], {"activation": a.activation, "use_bias": a.mlp_bias, **inits})
    if a.mlp_bias:
        raise UserError("Architecture.mlp_bias is set: experts have no biases")
    gates = {"router": a.router, "normalize_gates": a.normalize_gates, **_unless(1.0, gate_scale=a.gate_scale)}
    losses = {"balance_loss": MoeMlp.balance_loss, "router_z_loss": MoeMlp.router_z_loss}
    settings = {"activation": a.activation, "gated": a.mlp == "gated", **gates, **losses}
    return Part(MoeMlp, {**settings, "router_init": INIT, **inits})


def _norm(a: Architecture) -> Part:
    bias = {"use_bias": a.norm_bias} if a.norm == "layer" else {}
    return Part(NORMS[a.norm], {**bias, "epsilon": a.norm_epsilon, **_unless(0.0, offset=a.norm_offset)})


def _positions(a: Architecture) -> Part:
    settings: dict[str, Any] = {}
    if a.positions == "rope":
        scaling = None if a.rope_scaling is None else to_scaling(a.rope_scaling)
        settings = {"base": a.rope_base, **_unless(1.0, fraction=a.rope_fraction)}
        settings |= {**_unless(False, interleaved=a.rope_interleaved), **_unless(None, scaling=scaling)}
    elif a.positions == "relative":
        settings = {"kernel_init": INIT, "bias_init": INIT}
    return Part(POSITIONS[a.positions], settings)


def _position_embedder(a: Architecture) -> Part | None:
    if a.positions != "learned":
        return None
    if a.max_length < 1:
        raise UserError(f"Architecture.max_length is {a.max_length}: learned positions need the length of their table")
    return Part(LearnedPositions, {"max_length": a.max_length, "table_init": INIT})


def _unless(default: Any, **settings: Any) -> dict[str, Any]:
    """The settings that differ from their default."""
    return {name: value for name, value in settings.items() if value != default}
