"""A sensible run for a model on a machine, for `precompile` without a run file (gin/runs/precompile.gin).

Nothing here is a recommendation for training: these are sizes at which to ask a compiler what a machine can do.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence

from t5x_scale.core import batch as fields
from t5x_scale.core.trees import flatten
from t5x_scale.data.batch_schedule import BatchSchedule, make_batch_schedule
from t5x_scale.data.pipeline import FEATURE, DataConfig
from t5x_scale.models.blocks import ParallelBlock, TwoNormParallelBlock
from t5x_scale.models.interface import DecoderModel
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.interface import Optimizer
from t5x_scale.optim.palm_adafactor import PalmAdafactor
from t5x_scale.optim.schedules import ConstantThenRsqrt, Cosine
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.proposals import divisors
from t5x_scale.partitioning.rules import Rules
from t5x_scale.partitioning.shardings import to_spec

# PaLM's largest batch, 2,048 x 2,048; Llama's batches are of the same size.
TOKENS_PER_STEP = 2**22
# Tokens that one device works on at once, where several devices share a token counted in parts.
TOKENS_AT_ONCE = 2**13
_POSITION_TABLE = "position_embedder/embedding"


def optimizer(model: DecoderModel) -> Optimizer:
    """PaLM's for its block, AdamW for every other."""
    if _is_block(model, ParallelBlock):
        return PalmAdafactor(learning_rate=ConstantThenRsqrt())
    return AdamW(learning_rate=Cosine(peak=3e-4, warmup_steps=2000, floor_ratio=0.1, total_steps=100_000))


def lengths(model: DecoderModel) -> dict[str, int]:
    """2,048 tokens a row for parallel blocks, as PaLM and Pythia; 4,096 for others, or a table of positions' size."""
    if model.module.position_embedder is not None:
        return {FEATURE: flatten(model.abstract_params())[_POSITION_TABLE].shape[0]}
    return {FEATURE: 2048 if _is_block(model, ParallelBlock, TwoNormParallelBlock) else 4096}


def rows(mesh: MeshConfig, rules: Rules, lengths: Mapping[str, int]) -> int:
    """Rows of four million tokens, or one for every part of the mesh that takes rows of its own if those are more."""
    shares = _shares(mesh, rules)[0]
    return max(math.ceil(TOKENS_PER_STEP // _length(lengths) / shares), 1) * shares


def micro_batches(
    mesh: MeshConfig, rules: Rules, rows: int | Sequence[tuple[int, int]] | BatchSchedule, lengths: Mapping[str, int]
) -> int:
    """The fewest that leave a device no more than `TOKENS_AT_ONCE` of every batch; never less than a row each."""
    row_shares, token_shares = _shares(mesh, rules)
    sizes = make_batch_schedule(rows).sizes()
    own_rows = math.gcd(*(size // row_shares for size in sizes if size % row_shares == 0)) or 1
    tokens = max(sizes) * _length(lengths) / token_shares
    return next((part for part in divisors(own_rows) if tokens / part <= TOKENS_AT_ONCE), own_rows)


def _shares(mesh: MeshConfig, rules: Rules) -> tuple[int, int]:
    """Into how many parts the mesh splits the rows of a batch, and all of the work on it."""
    abstract = mesh.make_abstract_mesh()
    spec = to_spec(rules, fields.AXES, abstract)
    names = [] if not spec or spec[0] is None else [spec[0]] if isinstance(spec[0], str) else list(spec[0])
    return math.prod(abstract.shape[name] for name in names), abstract.size // abstract.shape["stage"]


def _length(lengths: Mapping[str, int]) -> int:
    """Tokens of a row, which are checked in the words of the run's data."""
    return DataConfig("any", "any", lengths, 1).sequence_length


def _is_block(model: DecoderModel, *kinds: type) -> bool:
    block = model.module.block
    return inspect.isclass(block) and issubclass(block, kinds)
