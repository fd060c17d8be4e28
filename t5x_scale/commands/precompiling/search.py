"""The fastest step that fits: candidates of remat, micro-batches and mesh, each compiled and predicted.

In gin:

  from t5x_scale.commands.precompiling import search
  precompile.precompile.search = @search.Search()
  search.Search.remat = ("full", "attention", @remat.Remat())
  search.Search.micro_batches = (1, 2)
  search.Search.meshes = ({"fsdp": 64}, {"fsdp": 16, "model": 4})

A compilation takes a minute or more, so that what cannot win is passed over: more micro-batches than a choice of remat
needs to fit only gather weights more often and make products smaller, and what saves more does not fit where what
saves less does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from t5x_scale.commands.precompiling.advice import own_rows
from t5x_scale.commands.precompiling.attempt import Attempt, attempt
from t5x_scale.commands.precompiling.candidate import Candidate
from t5x_scale.core.errors import UserError
from t5x_scale.data.pipeline import DataConfig
from t5x_scale.models.remat import Remat, check_remat
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.proposals import divisors
from t5x_scale.program import Program, Runtime
from t5x_scale.run_files import bytes_text


@dataclasses.dataclass(frozen=True)
class Search:
    """Candidates, of which those are compiled that can be the fastest that fits.

    Attributes:
      remat: words or `Remat`s, from least memory to most.
      micro_batches: numbers, or () for the number of the run and the next smaller and larger ones that divide.
      meshes: sizes of axes that differ from the run's, each tried with all the others; () is the run's mesh, and with
        what is fastest on it those with half and twice as many devices for each row.
    """

    remat: Sequence[str | Remat] = ("full", "attention", "minimal")
    micro_batches: Sequence[int] = ()
    meshes: Sequence[Mapping[str, int]] = ()

    def __post_init__(self) -> None:
        """Raises:
        UserError: a candidate is none.
        """
        for remat in self.remat:
            check_remat(remat)
        if not self.remat or not all(isinstance(number, int) and number > 0 for number in self.micro_batches):
            raise UserError(f"Search: give at least one remat, and positive numbers of micro-batches, not {self}")


class Target(NamedTuple):
    """What every candidate is compiled for.

    Attributes:
      devices: of the machine; None for those that are here.
      topology: its name, if it has one.
      data: length and fields of a batch.
      rows: of the batch.
      log_every_steps: as for train.
    """

    devices: Sequence[jax.Device] | None
    topology: str | None
    data: DataConfig
    rows: int
    log_every_steps: int


class Trial(NamedTuple):
    """A candidate that was compiled, and what became of it."""

    candidate: Candidate
    attempt: Attempt

    @property
    def order(self) -> tuple:
        """The fastest first; without predictions what recomputes least, in the fewest parts."""
        candidate, one = self
        return (not one.fits, one.step_seconds or 0.0, candidate.recomputation(), candidate.micro_batches)


def find_fastest(search: Search, runtime: Runtime, target: Target) -> list[Attempt]:
    """Compiles candidates one after the other, printing a row for each; ranks them and names the fastest that fits.

    Args:
      search: the candidates.
      runtime: of the run as configured.
      target: batch and machine.

    Returns:
      What became of each, in the order of compiling.
    """
    trials: list[Trial] = []
    for sizes in search.meshes or ({},):
        mesh = dataclasses.replace(runtime.program.mesh, **sizes)
        trials += _search_on(mesh, search, runtime, target)
    best = min(trials, key=lambda trial: trial.order, default=None)
    if best is not None and not search.meshes:
        for candidate in neighbours(best.candidate, runtime, target.rows):
            trials += _try(candidate, runtime.program, target)
    ranked = sorted(trials, key=lambda trial: trial.order)
    if ranked and ranked[0].attempt.fits:
        print(f"\n{_table(ranked)}\n\nthe fastest that fits:\n\n{ranked[0].candidate.gin()}\n")
        print(ranked[0].attempt.text())
    else:
        print("none of these fits: use more devices, or shorter rows")
    return [trial.attempt for trial in trials]


def candidates_of_micro_batches(search: Search, runtime: Runtime, rows: int) -> list[int]:
    """Numbers of micro-batches, the fewest first."""
    if search.micro_batches:
        return sorted(set(search.micro_batches))
    now = runtime.program.step.micro_batches
    numbers = divisors(own_rows(runtime, rows) * now)
    at = numbers.index(now) if now in numbers else 0
    return numbers[max(at - 1, 0) : at + 2]


def neighbours(candidate: Candidate, runtime: Runtime, rows: int) -> Iterator[Candidate]:
    """The same with half and with twice the axis `model`, which `fsdp` makes up for, where model and batch divide."""
    config, sizes, rules = runtime.program.model.config, runtime.mesh.shape, runtime.program.rules
    if "model" not in rules.get("act_mlp", ()):
        return
    for fsdp, model in ((2 * sizes["fsdp"], sizes["model"] / 2), (sizes["fsdp"] / 2, 2 * sizes["model"])):
        divides = all(size % model == 0 for size in (config.num_heads, config.mlp_dim, config.vocab_size))
        if fsdp < 1 or model < 1 or fsdp % 1 or model % 1 or not divides:
            continue
        mesh = dataclasses.replace(candidate.mesh, fsdp=int(fsdp), model=int(model))
        # Each group of devices that shares rows has fewer of them where there are more groups.
        own = own_rows(runtime, rows) * runtime.program.step.micro_batches * sizes["fsdp"] // int(fsdp)
        numbers = [number for number in divisors(own) if number <= candidate.micro_batches]
        yield Candidate(candidate.remat, numbers[-1] if numbers else 1, mesh)


def _search_on(mesh: MeshConfig, search: Search, runtime: Runtime, target: Target) -> list[Trial]:
    """Of each remat the fewest micro-batches that fit, or all that do not."""
    numbers = candidates_of_micro_batches(search, runtime, target.rows)
    trials: list[Trial] = []
    try:
        _make(Candidate(search.remat[0], numbers[0], mesh), runtime.program, target)
    except UserError as error:
        print(f"  {error}", flush=True)
        return trials
    for remat in search.remat:
        while numbers:
            made = _try(Candidate(remat, numbers[0], mesh), runtime.program, target)
            trials += made
            if not made or made[0].attempt.fits:
                break
            numbers = numbers[1:]
    return trials


def _make(candidate: Candidate, program: Program, target: Target) -> Runtime:
    """Raises:
    UserError: the mesh does not fit the machine, or something does not divide.
    """
    runtime = candidate.apply(program).make(target.devices)
    runtime.check_batch_size(target.rows, target.data.sequence_length)
    return runtime


def _try(candidate: Candidate, program: Program, target: Target) -> list[Trial]:
    """The trial of a candidate; none where it does not compile, which is said."""
    try:
        runtime = _make(candidate, program, target)
        one = attempt(runtime, target.data, target.rows, target.log_every_steps, target.topology)
    except Exception as error:  # Whatever a compiler makes of one candidate, others follow.
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        print(f"  {candidate.text()}: {' '.join(reason.split())[:300]}", flush=True)
        return []
    memory = bytes_text(one.memory.total) if one.memory else one.refusal
    seconds = "" if one.step_seconds is None else f"  {one.step_seconds:.3f} s a step"
    print(f"  {candidate.text()}, {one.title}: {memory}{seconds}", flush=True)
    return [Trial(candidate, one)]


def _table(ranked: Sequence[Trial]) -> str:
    """A row for each trial, the best first."""
    rows = [("", "step", "MFU", "a device", "mesh", "choice")]
    for place, (candidate, one) in enumerate(ranked, start=1):
        prediction, mesh = one.prediction, one.title.split(" on ")[-1]
        rows.append(
            (
                f"{place}" if one.fits else "-",
                "" if prediction is None else f"{prediction.seconds:.3f} s",
                "" if prediction is None or prediction.mfu is None else f"{100 * prediction.mfu:.1f} %",
                bytes_text(one.memory.total) if one.fits else "does not fit",
                mesh,
                candidate.text(),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
