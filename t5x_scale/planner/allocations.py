"""How a budget is divided between the size of a model and the tokens it sees."""

from __future__ import annotations

import dataclasses
import math

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.laws import Law
from t5x_scale.laws.units import FLOPS_PER_PARAM_TOKEN, training_flops
from t5x_scale.planner.amounts import count_text
from t5x_scale.planner.budgets import Budget
from t5x_scale.planner.choices import Opinion, gather, make_opinion
from t5x_scale.planner.law_table import Laws, is_fitted, present

# Laws with a frontier of sizes and tokens over FLOPs, the default first: the refit of Chinchilla's data agrees with
# the paper's other two approaches, and the paper's own third does not.
FRONTIERS = ("besiroglu", "chinchilla_envelope", "chinchilla_isoflop", "chinchilla_unrounded", "chinchilla", "porian",
             "deepseek_model", "llama3", "kaplan_allocation")  # fmt: skip
DATA_CONSTRAINED = "data_constrained"
# Repeated up to four times data is worth nearly what new data is (Muennighoff et al. 2023, section 6).
FOUR_EPOCHS = 4.0
# Sizes along a frontier are found to this share of the budget's logarithm.
_HALVINGS = 40
# No model of any fit saw fewer tokens than parameters by so much.
_FEWEST_TOKENS_A_PARAM = 0.1


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Size and tokens, about: shapes and batches round them.

    Attributes:
      params: of the model, tables included.
      tokens: trained on, repetitions included.
      compute: FLOPs that must not be exceeded, so that tokens follow from the shape; None where tokens are given.
      reason: why these.
      law: that was followed; "" where two of the numbers are given.
      opinions: about the best size at these FLOPs.
      counts_tables: whether `params` are all; otherwise the tables come on top.
      notes: what a person should know of it.
      left_out: a line for each law that has no frontier there.
    """

    params: float
    tokens: float
    compute: float | None
    reason: str
    law: str
    opinions: tuple[Opinion, ...]
    counts_tables: bool = True
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def allocate(budget: Budget, laws: Laws, law_name: str | None = None) -> Allocation:
    """Size and tokens for what is given of a run.

    Raises:
      UserError: no such law, or more parameters than the FLOPs allow.
    """
    law = find_frontier(laws, law_name or usual_law(laws))
    params, tokens, compute, reason, followed = _divide(budget, laws, law)
    notes = []
    if budget.compute is not None and followed == DATA_CONSTRAINED and compute is None:
        spent = training_flops(params, tokens)
        notes.append(
            f"more compute than the data can use: {budget.compute:.3g} FLOPs, of which {spent:.3g} are planned, "
            f"{_most_epochs(laws):g} epochs; more parameters or more epochs add next to nothing"
        )
    if law_name is not None and followed != law_name:
        why = "it knows of no repeated data" if followed else "size and tokens are given"
        notes.append(f"--law={law_name} is not followed: {why}")
    if not min(params, tokens) >= 1 or not math.isfinite(params * tokens):
        raise UserError(f"{params:.3g} parameters on {tokens:.3g} tokens are no run; give another budget")
    if compute is not None and tokens < _FEWEST_TOKENS_A_PARAM * params:
        best, _ = frontier_at(law, "flops", compute)
        raise UserError(
            f"more parameters than the FLOPs allow: {compute:.3g} FLOPs train {count_text(params)} parameters on "
            f"{count_text(tokens)} tokens, {tokens / params:.2g} a parameter; the best size for them is about "
            f"{count_text(best)}"
        )
    opinions, left_out = gather(present(laws, FRONTIERS), lambda law: _opinion(law, training_flops(params, tokens)))
    if followed == DATA_CONSTRAINED:
        opinions = (_opinion_on_repeating(laws, params, tokens, budget.unique_tokens), *opinions)
    follows_size = followed and budget.params is None
    counts_tables = not (follows_size and laws[followed].with_embeddings is False)
    return Allocation(params, tokens, compute, reason, followed, opinions, counts_tables, tuple(notes), left_out)


def frontier_at(law: Law, name: str, value: float) -> tuple[float, float]:
    """(params, tokens) of the frontier of a law where one of `flops`, `params` and `tokens` is `value`.

    Raises:
      UserError: the frontier does not get there.
    """
    low = high = math.log(value)
    if name != "flops":
        low, high = math.log(1e6), math.log(1e33)
        # Both grow along the frontier.
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if _at(law, middle)[name] < value else (low, middle)
    found = _at(law, high)
    if not 0.99 < found[name] / value < 1.01:
        raise UserError(f"--{name}={count_text(value)} is beyond the frontier of {law.name}; give another budget")
    return found["params"], found["tokens"]


def _at(law: Law, log_flops: float) -> dict[str, float]:
    flops = math.exp(log_flops)
    params = law.optimum(flops=flops).params
    return {"flops": flops, "params": params, "tokens": flops / FLOPS_PER_PARAM_TOKEN / params}


def usual_law(laws: Laws) -> str:
    """The one that is fitted to somebody's own runs, else the first of `FRONTIERS`."""
    fitted = [law.name for law in present(laws, FRONTIERS) if is_fitted(law)]
    return (fitted or FRONTIERS)[0]


