"""What was asked for, checked: which quantities are given, and that they can be together."""

from __future__ import annotations

import dataclasses

from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.planner.amounts import Amount, count_text, days_text, parse_amount, parse_whole
from t5x_scale.planner.shapes import FAMILIES, USUAL_FAMILY
from t5x_scale.planner.slices import Slice, parse_slice

SECONDS_A_DAY = 86400.0
# Share of a chip's peak where nothing is known: PaLM 540B reached 46 %, MaxText's published runs 45 to 72 %.
USUAL_MFU = 0.5
# A run of about so many days is looked for where nothing is said.
USUAL_DAYS = 30.0
# What could have been written, where it is another thing than a count.
_EXAMPLES = {"flops": "1e22", "days": "14"}
# From less than a test to more than anything that is planned on earth.
_SMALLEST, _LARGEST = 1e9, 1e30


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a person gives of a run; None is what the plan shall say.

    Attributes:
      flops: of the whole training.
      params: of the model, tables included.
      tokens: trained on, repetitions included.
      unique_tokens: that there are.
      machine: it runs on.
      generation: of the machine, where that is all that is given.
      days: it may take.
      mfu: share of the peak that is reached.
      mfu_source: who says so; "" where nobody does.
      vocab_size: rows of the token table.
      length: tokens of a row.
      family: of the model.
    """

    flops: float | None = None
    params: float | None = None
    tokens: float | None = None
    unique_tokens: float | None = None
    machine: Slice | None = None
    generation: str | None = None
    days: float | None = None
    mfu: float = USUAL_MFU
    mfu_source: str = ""
    vocab_size: int | None = None
    length: int | None = None
    family: str = USUAL_FAMILY

    @property
    def compute(self) -> float | None:
        """FLOPs that are given, or that the machine has in the days."""
        if self.flops is not None:
            return self.flops
        if self.machine is None or self.days is None:
            return None
        return self.machine.peak_flops * self.efficiency * self.days * SECONDS_A_DAY

    @property
    def efficiency(self) -> float:
        """MFU; 1 for a CPU, whose peak stands for what it reaches."""
        is_cpu = self.machine is not None and self.machine.chip.name == "cpu"
        return 1.0 if is_cpu and not self.mfu_source else self.mfu


def make_budget(
    *,
    flops: Amount | None = None,
    params: Amount | None = None,
    tokens: Amount | None = None,
    unique_tokens: Amount | None = None,
    chips: Amount | None = None,
    days: Amount | None = None,
    mfu: Amount | None = None,
    mfu_source: str = "--mfu",
    vocab_size: Amount | None = None,
    length: Amount | None = None,
    family: str = USUAL_FAMILY,
) -> Budget:
    """A budget from flags.

    Raises:
      UserError: something is no positive number, unknown, impossible, or contradicts another flag.
    """
    check_choice("--family", family, FAMILIES)
    named = {"flops": flops, "params": params, "tokens": tokens, "unique_tokens": unique_tokens, "days": days}
    values = {
        name: parse_amount(name, value, _EXAMPLES.get(name, "8e9 or 8b"))
        for name, value in named.items()
        if value is not None
    }
    if mfu is not None:
        values["mfu"] = parse_amount("mfu", mfu, "0.5")
        if values["mfu"] > 1:
            raise UserError(f"--mfu is {mfu}; a machine reaches a share of its peak between 0 and 1, such as 0.5")
    machine = None if chips is None else parse_slice(chips)
    budget = Budget(
        **values,
        machine=machine if isinstance(machine, Slice) else None,
        generation=machine.chip.name if isinstance(machine, Slice) else machine,
        mfu_source=mfu_source if mfu is not None else "",
        vocab_size=None if vocab_size is None else parse_whole("vocab_size", vocab_size),
        length=None if length is None else parse_whole("length", length),
        family=family,
    )
    _check_together(budget)
    return budget


def _check_together(budget: Budget) -> None:
    given = [name for name in ("flops", "params", "tokens", "unique_tokens") if getattr(budget, name) is not None]
    if not given and budget.compute is None:
        if budget.machine is not None or budget.days is not None:
            lacking = "--days" if budget.days is None else "--chips"
            raise UserError(f"a machine's compute is its chips times its days: add {lacking}, or --flops, --params …")
        raise UserError(
            "nothing to plan from: give --flops=1e22, --chips=v5p-512 --days=14, --params=8e9, --tokens=…, or "
            "--unique_tokens=…"
        )
    compute = budget.compute
    if compute is not None and not _SMALLEST <= compute <= _LARGEST:
        raise UserError(f"a budget of {compute:.3g} FLOPs; expected one from {_SMALLEST:.0e} to {_LARGEST:.0e}")
    if budget.params is not None and budget.tokens is not None and compute is not None:
        _check_three(budget, compute)
    elif budget.flops is not None and budget.machine is not None and budget.days is not None:
        reached = budget.flops / (budget.machine.peak_flops * budget.days * SECONDS_A_DAY)
        wanted = budget.efficiency
        if reached > wanted * 1.05:
            raise UserError(
                f"{budget.flops:.3g} FLOPs in {days_text(budget.days)} would take {reached:.0%} of the peak of "
                f"{budget.machine}, and {wanted:.0%} is expected: give more --days or --chips, or fewer --flops"
            )


def _check_three(budget: Budget, compute: float) -> None:
    """Parameters, tokens and compute are two numbers, not three."""
    needed = 6 * budget.params * budget.tokens
    if budget.flops is None and needed <= compute * 1.25:
        return  # The days are a limit, and there is time left.
    if not 0.8 <= needed / compute <= 1.25:
        given = f"--flops={budget.flops:.3g}" if budget.flops else f"{budget.machine} in {days_text(budget.days)}"
        raise UserError(
            f"--params={count_text(budget.params)} on --tokens={count_text(budget.tokens)} take {needed:.3g} FLOPs "
            f"(6ND), and {given} are {compute:.3g}: leave one of them out"
        )
