"""The planner: a budget in, a run with all its reasons out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from t5x_scale.models.accounting import train_flops_per_token
from t5x_scale.planner import allocations, batches, expectations, machines, rates, vocabularies
from t5x_scale.planner.amounts import count_text, counted, days_text
from t5x_scale.planner.batches import BatchPlan
from t5x_scale.planner.budgets import Budget
from t5x_scale.planner.choices import Choice, make_opinion
from t5x_scale.planner.expectations import Question
from t5x_scale.planner.law_table import Laws
from t5x_scale.planner.machines import Cost, Site
from t5x_scale.planner.meshes import MeshPlan
from t5x_scale.planner.rates import Training
from t5x_scale.planner.shapes import Shape, make_shape, width_to_depth
from t5x_scale.planner.table import range_text

EPOCHS_THAT_HURT = 4.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run.

    Attributes:
      budget: what was asked for.
      shape: of the model.
      batch: rows, steps and tokens.
      site: machine and mesh.
      cost: days, chip-hours, memory.
      choices: every number with its reason.
      curve: what loss to expect along the run (see `expectations.make_curve`).
      notes: what else should be known.
    """

    budget: Budget
    shape: Shape
    batch: BatchPlan
    site: Site
    cost: Cost
    choices: tuple[Choice, ...]
    curve: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Choice:
        return next(choice for choice in self.choices if choice.name == name)

    @property
    def epochs(self) -> float | None:
        """Times that the unique tokens are seen."""
        return None if self.budget.unique_tokens is None else self.batch.tokens / self.budget.unique_tokens

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before they rent anything."""
        return tuple(_warnings(self))


def make_plan(budget: Budget, laws: Laws, law_name: str | None = None) -> Plan:
    """A run for a budget.

    Args:
      budget: checked (see `budgets.make_budget`).
      laws: by name (see `law_table.load_laws`).
      law_name: the law that divides compute between size and tokens; None is a fitted one, else the usual.

    Raises:
      UserError: nothing can be planned for it.
    """
    division = allocations.allocate(budget, laws, law_name)
    law_name = law_name or allocations.usual_law(laws)
    sketch, _ = _shape(budget, laws, division, MeshPlan())
    length, rows = _rows(budget, laws, sketch, _tokens(division, sketch, budget.length or 2048))
    tokens = _tokens(division, sketch, length)
    flops = train_flops_per_token(sketch.count, sketch.config, length) * tokens
    site = machines.choose_site(budget, sketch, rows, length, flops)
    # Before a shape is looked for that divides over so many devices.
    batches.check_shares(tokens, length, site.mesh.row_shares)

    shape, vocabulary = _shape(budget, laws, division, site.mesh)
    tokens = _tokens(division, shape, length)
    training = Training.of(shape, tokens, length)
    wanted = rates.choose_batch_tokens(laws, training)
    batch = batches.make_batches(wanted.value, tokens, length, site.mesh)
    cost = machines.price(budget, site, shape, batch.pieces[0][1], batch.rows, length, batch.tokens)
    if not cost.memory.fits:
        # The first batches of a ramp cannot be cut into as many parts.
        batch = batches.make_batches(wanted.value, tokens, length, site.mesh, with_ramp=False)
        cost = machines.price(budget, site, shape, batch.rows, batch.rows, length, batch.tokens)
    question = Question(
        shape.count.total,
        shape.non_embedding,
        batch.tokens,
        shape.config.vocab_size,
        budget.unique_tokens,
        batch.steps,
        batch.batch_tokens,
    )
    choices = (
        *_about_model(division, shape, site, tokens),
        vocabulary,
        *_about_tokens(budget, laws, division, shape.count.total, batch),
        about_batch(wanted, batch, site),
        rates.choose_learning_rate(laws, training),
        rates.choose_beta2(laws, batch.batch_tokens),
        rates.choose_schedule(training, shape.count.total, batch.steps, batch.batch_tokens),
        expectations.choose_loss(laws, question, law_name),
        *rates.choose_growth(laws, training, shape.config.num_layers),
        *about_machine(site, cost),
    )
    curve = expectations.make_curve(laws, question, law_name)
    return Plan(budget, shape, batch, site, cost, choices, curve, division.notes)


def _shape(budget: Budget, laws: Laws, division: allocations.Allocation, mesh: MeshPlan) -> tuple[Shape, Choice]:
    params, counts = division.params, division.counts_tables
    vocabulary = vocabularies.choose_vocabulary(laws, params, budget.vocab_size, mesh, counts, budget.family)
    if not counts:
        bare = make_shape(params, 128 * mesh.model, budget.family, mesh)
        params += vocabulary.value * bare.config.embed_dim * (1 if budget.family == "palm" else 2)
    return make_shape(params, vocabulary.value, budget.family, mesh), vocabulary


def _tokens(division: allocations.Allocation, shape: Shape, length: int) -> float:
    """Tokens that the FLOPs pay for, once the shape is known; or those that were asked for."""
    if division.compute is None:
        return division.tokens
    return division.compute / train_flops_per_token(shape.count, shape.config, length)


def _rows(budget: Budget, laws: Laws, shape: Shape, tokens: float) -> tuple[int, float]:
    """Length of a row, and about how many a batch has."""
    wanted = rates.choose_batch_tokens(laws, Training.of(shape, tokens, budget.length or 2048)).value
    wanted = min(wanted, tokens / batches.MIN_STEPS)
    length = budget.length or batches.choose_length(wanted, shape.count.total)
    return length, batches.wanted_rows(wanted, tokens, length)


def _about_model(division: allocations.Allocation, shape: Shape, site: Site, tokens: float) -> Iterator[Choice]:
    total, config = shape.count.total, shape.config
    text = f"{count_text(total)} parameters, {count_text(shape.non_embedding)} without tables"
    yield Choice("parameters", total, text, division.reason, division.opinions, division.law, division.left_out)
    value = {
        name: getattr(config, name)
        for name in ("num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
    }
    yield Choice(
        "shape",
        {"family": shape.family, **value},
        f"{shape.family}: {counted(config.num_layers, 'layer')}, embed {config.embed_dim:,}, mlp {config.mlp_dim:,}, "
        f"{counted(config.num_heads, 'head')} of {config.head_dim}, {counted(config.num_kv_heads, 'kv head')}",
        f"width about {width_to_depth(shape.non_embedding):.0f} times the depth, as published models of the size; "
        f"divides over fsdp={site.mesh.fsdp}, model={site.mesh.model}",
    )


def _about_tokens(
    budget: Budget, laws: Laws, division: allocations.Allocation, params: int, batch: BatchPlan
) -> Iterator[Choice]:
    a_param = batch.tokens / params
    text = f"{count_text(batch.tokens)}, {a_param:.3g} a parameter"
    reason = division.reason
    if division.compute is not None:
        reason += "; what these FLOPs pay for with attention and tables counted"
    yield Choice("tokens", batch.tokens, text, reason, law=division.law, opinions=division.opinions)
    if budget.unique_tokens is not None:
        epochs = batch.tokens / budget.unique_tokens
        reason = "tokens over unique tokens; up to four are worth nearly as much as new data (Muennighoff et al. 2023)"
        text = f"{epochs:.3g} of {count_text(budget.unique_tokens)} tokens"
        law = laws[allocations.DATA_CONSTRAINED]
        asked = {"params": params, "tokens": batch.tokens, "unique_tokens": budget.unique_tokens}
        opinion = make_opinion(law, epochs, **asked)
        yield Choice("epochs", epochs, text, reason, (opinion,), law.name if epochs > 1 else "")


def about_batch(wanted: Choice, batch: BatchPlan, site: Site) -> Choice:
    """The batch as it came to be, from the one that was wanted."""
    reason = f"{wanted.reason}, {wanted.text} tokens, rounded to rows that divide over {site.mesh.row_shares:,} shares"
    if batch.batch_tokens < wanted.value / 1.3:
        reason += f"; smaller, so that the run has {batches.MIN_STEPS} steps"
    elif batch.batch_tokens > wanted.value * 1.3:
        reason += "; larger, so that every device along fsdp has a row"
    if len(batch.pieces) > 1:
        reason += "; fewer rows at first, as the critical batch grows while the loss falls (a convention)"
    value = {"pieces": [list(piece) for piece in batch.pieces], "length": batch.length, "steps": batch.steps}
    text = f"{batch.text}, {counted(batch.steps, 'step')}"
    return dataclasses.replace(wanted, name="batch", value=value, text=text, reason=reason)


def about_machine(site: Site, cost: Cost) -> Iterator[Choice]:
    """Machine, memory and cost."""
    machine, mesh = site.machine, site.mesh
    split = f"fsdp={mesh.fsdp}" + (f" x model={mesh.model}" if mesh.model > 1 else "")
    value = {
        "chip": machine.chip.name,
        "chips": machine.chips,
        "slices": machine.slices,
        "topology": machine.topology,
        "mesh": {"fsdp": mesh.fsdp, "model": mesh.model, "dcn_data": mesh.slices},
        "micro_batches": cost.micro_batches,
    }
    parts = f", {cost.micro_batches} micro-batches" if cost.micro_batches > 1 else ""
    yield Choice("machine", value, f"{machine}; {split}{parts}", site.reason)
    memory = cost.memory
    yield Choice(
        "memory",
        {**dataclasses.asdict(memory), "total": memory.total, "fits": memory.fits},
        machines.memory_text(memory),
        "an estimate for full rematerialisation; `t5x_scale precompile` asks the compiler",
    )
    text = f"{days_text(cost.days)}, {machines.chip_hours_text(cost, machine)}"
    value = {"flops": cost.flops, "mfu": cost.mfu, "days": cost.days, "chip_hours": cost.chip_hours}
    reason = f"{cost.flops:.3g} FLOPs (6N + 12LHQT a token)" + (
        "" if machine.chip.name == "cpu" else f" at {cost.mfu:.1%} of the peak"
    )
    yield Choice("cost", value, text, f"{reason}; {cost.mfu_source}")


def warnings_about(choices: Sequence[Choice]) -> Iterator[str]:
    """What of the followed laws is extrapolated, or not sure; which laws have nothing to say."""
    for choice in choices:
        if choice.outside:
            yield f"{choice.name}: {choice.law}: {range_text(choice.outside)}"
    for choice in choices:
        if choice.confidence in ("medium", "low"):
            yield f"{choice.name}: {choice.law} is of {choice.confidence} confidence"
    for choice in choices:
        yield from (f"{choice.name}: {line}" for line in choice.left_out)


def warnings_about_cost(budget: Budget, cost: Cost) -> Iterator[str]:
    """Where the machine is too small for the run, or too slow for the days it may take."""
    if not cost.memory.fits:
        yield "the estimated memory does not fit a device: take more --chips, or ones with more memory"
    if budget.days is not None and cost.days > budget.days * 1.05:
        yield f"it takes {days_text(cost.days)}, and not the {days_text(budget.days)} of --days"


def _warnings(plan: Plan) -> Iterator[str]:
    yield from plan.notes
    yield from warnings_about(plan.choices)
    if plan.epochs is not None and plan.epochs > EPOCHS_THAT_HURT * 1.01:
        yield f"{plan.epochs:.3g} epochs: beyond four, repeated data is worth less and less, beyond forty nothing"
    tables = 1 - plan.shape.non_embedding / plan.shape.count.total
    if tables > 0.5:
        size = plan.shape.config.vocab_size
        yield f"{tables:.0%} of the parameters are tables: take fewer than {size:,} entries, or a larger model"
    yield from warnings_about_cost(plan.budget, plan.cost)
