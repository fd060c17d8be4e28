"""`t5x_scale infer`: completions of prompts from the checkpoint of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from t5x_scale import run_files
from t5x_scale.beginning import load_parameters
from t5x_scale.core import files
from t5x_scale.core.distributed import ProcessConfig, join_run
from t5x_scale.core.errors import UserError
from t5x_scale.data.vocabulary import load_vocabulary
from t5x_scale.decode.generation import Generator
from t5x_scale.decode.prompts import encode_prompts, read_prompts
from t5x_scale.decode.sampling import SamplingConfig
from t5x_scale.decode.transcript import Transcript
from t5x_scale.program import Program, Runtime

FEATURE = "targets"


def infer(
    program: Program,
    vocabulary: str,
    model_dir: str | None = None,
    checkpoint_path: str | None = None,
    prompts: Sequence[str] = (),
    prompts_file: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
    task_feature_lengths: Mapping[str, int] | None = None,
    context_length: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    max_new_tokens: int = 128,
    seed: int = 0,
    batch_size: int = 8,
    prefix_lm: bool = False,
    begin: str | None = None,
    mode: str | None = None,
    processes: ProcessConfig = ProcessConfig(),
) -> int:
    """Completes prompts: text appears on the terminal as it is made, records go to a file.

    Args:
      program: the model and where its arrays lie.
      vocabulary: as `data.vocabulary.load_vocabulary` takes it.
      model_dir: the run whose newest checkpoint is used.
      checkpoint_path: another run, or one step of a run; takes the place of `model_dir`.
      prompts: texts.
      prompts_file: a file of further prompts, one a line, or `.jsonl` (see `decode.prompts.read_prompts`).
      output: a `.jsonl` file for prompts, completions, tokens, reasons to stop and log-probabilities. It is written
        when all is done, whole.
      overwrite: whether `output` may take the place of a file.
      task_feature_lengths: {"targets": positions of a training row}, the context unless `context_length` says.
      context_length: prompt and completion together have at most so many tokens.
      temperature, top_k, top_p, max_new_tokens, seed: see `decode.sampling.SamplingConfig`.
      batch_size: prompts decoded together. Changes nothing but speed and memory.
      prefix_lm: the tokens of a prompt see each other in both directions, for models trained so (UL2R).
      begin: `eod` or `bos`: this token comes before every prompt. By default only an empty prompt gets one.
      mode: a mode of UL2 to put before every prompt, such as `[S2S]`.
      processes: how long several processes wait for each other.

    Returns:
      0.
    """
    join_run(processes)
    sampling = SamplingConfig(temperature, top_k, top_p, max_new_tokens, seed)
    texts = _gather(prompts, prompts_file)
    vocabulary_ = load_vocabulary(vocabulary)
    tokens = encode_prompts(texts, vocabulary_, begin, mode)
    source = checkpoint_path or model_dir
    if source is None:
        raise UserError("infer needs a checkpoint: set MODEL_DIR, or --checkpoint_path=PATH")
    runtime = program.make()
    generator = Generator(
        program.model,
        sampling,
        context_length=_context_length(context_length, task_feature_lengths),
        eos_ids=sorted({vocabulary_.eod_id, vocabulary_.eos_id} - {None}),
        batch_size=batch_size,
        prefix_lm=prefix_lm,
        num_tokens=vocabulary_.size,
        mesh=runtime.mesh,
        rules=program.rules,
    )
    generator.check(tokens)
    if output is not None:
        _check_output(output, overwrite)

    params, place = load_parameters(runtime, source)
    is_primary = jax.process_index() == 0
    _say(f"parameters from {place}", is_primary)
    transcript = Transcript(texts, tokens, vocabulary_, sys.stdout if is_primary else None)
    start = time.monotonic()
    for piece in generator.generate(params, tokens):
        transcript.add(piece)
    _say(f"{transcript.num_tokens} tokens in {time.monotonic() - start:.1f} s", is_primary)
    if output is not None and is_primary:
        files.write_text(output, transcript.to_jsonl())
        _say(f"wrote {len(texts)} completions to {files.to_path(output)}", is_primary)
    return 0


def _gather(prompts: Sequence[str], prompts_file: str | None) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if prompts_file is not None:
        texts += read_prompts(prompts_file)
    if not texts:
        raise UserError('infer needs a prompt: --prompt="text" (also an empty one), or --prompts_file=PATH')
    return texts


def _context_length(context_length: int | None, task_feature_lengths: Mapping[str, int] | None) -> int:
    if context_length is not None:
        return context_length
    length = (task_feature_lengths or {}).get(FEATURE)
    if not isinstance(length, int) or length < 1:
        raise UserError(
            f"infer does not know the model's context: set TASK_FEATURE_LENGTHS = {{'{FEATURE}': positions of a row}}, "
            "or infer.infer.context_length"
        )
    return length


def _check_output(output: str, overwrite: bool) -> None:
    path = files.to_path(output)
    if files.is_directory(path):
        raise UserError(f"output {path} is a directory; name a file in it")
    if files.exists(path) and not overwrite:
        raise UserError(f"output {path} exists: give another name, or add --gin.infer.infer.overwrite=True")
    files.make_directory(path.parent)


def _say(message: str, is_primary: bool) -> None:
    # Not on stdout: that is for the completions.
    if is_primary:
        print(message, file=sys.stderr)


def dry_run(program: Program, **_: Any) -> str:
    """The parameter table and totals, without allocating anything."""
    return run_files.parameter_report(Runtime(program, program.mesh.make_abstract_mesh()))
