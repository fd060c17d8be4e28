"""The planner for continued training: shares of new and old data, what is forgotten, and whether experts pay."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from t5x_scale.core.errors import UserError, check_choice
from t5x_scale.laws import Law, cmr, dcpt, replay, upcycling
from t5x_scale.models.accounting import train_flops_per_token
from t5x_scale.planner import batches, machines, rates
from t5x_scale.planner.amounts import count_text
from t5x_scale.planner.batches import BatchPlan
from t5x_scale.planner.budgets import Budget
from t5x_scale.planner.choices import Choice, Opinion, ask, gather, make_opinion
from t5x_scale.planner.known_models import KnownModel
from t5x_scale.planner.law_table import Laws, is_fitted
from t5x_scale.planner.machines import Cost, Site
from t5x_scale.planner.plans import about_batch, about_machine, warnings_about, warnings_about_cost
from t5x_scale.planner.rates import Training
from t5x_scale.planner.shapes import Shape

# Old data that were found to be enough: for a near domain, and for another language (Ibrahim et al. 2024).
REPLAY = {"weak": 0.05, "strong": 0.25}
# Old data may be seen again as often as new data loses nothing by it.
_MOST_EPOCHS = 4.0
# Tokens a person would rather have a number for than none.
_USUAL_TOKENS_A_PARAM = 20.0


@dataclasses.dataclass(frozen=True)
class Continuation:
    """A run that goes on with a model.

    Attributes:
      base: the model.
      share: of the domain among the tokens.
      shift: how far the domain is from what the model knows.
      batch, site, cost: as of a `Plan`.
      choices: every number with its reason.
      notes: what else should be known.
    """

    base: KnownModel
    share: float
    shift: str
    batch: BatchPlan
    site: Site
    cost: Cost
    choices: tuple[Choice, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Choice:
        return next(choice for choice in self.choices if choice.name == name)

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*warnings_about(self.choices), *self.notes)


@dataclasses.dataclass(frozen=True)
class Amounts:
    """Tokens: of the domain and of general text, as many as there are or shall be; those the model has seen."""

    domain: float
    general: float | None
    seen: float
    seen_is_known: bool


def make_continuation(
    base: KnownModel, budget: Budget, laws: Laws, domain_tokens: float, general_tokens: float | None, shift: str
) -> Continuation:
    """A run that teaches a model a domain.

    Args:
      base: the model.
      budget: its machine, days, MFU and length are used.
      laws: by name.
      domain_tokens: seen once.
      general_tokens: there are, like those it was trained on; None for as many as it takes.
      shift: `weak` for a near domain, `strong` for another language: how much is forgotten.

    Raises:
      UserError: unknown shift, or too few tokens for a batch.
    """
    check_choice("--shift", shift, tuple(REPLAY))
    seen = base.tokens or _USUAL_TOKENS_A_PARAM * base.shape.count.total
    amounts = Amounts(domain_tokens, general_tokens, seen, base.tokens is not None)
    share_choice, share = _choose_share(laws, base.shape, amounts, shift)
    total = domain_tokens / share
    shape, notes = base.shape, []
    if not amounts.seen_is_known:
        notes.append(f"nothing says how many tokens it has seen; {count_text(seen)} is assumed: say --tokens_seen")

    # A rate and a batch for the whole life of the model, of which this is the last part.
    length = _choose_length(shape, budget, total)
    training = Training.of(shape, seen + total, length)
    wanted = rates.choose_batch_tokens(laws, training)
    rows = batches.wanted_rows(wanted.value, total, length)
    flops = train_flops_per_token(shape.count, shape.config, length) * total
    site = machines.choose_site(budget, shape, rows, length, flops)
    batch = batches.make_batches(wanted.value, total, length, site.mesh, with_ramp=False)
    cost = machines.price(budget, site, shape, batch.rows, batch.rows, length, batch.tokens)
    choices = (
        _about_base(base, amounts),
        share_choice,
        _about_tokens(amounts, share, batch),
        *_forgetting(shift, share, shape.count.total),
        about_batch(wanted, batch, site),
        _rate(laws, training),
        rates.choose_beta2(laws, batch.batch_tokens),
        _schedule(batch),
        *_upcycling(laws, shape, amounts, batch.tokens),
        *about_machine(site, cost),
    )
    if general_tokens is not None and batch.tokens * (1 - share) > general_tokens * 1.01:
        notes.append(
            f"the old data is seen {batch.tokens * (1 - share) / general_tokens:.2g} times: set its MAX_EPOCHS"
        )
    notes += warnings_about_cost(budget, cost)
    return Continuation(base, share, shift, batch, site, cost, choices, tuple(notes))


def _choose_length(shape: Shape, budget: Budget, total: float) -> int:
    """Of a row: no longer than the model's table of positions, if it has one."""
    rows = shape.anatomy.learned_positions
    if budget.length and rows and budget.length > rows:
        raise UserError(f"--length is {budget.length:,}, and the model has a table of {rows:,} positions")
    length = budget.length or batches.choose_length(total / batches.MIN_STEPS, shape.count.total)
    return min(length, rows) if rows else length


