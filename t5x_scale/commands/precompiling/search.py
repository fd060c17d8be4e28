"""The fastest step that fits: candidates of remat, micro-batches and mesh, each compiled and predicted.

In gin:

  from t5x_scale.commands.precompiling import search
  precompile.precompile.search = @search.Search()
  search.Search.remat = ("full", "attention", @remat.Remat())
  search.Search.micro_batches = (1, 2)
  search.Search.meshes = ({"fsdp": 64}, {"fsdp": 16, "model": 4})
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from t5x_scale.commands.precompiling.advice import own_rows
from t5x_scale.commands.precompiling.attempt import Attempt, attempt, remat_text
from t5x_scale.commands.precompiling.memory import bytes_text
from t5x_scale.core.describe import describe
from t5x_scale.core.errors import UserError
from t5x_scale.data.pipeline import DataConfig
from t5x_scale.models.remat import REMAT_POLICIES, Remat, check_remat
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program, Runtime


@dataclasses.dataclass(frozen=True)
class Search:
    """Candidates, all combinations of which are compiled but those that cannot fit.

    Attributes:
      remat: words or `Remat`s, from least memory to most: after one that does not fit the rest of them is passed over.
      micro_batches: numbers, or () for the number of the run and the next smaller and larger ones that divide.
      meshes: sizes of axes that differ from the run's; () is the run's mesh alone.
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


class Candidate(NamedTuple):
    """One combination."""

    remat: str | Remat
    micro_batches: int
    mesh: MeshConfig

    def apply(self, program: Program) -> Program:
        """The program with these choices."""
        model = program.model
        decoder = functools.partial(model.decoder, remat=self.remat)
        return dataclasses.replace(
            program,
            model=dataclasses.replace(model, decoder=decoder),
            step=dataclasses.replace(program.step, micro_batches=self.micro_batches),
            mesh=self.mesh,
        )

    def gin(self) -> str:
        """A gin file that makes them, to be given last."""
        mesh = {field.name: getattr(self.mesh, field.name) for field in dataclasses.fields(self.mesh)}
        lines = [
            "from __gin__ import dynamic_registration",
            "",
            "import t5x_scale.step as step",
            *(["from t5x_scale.models import remat"] if isinstance(self.remat, Remat) else []),
            "from t5x_scale.partitioning import mesh",
            "",
        ]
        if isinstance(self.remat, Remat):
            lines += ["REMAT = @remat.Remat()"]
            lines += [f"remat.Remat.{kind} = {getattr(self.remat, kind)!r}" for kind in ("save", "offload")]
        else:
            lines += [f'REMAT = "{self.remat}"']
        lines += [f"step.StepConfig.micro_batches = {self.micro_batches}", "mesh.MeshConfig:"]
        return "\n".join([*lines, *(f"    {name} = {size}" for name, size in mesh.items())])


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


def find_fastest(search: Search, runtime: Runtime, target: Target) -> list[Attempt]:
    """Compiles the candidates one after the other, printing a row for each, and names the fastest that fits.

    Args:
      search: the candidates.
      runtime: of the run as configured.
      target: batch and machine.

    Returns:
      What became of each, in the order of compiling.
    """
    made: list[tuple[Candidate, Attempt]] = []
    numbers = candidates_of_micro_batches(search, runtime, target.rows)
    for mesh, number in itertools.product(_meshes(search, runtime), numbers):
        for remat in search.remat:
            candidate = Candidate(remat, number, mesh)
            one = _try(candidate, runtime.program, target)
            if one is None:
                break
            made.append((candidate, one))
            print(_row(candidate, one), flush=True)
            if not one.fits:
                break
    fitting = [pair for pair in made if pair[1].fits]
    if fitting:
        candidate, best = min(fitting, key=lambda pair: _order(*pair))
        print(f"\nthe fastest that fits:\n\n{candidate.gin()}\n\n{best.text()}")
    else:
        print("none of these fits: use more devices, or shorter rows")
    return [one for _, one in made]


def _try(candidate: Candidate, program: Program, target: Target) -> Attempt | None:
    """None where the batch or the parameters do not divide, which is said."""
    try:
        runtime = candidate.apply(program).make(target.devices)
        runtime.check_batch_size(target.rows, target.data.sequence_length)
        return attempt(runtime, target.data, target.rows, target.log_every_steps, target.topology)
    except UserError as error:
        print(f"  {candidate.mesh}: {error}", flush=True)
        return None


def _meshes(search: Search, runtime: Runtime) -> Iterator[MeshConfig]:
    mesh = runtime.program.mesh
    yield from (dataclasses.replace(mesh, **sizes) for sizes in search.meshes or ({},))


def candidates_of_micro_batches(search: Search, runtime: Runtime, rows: int) -> list[int]:
    """Micro-batches from most to fewest, so that the first candidate is the one that needs least."""
    if search.micro_batches:
        return sorted(set(search.micro_batches), reverse=True)
    now = runtime.program.step.micro_batches
    own = own_rows(runtime, rows) * now
    divisors = [number for number in range(1, own + 1) if own % number == 0]
    at = divisors.index(now) if now in divisors else 0
    return divisors[max(at - 1, 0) : at + 2][::-1]


def _order(candidate: Candidate, one: Attempt) -> tuple:
    """Predicted time first; without a prediction what recomputes least, in the fewest parts."""
    words = list(REMAT_POLICIES)
    least = words.index(candidate.remat) if candidate.remat in words else 0
    return (one.step_seconds or 0.0, least, candidate.micro_batches)


def _row(candidate: Candidate, one: Attempt) -> str:
    memory = bytes_text(one.memory.total) if one.memory else one.refusal
    seconds = "" if one.step_seconds is None else f"  {one.step_seconds:.3f} s a step"
    remat = remat_text(describe(candidate.remat))
    return f"  remat {remat}, {candidate.micro_batches} micro-batch(es), {one.title}: {memory}{seconds}"
