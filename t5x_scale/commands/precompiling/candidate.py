"""One combination of what a search chooses: remat, micro-batches and mesh."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

from t5x_scale.commands.precompiling.attempt import remat_text
from t5x_scale.core.describe import describe
from t5x_scale.models.remat import REMAT_POLICIES, Remat
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.program import Program


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

    def text(self) -> str:
        """In a few words, but for the mesh."""
        return f"remat {remat_text(describe(self.remat))}, {self.micro_batches} micro-batch(es)"

    def recomputation(self) -> int:
        """Where it stands among the words for remat, from least recomputation to most; 0 of a list of tensors."""
        words = list(REMAT_POLICIES)
        return words.index(self.remat) if self.remat in words else 0

    def gin(self) -> str:
        """A gin file that makes these choices, to be given last."""
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
        return "\n".join([*lines, *(f"    {name} = {size!r}" for name, size in mesh.items())])