def _choose_share(laws: Laws, shape: Shape, amounts: Amounts, shift: str) -> tuple[Choice, float]:
    kept = REPLAY[shift]
    reason = f"{kept:.0%} of old data, which was found enough after a {shift} shift (Ibrahim et al. 2024)"
    if amounts.general is not None:
        most = _MOST_EPOCHS * amounts.general
        possible = most / (amounts.domain + most)
        if possible < kept:
            kept, reason = (
                possible,
                f"four epochs of the {count_text(amounts.general)} tokens of old data that there are",
            )
    share = 1 - kept
    opinions, left_out = _shares(laws, shape, amounts, share)
    text = f"{share:.0%} new, {kept:.0%} old"
    if math.isfinite(share) and share <= 0:
        raise UserError("--general_tokens leave no room for the domain")
    return Choice("domain share", share, text, reason, opinions, left_out=left_out), share


def _shares(laws: Laws, shape: Shape, amounts: Amounts, share: float) -> tuple[tuple[Opinion, ...], tuple[str, ...]]:
    """The largest shares of the domain at which others call general text unharmed, and who has none."""
    asked = {"params": shape.non_embedding, "tokens": amounts.domain / share}
    law = cmr.nearest(shape.non_embedding)
    law = laws.get(law.name, law)
    critical, silent = gather([law], lambda law: _critical_share(law, asked))
    fitted = laws.get("dcpt")
    if fitted is not None and is_fitted(fitted):
        capped, without = gather([fitted], lambda law: _capped_share(law, asked))
        return critical + capped, silent + without
    row = dcpt.PUBLISHED_ROW
    measured = Opinion(
        "dcpt, a measured row", row.chosen, "medium", "Que et al. 2024, table 5",
        ("chemistry, 1.8B parameters, 10B tokens only",), "largest share that costs general text 3 %",
    )  # fmt: skip
    return (*critical, measured), silent


def _critical_share(law: Law, asked: dict[str, float]) -> Opinion:
    said = make_opinion(law, law.predict(tokens=asked["tokens"]), **asked)
    unit = f"largest share that costs general text {cmr.TOLERANCE:g} nats"
    return dataclasses.replace(said, value=min(max(said.value, 0.0), 1.0), unit=unit)


def _capped_share(law: Law, asked: dict[str, float]) -> Opinion:
    best = law.optimum(**asked, cap=1.03 * law.loss(**asked, ratio=1.0))
    said = make_opinion(law, best["domain_ratio"], **asked)
    return dataclasses.replace(said, unit="largest share that costs general text 3 %")


def _about_base(base: KnownModel, amounts: Amounts) -> Choice:
    count = base.shape.count.total
    known = "" if amounts.seen_is_known else " (assumed)"
    text = f"{count_text(count)} parameters, trained on {count_text(amounts.seen)} tokens{known}"
    value = {"path": base.path, "parameters": count, "tokens_seen": amounts.seen}
    return Choice("model", value, text, "what is on record of it" if base.path else "given")


def _about_tokens(amounts: Amounts, share: float, batch: BatchPlan) -> Choice:
    new, old = batch.tokens * share, batch.tokens * (1 - share)
    epochs = "" if amounts.general is None else f", {old / amounts.general:.2g} epochs of the old"
    text = f"{count_text(batch.tokens)}: {count_text(new)} new, {count_text(old)} old{epochs}"
    return Choice("tokens", batch.tokens, text, "the domain's tokens once, over its share")


