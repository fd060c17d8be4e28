"""What an objective makes of a store: inputs, targets and losses that a person can check."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.data import objectives
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.batch_source import BatchSource
from t5x_scale.data.inspection.steps import describe_spans
from t5x_scale.data.inspection.text import quoted, ranges, table
from t5x_scale.data.objectives import Example, Objective, RowKeys
from t5x_scale.data.objectives.denoising import Denoising
from t5x_scale.data.objectives.randomness import draw_words
from t5x_scale.data.rows.delivery import Windows
from t5x_scale.data.rows.packed_delivery import PackDocuments
from t5x_scale.data.token_store import TokenStore
from t5x_scale.data.vocabulary import Vocabulary

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "causal_lm": objectives.CausalLm,
    "prefix_lm": objectives.PrefixLm,
    "span_corruption": objectives.SpanCorruption,
    "ul2": objectives.Ul2,
    "ul2r": objectives.Ul2r,
    "fim": objectives.FillInTheMiddle,
    "masked_diffusion": objectives.MaskedDiffusion,
    "supervised": objectives.Supervised,
}
PACKINGS = ("windows", "documents")
SOURCE = "store"


def make_objective(name: str, vocabulary: Vocabulary) -> Objective:
    """An objective with its default settings.

    Raises:
      UserError: an unknown name, or a vocabulary that lacks its control tokens.
    """
    if name not in OBJECTIVES:
        raise UserError(f"no objective '{name}'{did_you_mean(name, OBJECTIVES)}; there are {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]().with_vocabulary(vocabulary)


def describe_examples(
    store: TokenStore,
    objective: Objective,
    length: int,
    count: int,
    *,
    packing: str | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> str:
    """The first rows that a run on this store alone would see.

    Args:
      store: the tokens.
      objective: with its vocabulary.
      length: L, positions of a row.
      count: rows to show.
      packing: "windows" or "documents"; None is windows, but documents for supervised learning.
      seed: of the run.
      limit: characters shown of each text; None is all.

    Raises:
      UserError: the objective or the packing does not suit the store.
    """
    supervised = isinstance(objective, objectives.Supervised)
    if supervised and not store.is_supervised:
        raise UserError(f"the token store {store.directory} holds plain documents: supervised needs inputs and targets")
    packing = packing or ("documents" if supervised else "windows")
    if packing not in PACKINGS:
        raise UserError(f"no packing '{packing}'{did_you_mean(packing, PACKINGS)}; there are {', '.join(PACKINGS)}")
    config = Windows() if packing == "windows" else PackDocuments()
    source = BatchSource(
        {SOURCE: store},
        {SOURCE: 1.0},
        BatchSchedule(count),
        objective,
        length=length,
        seed=seed,
        delivery=config.make({SOURCE: store}, objective, length, seed=seed),
        max_epochs=None,
    )
    found = source.locate(np.arange(count))
    fields = source.fields(found)
    labels = _labels(objective, RowKeys(seed, found.rows)) if packing == "windows" else {}
    texts = []
    for row in range(count):
        spans = source.delivery.spans(SOURCE, int(found.indices[row]))
        head = f"row {row}: {describe_spans(store, spans)}"
        examples = objectives.examples_of(fields, row)
        parts = [
            _describe_example(example, number, len(examples), labels.get((row, number)), objective, limit)
            for number, example in enumerate(examples)
        ]
        texts.append("\n".join([head, *parts]))
    return "\n\n".join(texts)


def _describe_example(
    example: Example, number: int, of: int, label: str | None, objective: Objective, limit: int | None
) -> str:
    vocabulary = objective.need_vocabulary()
    learnt = np.flatnonzero(example.weights > 0)
    weights = example.weights[learnt]
    varied = f", weights {weights.min():.3g} to {weights.max():.3g}" if len(learnt) and np.ptp(weights) else ""
    rows = [
        ("denoiser", label),
        ("positions", f"{len(example.inputs)}, bidirectional prefix {example.prefix}"),
        ("loss on", f"{ranges(learnt)} ({len(learnt)} targets{varied})"),
        ("inputs", quoted(_given(example, learnt), vocabulary, limit)),
        ("targets", _targets_text(example, learnt, vocabulary, limit)),
    ]
    title = f"  example {number + 1} of {of}\n" if of > 1 else ""
    return title + table([(name, value) for name, value in rows if value is not None], indent="  ")


def _given(example: Example, learnt: np.ndarray) -> np.ndarray:
    """What is fed up to the first position that is learnt; everything, where learnt positions are scattered."""
    if not len(learnt) or len(example.inputs) - learnt[0] != len(learnt):
        return example.inputs
    return example.inputs[: max(example.prefix, int(learnt[0]) + 1)]


def _targets_text(example: Example, learnt: np.ndarray, vocabulary: Vocabulary, limit: int | None) -> str:
    runs = np.split(learnt, np.flatnonzero(np.diff(learnt) > 1) + 1)
    if len(runs) == 1:
        return quoted(example.targets[learnt], vocabulary, limit)
    shown = [f"{run[0]}: {quoted(example.targets[run], vocabulary, limit)}" for run in runs[:12]]
    return ", ".join(shown) + (f" and {len(runs) - 12} more" if len(runs) > 12 else "")


def _labels(objective: Objective, keys: RowKeys) -> dict[tuple[int, int], str]:
    """{(row, example of it): the denoiser that it meets}, for windows."""
    if not isinstance(objective, Denoising):
        return {}
    parts = objective.examples_per_row
    chosen = objective.choose(draw_words(keys.split(parts) if parts > 1 else keys, 2)[:, 0])
    labels = [objective.mixture[index][0].label for index in chosen.tolist()]
    return {divmod(index, parts): label for index, label in enumerate(labels)}
