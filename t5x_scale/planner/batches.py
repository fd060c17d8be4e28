"""From a batch in tokens to rows that divide over a mesh, the steps of a run, and a ramp at its beginning."""

from __future__ import annotations

import dataclasses
import itertools

from t5x_scale.core.errors import UserError
from t5x_scale.planner.amounts import count_text, counted
from t5x_scale.planner.meshes import MeshPlan

# A run of fewer steps hardly leaves its warm-up.
MIN_STEPS = 200
# A ramp is for long runs with large batches: a quarter of the rows for 2 % of the tokens, half of them up to 10 %.
# Gopher, Chinchilla and PaLM doubled theirs once or twice, later; GPT-3 grew its within the first 4 % of the tokens.
_RAMP = ((0.25, 0.02), (0.5, 0.08))
_RAMP_FROM_STEPS, _RAMP_FROM_TOKENS = 5000, 2**20


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """The batches of a run.

    Attributes:
      pieces: pairs (first step, rows).
      steps: of the run.
      length: tokens of a row.
    """

    pieces: tuple[tuple[int, int], ...]
    steps: int
    length: int

    @property
    def rows(self) -> int:
        """Of most of the run."""
        return self.pieces[-1][1]

    @property
    def batch_tokens(self) -> int:
        return self.rows * self.length

    @property
    def tokens(self) -> int:
        """Of the run."""
        ends = [first for first, _ in self.pieces[1:]] + [self.steps]
        rows = sum((end - first) * rows for (first, rows), end in zip(self.pieces, ends, strict=True))
        return rows * self.length

    @property
    def gin(self) -> str:
        """As BATCH_SIZE."""
        return str(self.rows) if len(self.pieces) == 1 else str(self.pieces)

    @property
    def text(self) -> str:
        """For people."""
        steady = f"{counted(self.rows, 'row')} of {self.length:,} tokens ({count_text(self.batch_tokens)})"
        if len(self.pieces) == 1:
            return steady
        first = [f"{rows:,} up to step {end:,}" for (_, rows), (end, _) in itertools.pairwise(self.pieces)]
        return f"{steady}, after {', '.join(first)}"


def choose_length(batch_tokens: float, params: float) -> int:
    """Tokens of a row: 4,096 from five billion parameters on and 2,048 below, and at least eight rows a batch."""
    longest = 4096 if params >= 5e9 else 2048
    while longest > 128 and longest * 8 > batch_tokens:
        longest //= 2
    return longest


def wanted_rows(batch_tokens: float, tokens: float, length: int) -> float:
    """Rows of a batch before they are made to divide: the run should still have `MIN_STEPS` steps.

    Raises:
      UserError: the run has fewer tokens than one row of each step.
    """
    if tokens < length:
        raise UserError(
            f"{count_text(tokens)} tokens are less than one batch of one row of {length:,}: take more tokens, more "
            "FLOPs, fewer parameters, or a shorter --length"
        )
    return max(1.0, min(batch_tokens, tokens / MIN_STEPS) / length)


def check_shares(tokens: float, length: int, shares: int) -> None:
    """Checks that a run has enough steps where each of `shares` devices has a row of every batch.

    Raises:
      UserError: it has not; says how large the machine may be.
    """
    steps = tokens / (shares * length)
    if shares > 1 and steps < MIN_STEPS / 2:
        most = max(1, int(tokens / MIN_STEPS / length))
        raise UserError(
            f"the machine is too large for the run: a batch of one row on each of {shares:,} shares is "
            f"{count_text(shares * length)} tokens, and {count_text(tokens)} are then {steps:.0f} steps; take one "
            f"of {most:,} chips or fewer, or more tokens"
        )


def make_batches(
    batch_tokens: float, tokens: float, length: int, mesh: MeshPlan = MeshPlan(), with_ramp: bool = True
) -> BatchPlan:
    """Batches of about `batch_tokens` for about `tokens` in all, whose rows divide over the mesh.

    Args:
      batch_tokens: of a batch, wanted.
      tokens: of the run.
      length: of a row.
      mesh: whose devices share the rows.
      with_ramp: whether long runs begin with smaller batches.

    Raises:
      UserError: the machine is too large for the run.
    """
    shares = mesh.row_shares
    check_shares(tokens, length, shares)
    wanted = wanted_rows(batch_tokens, tokens, length)
    # In fours, so that a quarter of them divides too, and in eights where that hardly rounds.
    unit = next((shares * part for part in (8, 4, 2) if wanted >= 8 * shares * part), shares)
    rows = max(shares, round(wanted / unit) * unit)
    steps = round(tokens / (rows * length))
    steps = max(1, steps)
    pieces = _ramp(rows, steps, tokens, length, shares) if with_ramp else [(0, rows)]
    spent = sum((end - first) * size for (first, size), (end, _) in itertools.pairwise(pieces)) * length
    steps = max(pieces[-1][0] + 1, pieces[-1][0] + round((tokens - spent) / (rows * length)))
    return BatchPlan(tuple(pieces), steps, length)


def _ramp(rows: int, steps: int, tokens: float, length: int, shares: int) -> list[tuple[int, int]]:
    is_long = steps >= _RAMP_FROM_STEPS and rows * length >= _RAMP_FROM_TOKENS
    if not is_long or rows % (4 * shares):
        return [(0, rows)]
    pieces, step = [], 0
    for part, share in _RAMP:
        size = int(rows * part)
        pieces.append((step, size))
        step += max(1, round(share * tokens / (size * length)))
    return [*pieces, (step, rows)]
