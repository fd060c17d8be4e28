"""`t5x_scale plan`: from a budget to a run, with the laws that say so."""

from __future__ import annotations

import json

from t5x_scale.core.errors import UserError
from t5x_scale.core.files import Path, exists, make_directory, read_bounded, write_json, write_text
from t5x_scale.planner import gin_files, machines, record, table
from t5x_scale.planner.amounts import Amount
from t5x_scale.planner.budgets import make_budget
from t5x_scale.planner.continuing import Continuation, make_continuation
from t5x_scale.planner.known_models import check_absent, find_base, parse_amounts
from t5x_scale.planner.law_table import load_laws
from t5x_scale.planner.plans import Plan, make_plan
from t5x_scale.planner.shapes import USUAL_FAMILY


def plan(
    flops: Amount | None = None,
    chips: Amount | None = None,
    days: Amount | None = None,
    mfu: Amount | None = None,
    params: Amount | None = None,
    tokens: Amount | None = None,
    unique_tokens: Amount | None = None,
    family: str | None = None,
    vocab_size: Amount | None = None,
    length: int | None = None,
    law: str | None = None,
    laws: str | None = None,
    precompiled: str | None = None,
    explain: bool = False,
    output: str | None = None,
    report: str | None = None,
    continue_from: str | None = None,
    tokens_seen: Amount | None = None,
    domain_tokens: Amount | None = None,
    general_tokens: Amount | None = None,
    shift: str | None = None,
) -> int:
    """Prints a run for a budget, and writes it where asked to.

    Amounts are numbers or text such as `8b`. One of them is enough, or two that do not contradict.

    Args:
      flops: of the training.
      chips: the machine: `v5p-512` is 512 chips, `v4_2x3072` two slices, `v5e` as many as it takes.
      days: with chips, their compute; without, the most that the run may take.
      mfu: share of the peak that is reached.
      params: of the model.
      tokens: trained on.
      unique_tokens: that there are; more are repetitions of these.
      family: `llama` (by default) or `palm`.
      vocab_size: of the tokenizer, if there is one already.
      length: tokens of a row.
      law: that divides compute between size and tokens; by default one of `laws`, else Chinchilla's refit.
      laws: a JSON file of laws fitted to one's own runs, in place of the published ones.
      precompiled: a JSON file of `t5x_scale precompile --output`, for the MFU.
      explain: whether to say of every number which laws spoke about it.
      output: a directory for model.gin, run.gin and plan.json.
      report: a PNG file for a picture.
      continue_from: a run, one step of it, a converted checkpoint or a Hugging Face directory to go on with.
      tokens_seen: by the model that is continued; with params instead of a path.
      domain_tokens: new ones that it shall learn from.
      general_tokens: that there are of what it was trained on; by default as many as it takes.
      shift: `weak` for a domain near to what it knows, `strong` (by default) for another language.

    Raises:
      UserError: the request is impossible or contradicts itself.
    """
    for name, path in {"output": output, "report": report}.items():
        if path is not None and not path.strip():
            raise UserError(f"--{name} is empty; give a path, or leave it out")
    known = load_laws(laws)
    title = _title(
        flops=flops, params=params, tokens=tokens, unique_tokens=unique_tokens, chips=chips, days=days, mfu=mfu,
        continue_from=continue_from, domain_tokens=domain_tokens, general_tokens=general_tokens,
        tokens_seen=tokens_seen, shift=shift, vocab_size=vocab_size, length=length, law=law, family=family,
    )  # fmt: skip
    given = {**machines.given(chips, mfu, precompiled), "days": days, "vocab_size": vocab_size, "length": length}
    sizes = {"flops": flops, "params": params, "tokens": tokens, "unique_tokens": unique_tokens}
    made: Plan | Continuation
    if continue_from is None and domain_tokens is None:
        check_absent(tokens_seen=tokens_seen, general_tokens=general_tokens, shift=shift)
        budget = make_budget(**sizes, **given, family=family or USUAL_FAMILY)
        made = make_plan(budget, known, law)
    else:
        check_absent(flops=flops, tokens=tokens, unique_tokens=unique_tokens, law=law)
        base = find_base(continue_from, params, tokens_seen, vocab_size, family)
        budget = make_budget(params=base.shape.count.total, **given)
        made = make_continuation(base, budget, known, *parse_amounts(domain_tokens, general_tokens), shift or "strong")
    print(table.to_text(made.choices, made.warnings, title, explain))
    if output is not None:
        _write(made, title, output)
    if report is not None:
        from t5x_scale.planner.picture import draw

        draw(made, title, report)
        print(f"picture: {report}")
    return 0


def _title(**given: Amount | None) -> str:
    return "A run for " + ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)


def _write(made: Plan | Continuation, title: str, output: str) -> None:
    directory = make_directory(output)
    _say_what_goes(directory / "plan.json", title)
    if isinstance(made, Plan):
        write_text(directory / "model.gin", gin_files.model_text(made))
        write_text(directory / "run.gin", gin_files.run_text(made, title, output, watched=True))
    else:
        write_text(directory / "run.gin", gin_files.continuation_text(made, title, output))
    write_json(directory / "plan.json", record.to_json(made, title))
    print(f"\nwritten to {output}; the first lines of {directory / 'run.gin'} say how it is trained")


def _say_what_goes(path: Path, title: str) -> None:
    """Says which other plan is overwritten."""
    if not exists(path):
        return
    try:
        before = json.loads(read_bounded(path))["title"]
    except (OSError, ValueError, KeyError, TypeError):
        before = "what is no plan"
    if before != title:
        print(f"\noverwrites {path}: {before}")
