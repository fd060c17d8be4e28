"""Floor 8: one file per command. This page is the registry; it imports nothing, so that `--help` is immediate.

A command is a plain function of a module of this package. Its parameters are set in gin, its docstring is not
needed here, and it returns an exit code (`None` means 0, done). A module may also hold `dry_run(...)`, called with
the same arguments for `--dry_run`; it returns text to print.
"""

from __future__ import annotations

from typing import NamedTuple


class Flag(NamedTuple):
    """A convenience flag of one command: another way to write a gin binding, or a variable of the environment.

    Attributes:
      binding: what the flag sets, written as after `--gin.`: a macro or `module.function.parameter`; or `$VARIABLE`,
        for what differs between the processes of a run and so belongs in no configuration.
      help: one line for `--help`.
      repeated: the flag may be given many times and sets the tuple of its values.
      positional: the value may stand alone, without the name of the flag.
      literal: the value is gin (`7`, `None`, `@module.function`); otherwise it is text and needs no quotes.
      alone: what the flag sets when it is given without a value.
    """

    binding: str
    help: str
    repeated: bool = False
    literal: bool = False
    positional: bool = False
    alone: str | None = None


# What the command line calls -> "module:function".
COMMANDS: dict[str, str] = {
    "train": "t5x_scale.commands.train:train",
    "eval": "t5x_scale.commands.evaluate:evaluate",
    "infer": "t5x_scale.commands.infer:infer",
    "import": "t5x_scale.commands.import_checkpoint:import_checkpoint",
    "reshape": "t5x_scale.commands.reshape:reshape",
    "export": "t5x_scale.commands.export:export",
    "report": "t5x_scale.commands.report:report",
    "precompile": "t5x_scale.commands.precompile:precompile",
    "plan": "t5x_scale.commands.plan:plan",
    "verify": "t5x_scale.commands.verify:verify",
}

# One line each for `t5x_scale --help`.
SUMMARIES: dict[str, str] = {
    "train": "train a model; the same command again resumes it",
    "eval": "evaluate a checkpoint",
    "infer": "generate text from a checkpoint",
    "import": "turn a Hugging Face or T5X checkpoint into one of ours",
    "reshape": "make a checkpoint deeper, sparser, wider, of another vocabulary, or one of several",
    "export": "turn a checkpoint into a Hugging Face directory",
    "report": "draw the loss curve and the tables of a run",
    "precompile": "compile the training step for a machine that is not here, and say what it takes of it",
    "plan": "from a budget to a run: size, tokens, batch, rates, expected loss, machine, by the scaling laws",
    "verify": "read checkpoints and say whether every bit is the one that was saved",
}

# Where a process stands among those of its run, where neither a Cloud TPU nor a launcher says so.
_PLACE = {
    "--coordinator_address": Flag("$JAX_COORDINATOR_ADDRESS", "host:port of process 0, the same for all processes"),
    "--num_processes": Flag("$JAX_NUM_PROCESSES", "the number of processes; 1 is a process on its own"),
    "--process_id": Flag("$JAX_PROCESS_ID", "which of them this is, from 0"),
}