def _forgetting(shift: str, share: float, params: float) -> Iterator[Choice]:
    """Expected forgetting, and what replay costs the domain."""
    found, kept = replay.SHIFTS[shift], 1 - share
    none, half = found.forgetting(0.0), found.forgetting(0.5)
    rise = found.forgetting(kept)
    opinion = dataclasses.replace(
        make_opinion(found.old, rise, ratio=kept, params=params), unit=f"nats, after a {shift} shift"
    )
    text = f"{rise:+.2f} nats on old data ({none:+.2f} without replay, {half:+.2f} with half of it)"
    reason = "between measured shares of a 405M model, 300B tokens of the Pile; read the shape, not the value"
    yield Choice("forgetting", rise, text, reason, (opinion,), opinion.law)
    cost = found.cost(kept)
    opinion = dataclasses.replace(make_opinion(found.new, cost, ratio=kept, params=params), unit="nats")
    yield Choice("cost of replay", cost, f"{cost:+.3f} nats on new data", reason, (opinion,), opinion.law)


def _rate(laws: Laws, training: Training) -> Choice:
    choice = rates.choose_learning_rate(laws, training)
    reason = f"{choice.reason}, for all of the model's training; a tenth of it forgets less and learns less"
    return dataclasses.replace(choice, text=f"{choice.value:g} at its peak, warmed up anew", reason=reason)


def _schedule(batch: BatchPlan) -> Choice:
    warmup = min(max(10, round(0.01 * batch.steps)), batch.steps)
    text = f"warm-up over {warmup:,} steps, cosine to 10% at step {batch.steps:,}"
    reason = "re-warmed and decayed again (Ibrahim et al. 2024); a hundredth of the run is warm-up"
    return Choice("schedule", {"warmup_steps": warmup, "total_steps": batch.steps, "floor_ratio": 0.1}, text, reason)


def _upcycling(laws: Laws, shape: Shape, amounts: Amounts, tokens: float) -> Iterator[Choice]:
    """Eight experts, two a token, made of the model, against the model itself and experts from scratch."""
    if shape.config.num_experts:
        return
    params, seen = shape.non_embedding, amounts.seen
    ratio = _flops_ratio(shape)
    dense = laws.get("upcycling_dense", upcycling.ParentDense())
    scratch = laws.get("upcycling_scratch", upcycling.MoeFromScratch())
    sparse = laws.get("upcycling", upcycling.Upcycled())
    fewer = tokens / ratio
    asked = {
        dense.name: ("dense, continued", {"tokens": seen + tokens}),
        sparse.name: ("as many FLOPs, upcycled", {"tokens": fewer, "dense_tokens": seen}),
        scratch.name: ("as many FLOPs, experts from scratch", {"tokens": fewer}),
    }

    def opinion_of(law: Law) -> Opinion:
        unit, quantities = asked[law.name]
        return dataclasses.replace(ask(law, params=params, **quantities), unit=unit)

    opinions, left_out = gather((dense, sparse, scratch), opinion_of)
    reason = (
        f"eight experts, two a token, cost {ratio:.2f} times the FLOPs a token; seen {count_text(seen)} dense tokens"
    )
    if left_out:
        value = {"best": None, "pays_until_tokens": None, "beats_dense_from_tokens": None}
        text = "not known: not every law that is compared has a number"
        yield Choice("dense or upcycled", value, text, reason, opinions, left_out=left_out)
        return
    best = min(opinions, key=lambda opinion: opinion.value)
    until = sparse.break_even_tokens(params, seen, scratch)
    against_dense = sparse.dense_break_even_tokens(params, seen, ratio, dense)
    value = {"best": best.unit, "pays_until_tokens": until, "beats_dense_from_tokens": against_dense}
    text = f"{best.unit} is best; upcycling pays {_until(until)} against experts from scratch, {_from(against_dense)}"
    yield Choice("dense or upcycled", value, text, reason, opinions, best.law)


def _flops_ratio(shape: Shape) -> float:
    """FLOPs a token of the upcycled model over those of the dense one."""
    config = dataclasses.replace(
        shape.config, num_experts=upcycling.EXPERTS, num_experts_per_token=upcycling.EXPERTS_PER_TOKEN
    )
    return dataclasses.replace(shape, config=config).count.matmul / shape.count.matmul


def _until(tokens: float) -> str:
    if tokens == 0:
        return "never"
    return "always" if math.isinf(tokens) else f"up to {count_text(tokens)} tokens"


def _from(tokens: float) -> str:
    if math.isinf(tokens):
        return "never against the dense model"
    return f"from {count_text(tokens) if tokens else 'the first'} tokens on against the dense model continued"
