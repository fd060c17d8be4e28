"""`t5x_scale verify`: whether every bit of a run's checkpoints is the one that was saved; no devices are touched."""

from __future__ import annotations

import os

from t5x_scale.checkpoint import layout
from t5x_scale.checkpoint.verifying import Verdict, verify_step
from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.core.patience import read_patiently

EXIT_DAMAGED = 1


def verify(model_dir: str = "", step: int | None = None) -> int:
    """Prints a line for every checkpoint, the newest first, and at the end what a restore would begin from.

    Args:
      model_dir: a run, a converted checkpoint, their `checkpoints` directory, or one step of it.
      step: the one to look at; all by default.

    Returns:
      0 when everything that was looked at verifies, otherwise 1.

    Raises:
      UserError: nothing is named, no finished checkpoint is there, or the storage refuses or does not answer, so that
        nothing is known.
    """
    if not model_dir:
        raise UserError("say what is to be read: t5x_scale verify MODEL_DIR")
    directory, steps = read_patiently(lambda: layout.find_step_directory(model_dir), os.fspath(model_dir))
    if step is not None and step not in steps:
        raise UserError(f"{directory} has no checkpoint of step {step}; it has {', '.join(map(str, steps[:10]))}")
    verdicts = []
    for candidate in steps if step is None else [step]:
        verdict = _verify(directory, candidate)
        if verdict is None:
            print(f"step {candidate}: gone meanwhile, as the run keeps only so many", flush=True)
            continue
        verdicts.append(verdict)
        print(verdict.render(), flush=True)
    _print_others(directory)
    return _conclude(directory, verdicts)


def _verify(directory: files.Path, step: int) -> Verdict | None:
    path = layout.step_directory(directory, step)
    verdict = verify_step(path)
    # A run that goes on deletes.
    if verdict.damage and not read_patiently(lambda: layout.is_committed(path), f"the checkpoint {path}"):
        return None
    return verdict


def _print_others(directory: files.Path) -> None:
    """Names what looks like a checkpoint and is none."""

    def read() -> tuple[list[str], list[str]]:
        leftovers = [path.name for path in layout.list_leftovers(directory)]
        return leftovers, [path.name for path in directory.iterdir() if layout.SET_ASIDE_SUFFIX in path.name]

    leftovers, aside = read_patiently(read, f"the list of checkpoints in {directory}")
    for names, meaning in ((leftovers, "not finished"), (aside, "set aside, of a course that the run left")):
        if names:
            print(f"{', '.join(sorted(names))}: {meaning}; not looked at")


def _conclude(directory: files.Path, verdicts: list[Verdict]) -> int:
    damaged = [verdict for verdict in verdicts if verdict.damage]
    if not verdicts:
        raise UserError(f"{directory} holds no finished checkpoint any more")
    if not damaged:
        print(f"all verify: {len(verdicts)} of {len(verdicts)} in {directory}")
        return 0
    good = [verdict.step for verdict in verdicts if not verdict.damage]
    newest = f"the newest that verifies is step {max(good)}" if good else "none of them verifies"
    print(f"{len(damaged)} of {len(verdicts)} in {directory} are damaged; {newest}")
    return EXIT_DAMAGED
