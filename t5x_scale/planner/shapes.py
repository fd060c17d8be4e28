"""From a number of parameters to the shape of a decoder that divides over a mesh."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.models.accounting import Anatomy, ParameterCount, count_parameters, find_anatomy
from t5x_scale.models.config import ModelConfig
from t5x_scale.planner.meshes import MeshPlan

FAMILIES = ("llama", "palm")
USUAL_FAMILY = "llama"
# Rows and columns of a matrix unit: what sizes are multiples of. The smallest models are smaller than one.
UNIT, SMALL_UNIT, SMALL = 128, 16, 1e6
# Where grouped queries begin, with how many key-value heads (Llama 2: 34B has them and 13B has not).
_GROUPED_FROM, _GROUPED_HEADS = 2e10, 8
# How much a relative error of the parameters weighs against one of the ratio of width to depth.
_ERROR_WEIGHT = 20.0
_CLOSE = 0.02
# A single layer cannot put heads together, and copies nothing it has seen (Elhage et al. 2021; Olsson et al. 2022,
# arXiv 2209.11895): in the runs of `make sweep-demo` two layers of half the size had the lower loss.
_SINGLE_LAYER = 6.0
# Beyond this factor it is another model than the one that was asked for.
_FARTHEST = 1.4


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder: family, sizes, and what they come to; `own_anatomy` is where it differs from its family's."""

    family: str
    config: ModelConfig
    own_anatomy: Anatomy | None = None

    @property
    def anatomy(self) -> Anatomy:
        return self.own_anatomy or find_anatomy(self.family)

    @property
    def count(self) -> ParameterCount:
        return count_parameters(self.config, self.anatomy)

    @property
    def non_embedding(self) -> int:
        """Parameters without the token tables."""
        return self.count.total - self.count.embedding - self.count.head


def width_to_depth(params: float) -> float:
    """`embed_dim / num_layers`: 32 for a million parameters, 128 from seven billion on.

    Between those what lies among published shapes: 64 at GPT-3's 125M, 85 at its 1.3B, 128 at Llama's 7B, 102 at 70B,
    130 at 405B. Loss hardly depends on it within a factor of two (Kaplan et al. 2020, section 3.1).
    """
    along = (math.log10(params) - 6) / (math.log10(7e9) - 6)
    return 32 + (128 - 32) * min(max(along, 0.0), 1.0)


def embed_dim_near(params: float) -> float:
    """The width for about so many parameters without tables, before it is rounded: N = 12 L d^2."""
    return (params * width_to_depth(params) / 12) ** (1 / 3)


def vocabulary_unit(params: float, mesh: MeshPlan) -> int:
    """What a vocabulary is a multiple of: whole matrix units on each device that splits it."""
    return (UNIT if params >= SMALL else SMALL_UNIT) * mesh.model


def make_shape(params: float, vocab_size: int, family: str = USUAL_FAMILY, mesh: MeshPlan = MeshPlan()) -> Shape:
    """The shape of a model of about `params` parameters, all of them counted.

    Embedding, heads, feed-forward layer and vocabulary divide over the mesh; sizes are multiples of 128 (of 16 below a
    million parameters). Heads need not fill the embedding, as in PaLM 540B.

    Args:
      params: to come near to.
      vocab_size: of the token table; a multiple of what `vocabulary_unit` says.
      family: `llama` or `palm`.
      mesh: to divide over.

    Raises:
      UserError: unknown family, or no shape comes near.
    """
    check_choice("--family", family, FAMILIES)
    unit = math.lcm(_width_unit(params), mesh.fsdp)
    shapes = [shape for embed in _widths(params, unit) for shape in _of_width(params, embed, vocab_size, family, mesh)]
    best = min(shapes, key=lambda shape: _score(shape, params))
    if not 1 / _FARTHEST < best.count.total / params < _FARTHEST:
        raise UserError(
            f"no model of {params:,.0f} parameters has a vocabulary of {vocab_size:,} and a width that is a multiple "
            f"of {unit}; the nearest has {best.count.total:,}: take other parameters, another --vocab_size, or fewer "
            "chips"
        )
    return best


def _width_unit(params: float) -> int:
    """Wider models come in wider steps, so that their heads divide by eight."""
    if params < SMALL:
        return SMALL_UNIT
    return next(unit for unit, limit in ((128, 1500), (256, 3000), (512, 5000), (1024, math.inf))
                if embed_dim_near(params) < limit)  # fmt: skip


def _score(shape: Shape, params: float) -> float:
    error = abs(math.log(shape.count.total / params))
    ideal = width_to_depth(max(shape.non_embedding, 1))
    proportions = abs(math.log(shape.config.embed_dim / shape.config.num_layers / ideal))
    return _ERROR_WEIGHT * max(error - _CLOSE, 0) + proportions + _SINGLE_LAYER * (shape.config.num_layers == 1)


def _widths(params: float, unit: int) -> Iterator[int]:
    """Multiples of `unit` within a factor of three of the ideal width, and always the smallest."""
    ideal = embed_dim_near(params)
    first, last = max(1, math.ceil(ideal / 3 / unit)), max(1, math.floor(ideal * 3 / unit))
    # No more than about a hundred: of very wide models the step may be coarser.
    step = max(1, (last - first) // 100)
    return (unit * number for number in itertools.chain([1] if first > 1 else [], range(first, last + 1, step)))


def _of_width(params: float, embed: int, vocab_size: int, family: str, mesh: MeshPlan) -> Iterator[Shape]:
    head_dim, heads, kv_heads = _heads(params, embed, family, mesh)
    grouped = kv_heads < heads
    usual = 4.0 if family == "palm" else 3.5 if grouped else 8 / 3
    inner_unit = (UNIT if params >= SMALL else SMALL_UNIT) * mesh.model
    inner = max(inner_unit, round(usual * embed / inner_unit) * inner_unit)

    def shape(layers: int, mlp: int) -> Shape:
        return Shape(family, ModelConfig(layers, embed, mlp, heads, kv_heads, head_dim, vocab_size))

    one = shape(1, inner)
    a_layer = one.count.per_layer
    room = (params - (one.count.total - a_layer)) / a_layer
    for layers in {max(1, math.floor(room)), max(1, math.ceil(room))}:
        made = shape(layers, inner)
        # A shallow model comes nearer by the size of its feed-forward layer.
        missing = (params - made.count.total) / (3 * embed * layers * inner_unit)
        other = inner + round(missing) * inner_unit
        if 0.6 * usual * embed <= other <= 1.5 * usual * embed and other != inner:
            yield shape(layers, other)
        yield made


def _heads(params: float, embed: int, family: str, mesh: MeshPlan) -> tuple[int, int, int]:
    """Size of a head, query heads and key-value heads."""
    # At least four heads, and eight of 128; PaLM's heads of 256 begin at a width of 4,096.
    sizes = {256: 4096 if family == "palm" else math.inf, 128: 1024, 64: 256, 32: 128, 16: 64, 8: 0}
    head_dim = next(size for size, least in sizes.items() if embed >= least)
    heads = max(1, round(embed / head_dim / mesh.model)) * mesh.model
    if family == "palm":
        return head_dim, heads, 1
    if params < _GROUPED_FROM:
        return head_dim, heads, heads
    return head_dim, heads, next(n for n in range(_GROUPED_HEADS, 0, -1) if heads % n == 0)