# command -> flag -> what it sets.
FLAGS: dict[str, dict[str, Flag]] = {
    "train": _PLACE,
    "eval": {
        **_PLACE,
        "--checkpoint_path": Flag(
            "evaluate.evaluate.checkpoint_path", "a run, or one step of it, instead of MODEL_DIR"
        ),
        "--output": Flag("evaluate.evaluate.output", "a JSON file for the results"),
    },
    "precompile": {
        "--search": Flag(
            "precompile.precompile.search",
            "compile candidates and name the fastest that fits; @search.Search() for those of a gin file",
            literal=True,
            alone="True",
        ),
        "--output": Flag("precompile.precompile.output", "a JSON file for the results"),
    },
    "plan": {
        "--flops": Flag("plan.plan.flops", "a budget in FLOPs, such as 1e22"),
        "--chips": Flag("plan.plan.chips", "a machine: v5p-512 is 512 chips, v4_2x3072 two slices, v5e any number"),
        "--days": Flag("plan.plan.days", "with --chips its compute; else the most that the run may take"),
        "--mfu": Flag("plan.plan.mfu", "share of the peak that is reached"),
        "--params": Flag("plan.plan.params", "size of the model, such as 8b"),
        "--tokens": Flag("plan.plan.tokens", "tokens to train on"),
        "--unique_tokens": Flag("plan.plan.unique_tokens", "tokens that there are; more are repetitions"),
        "--family": Flag("plan.plan.family", "llama or palm"),
        "--vocab_size": Flag("plan.plan.vocab_size", "of a tokenizer that there is already"),
        "--length": Flag("plan.plan.length", "tokens of a row", literal=True),
        "--law": Flag("plan.plan.law", "the law that divides compute between size and tokens"),
        "--laws": Flag("plan.plan.laws", "a JSON file of laws fitted to runs of your own"),
        "--precompiled": Flag("plan.plan.precompiled", "a JSON file of precompile --output, for the MFU"),
        "--explain": Flag("plan.plan.explain", "every law that spoke about every number", literal=True, alone="True"),
        "--output": Flag("plan.plan.output", "a directory for model.gin, run.gin and plan.json"),
        "--report": Flag("plan.plan.report", "a PNG file for a picture", alone="plan.png"),
        "--continue_from": Flag("plan.plan.continue_from", "a run, a checkpoint or a Hugging Face directory"),
        "--tokens_seen": Flag("plan.plan.tokens_seen", "by the model that is continued"),
        "--domain_tokens": Flag("plan.plan.domain_tokens", "new tokens that it shall learn from"),
        "--general_tokens": Flag("plan.plan.general_tokens", "tokens that there are of what it was trained on"),
        "--shift": Flag("plan.plan.shift", "weak for a near domain, strong for another language"),
    },
    "report": {"--model_dir": Flag("report.report.model_dir", "the run", positional=True)},
    "verify": {
        "--model_dir": Flag(
            "verify.verify.model_dir", "a run, or one step of it, or what import wrote", positional=True
        ),
        "--step": Flag("verify.verify.step", "the one step to look at; all by default", literal=True),
    },
    "import": {
        "--source": Flag("import_checkpoint.import_checkpoint.source", "what is read", positional=True),
        "--output": Flag("import_checkpoint.import_checkpoint.output", "a new directory", positional=True),
        "--dtype": Flag("import_checkpoint.import_checkpoint.dtype", "of the parameters on disk, if another"),
    },
    "reshape": {
        "--source": Flag("reshape.reshape.source", "a run, one step of it, or what import reads", positional=True),
        "--output": Flag("reshape.reshape.output", "a new directory", positional=True),
        "--merge_with": Flag("reshape.reshape.others", "a further checkpoint of a merge", repeated=True),
        "--dtype": Flag("reshape.reshape.dtype", "of the parameters on disk, if another"),
    },
    "export": {
        "--source": Flag("export.export.source", "a run, one step of it, or what import reads", positional=True),
        "--output": Flag("export.export.output", "a new directory", positional=True),
        "--family": Flag("export.export.family", "the Hugging Face family that shall carry it"),
        "--dtype": Flag("export.export.dtype", "of the parameters on disk, if another"),
        "--vocab_size": Flag("export.export.vocab_size", "rows of the token table that go out", literal=True),
    },
    "infer": {
        **_PLACE,
        "--prompt": Flag("infer.infer.prompts", "a prompt; may be given many times", repeated=True),
        "--prompts_file": Flag("infer.infer.prompts_file", "a file of prompts, one a line, or .jsonl"),
        "--output": Flag("infer.infer.output", "a .jsonl file for the completions"),
        "--checkpoint_path": Flag("infer.infer.checkpoint_path", "a run, or one step of a run, instead of MODEL_DIR"),
        "--temperature": Flag("infer.infer.temperature", "0 is greedy", literal=True),
        "--top_k": Flag("infer.infer.top_k", "choose among the k likeliest tokens", literal=True),
        "--top_p": Flag("infer.infer.top_p", "choose among the likeliest tokens of this probability", literal=True),
        "--max_new_tokens": Flag("infer.infer.max_new_tokens", "length of a completion", literal=True),
    },
}