def find_frontier(laws: Laws, name: str) -> Law:
    """The law of that name, if it divides a budget.

    Raises:
      UserError: it is none that does.
    """
    names = [law.name for law in present(laws, FRONTIERS)]
    if name not in names:
        raise UserError(
            f"--law is {name!r}{did_you_mean(name, names) or ''}; those with a frontier are {', '.join(names)}"
        )
    return laws[name]


def _divide(budget: Budget, laws: Laws, law: Law) -> tuple[float, float, float | None, str, str]:
    params, tokens, compute, unique = budget.params, budget.tokens, budget.compute, budget.unique_tokens
    if params is not None and tokens is not None:
        return params, tokens, None, "both given", ""
    if compute is not None and params is not None:
        return params, compute / FLOPS_PER_PARAM_TOKEN / params, compute, "tokens are what the FLOPs leave", ""
    if compute is not None and tokens is not None:
        return compute / FLOPS_PER_PARAM_TOKEN / tokens, tokens, None, "the size is what the FLOPs leave", ""
    if compute is not None:
        return _of_compute(compute, unique, laws, law)
    if params is not None:
        _, best = frontier_at(law, "params", params)
        return params, best, None, f"tokens for which this size is best by {law.name}", law.name
    if tokens is not None:
        best, _ = frontier_at(law, "tokens", tokens)
        return best, tokens, None, f"the size for which these tokens are best by {law.name}", law.name
    assert unique is not None
    return _of_data(unique, law)


def _of_compute(
    compute: float, unique: float | None, laws: Laws, law: Law
) -> tuple[float, float, float | None, str, str]:
    params, tokens = frontier_at(law, "flops", compute)
    if unique is not None and tokens > unique and DATA_CONSTRAINED in laws:
        return _of_repeating(compute, unique, laws)
    return params, tokens, compute, f"the lowest loss at these FLOPs by {law.name}", law.name


def _of_repeating(compute: float, unique: float, laws: Laws) -> tuple[float, float, float | None, str, str]:
    """The best of the FLOPs; or of as many as reach the most epochs of which the law was fitted on any."""
    law, most = laws[DATA_CONSTRAINED], _most_epochs(laws)
    best = law.optimum(flops=compute, unique_tokens=unique)
    if best.tokens <= most * unique:
        reason = f"the lowest loss at these FLOPs where only {count_text(unique)} tokens are new"
        return best.params, best.tokens, compute, reason, DATA_CONSTRAINED
    low, high = math.log(FLOPS_PER_PARAM_TOKEN * unique), math.log(compute)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        best = law.optimum(flops=math.exp(middle), unique_tokens=unique)
        low, high = (middle, high) if best.tokens < most * unique else (low, middle)
    reason = (
        f"{most:g} epochs of {count_text(unique)} tokens, beyond which another adds next to nothing; the size for them"
    )
    return best.params, most * unique, None, reason, DATA_CONSTRAINED


def _most_epochs(laws: Laws) -> float:
    return laws[DATA_CONSTRAINED].domain.ranges.get("epochs", (1.0, math.inf))[1]


def _opinion_on_repeating(laws: Laws, params: float, tokens: float, unique: float | None) -> Opinion:
    law = laws[DATA_CONSTRAINED]
    opinion = make_opinion(law, params, params=params, tokens=tokens, unique_tokens=unique)
    return dataclasses.replace(opinion, unit="parameters")


def _of_data(unique: float, law: Law) -> tuple[float, float, float | None, str, str]:
    """Four epochs, for the size that so many new tokens would be best for."""
    tokens = FOUR_EPOCHS * unique
    best, _ = frontier_at(law, "tokens", tokens)
    reason = f"four epochs, up to which repeated data is worth nearly what new data is; the size by {law.name}"
    return best, tokens, None, reason, law.name


def _opinion(law: Law, flops: float) -> Opinion:
    params, tokens = frontier_at(law, "flops", flops)
    opinion = make_opinion(law, params, flops=flops, params=params, tokens=tokens)
    unit = "parameters without tables" if law.with_embeddings is False else "parameters"
    return dataclasses.replace(opinion, unit=unit)
