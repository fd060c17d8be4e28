"""A decoder as plain values: what stands between a model in this house and a configuration of another.

An `Architecture` says everything that gives the parameters their meaning and nothing of how a run is compiled or
initialised. It is read from another system's configuration, from what a run has on record of its model, or from a
model itself; and a model, or the gin file of one, is made from it (`models/assembly.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from t5x_scale.core.errors import check_choice
from t5x_scale.models.config import ModelConfig

BLOCKS = ("serial", "parallel", "two_norm_parallel", "sandwich")
NORMS = ("rms", "layer")
POSITIONS = ("rope", "learned", "relative", "none")
MLPS = ("gated", "plain")
ROUTERS = ("softmax_topk", "topk_softmax")

# What each kind of scaling uses of `RopeScalingValues`, beside its factor.
ROPE_SCALING_FIELDS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "ntk": (),
    "yarn": ("original_length", "beta_fast", "beta_slow", "attention_factor", "truncate"),
    "llama3": ("original_length", "low_frequency_factor", "high_frequency_factor"),
}
ROPE_SCALINGS = tuple(ROPE_SCALING_FIELDS)


@dataclasses.dataclass(frozen=True)
class RopeScalingValues:
    """How the frequencies of RoPE are changed for contexts longer than those trained on.

    Attributes:
      kind: one of `ROPE_SCALINGS`: positions divided by `factor` (linear), a larger base (ntk), by parts (yarn,
        Peng et al. 2023, arXiv 2309.00071), or Llama 3.1's ramp.
      factor: how many times longer the context becomes.
      original_length: the context that was trained on (yarn, llama3).
      low_frequency_factor, high_frequency_factor: the ends of Llama 3.1's ramp.
      beta_fast, beta_slow: the ends of YaRN's ramp, in turns over the original context.
      attention_factor: multiplies queries and keys under YaRN; None is `0.1 ln(factor) + 1`.
      truncate: whether YaRN rounds the ends of its ramp to whole dimensions.
    """

    kind: str
    factor: float
    original_length: int | None = None
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        check_choice("RopeScalingValues.kind", self.kind, ROPE_SCALINGS)

    def normalized(self) -> RopeScalingValues:
        """The same scaling with what its kind does not use at its default."""
        used = {"kind", "factor", *ROPE_SCALING_FIELDS[self.kind]}
        return _with_defaults(self, {field.name for field in dataclasses.fields(self)} - used)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a decoder computes.

    Attributes:
      config: shapes and dtypes, the number of experts among them.
      block: `serial` (pre-norm), `parallel` (one norm for both branches, PaLM), `two_norm_parallel` (GPT-NeoX), or
        `sandwich` (norms before and after each branch, Gemma 2).
      norm: `rms` or `layer`.
      norm_epsilon: of all norms.
      norm_bias: whether a LayerNorm has a bias.
      norm_offset: added to the scale of every norm (Gemma: 1, its scales are stored as differences from 1).
      attention_bias: on queries, keys and values.
      output_bias: on the attention's output.
      qk_norm: a norm over the features of each head of queries and keys, before positions (Qwen 3).
      windows: cycle of sliding windows over the layers, None where a layer sees everything; () is no window at all.
      attention_soft_cap: bound of a tanh on the attention logits, or None.
      attention_scale: multiplies the attention logits; None is `head_dim ** -0.5`.
      positions: one of `POSITIONS`.
      rope_base: base of RoPE.
      rope_fraction: share of a head's features that turn.
      rope_interleaved: pairs of RoPE are neighbours instead of halves.
      rope_scaling: for longer contexts, or None.
      max_length: rows of the table of learned positions; for all others the longest context on record, 0 if unknown.
      mlp: `gated` (three matrices) or `plain` (two).
      activation: of the feed-forward layer, a name of `layers.mlp.ACTIVATIONS`.
      mlp_bias: on all matrices of the feed-forward layer.
      router: for experts: softmax over all and then the top k, or the other way round.
      normalize_gates: for `softmax_topk`: whether the gates of the chosen experts are divided by their sum.
      gate_scale: multiplies the gates.
      embedding_scale: multiplies the embeddings (Gemma: the root of embed_dim).
      tied: the output table is the token table.
      logit_scale: multiplies the logits.
      logit_soft_cap: bound of a tanh on the logits, or None.
    """

    config: ModelConfig
    block: str = "serial"
    norm: str = "rms"
    norm_epsilon: float = 1e-6
    norm_bias: bool = False
    norm_offset: float = 0.0
    attention_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()
    attention_soft_cap: float | None = None
    attention_scale: float | None = None
    positions: str = "rope"
    rope_base: float = 10000.0
    rope_fraction: float = 1.0
    rope_interleaved: bool = False
    rope_scaling: RopeScalingValues | None = None
    max_length: int = 0
    mlp: str = "gated"
    activation: str = "silu"
    mlp_bias: bool = False
    router: str = "softmax_topk"
    normalize_gates: bool = True
    gate_scale: float = 1.0
    embedding_scale: float = 1.0
    tied: bool = False
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None

    def __post_init__(self) -> None:
        for field, choices in (
            ("block", BLOCKS),
            ("norm", NORMS),
            ("positions", POSITIONS),
            ("mlp", MLPS),
            ("router", ROUTERS),
        ):
            check_choice(f"Architecture.{field}", getattr(self, field), choices)

    def with_config(self, **changes: object) -> Architecture:
        """The same architecture in other shapes or dtypes."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changes))

    def normalized(self) -> Architecture:
        """The same decoder with what has no meaning for it at its default, and the shortest cycle of windows.

        What it computes is the same; of contexts it keeps no more than the table of learned positions needs.
        """
        idle: set[str] = set()
        if self.norm != "layer":
            idle |= {"norm_bias"}
        if self.positions != "rope":
            idle |= {"rope_base", "rope_fraction", "rope_interleaved", "rope_scaling"}
        if self.positions != "learned":
            idle |= {"max_length"}
        if not self.config.num_experts:
            idle |= {"router", "normalize_gates", "gate_scale"}
        elif self.router != "softmax_topk":
            idle |= {"normalize_gates"}
        normal = _with_defaults(self, idle)
        return dataclasses.replace(
            normal,
            windows=shortest_cycle(self.windows, self.config.num_layers),
            rope_scaling=normal.rope_scaling and normal.rope_scaling.normalized(),
        )


def shortest_cycle(windows: Sequence[int | None], num_layers: int) -> tuple[int | None, ...]:
    """The shortest cycle that gives every layer the window it has from `windows`; () if no layer has one."""
    layers = tuple(windows[index % len(windows)] for index in range(num_layers)) if windows else ()
    if not any(layers):
        return ()
    length = next(n for n in range(1, num_layers + 1) if layers[n:] == layers[:-n])
    return layers[:length]


def _with_defaults(value: Any, names: Collection[str]) -> Any:
    """The dataclass with the fields `names` at their defaults."""
    return dataclasses.replace(value, **{f.name: f.default for f in dataclasses.fields(value) if f.name in names})
