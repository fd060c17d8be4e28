"""The way back from inputs and targets to the text, for tests and for people who look at examples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from t5x_scale.core import batch as batch_lib
from t5x_scale.data.objectives.denoisers import sentinel_ids
from t5x_scale.data.objectives.interface import Example
from t5x_scale.data.vocabulary import Vocabulary
from t5x_scale.data.vocabulary_codecs import MODES


def restore(inputs: np.ndarray, targets: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Puts the spans of the targets back at their sentinels; without sentinels, the targets behind the inputs.

    A mode token and the end of the targets of span corruption are left out, and so is nothing else: without a mode
    token, the token before the text stays in front of an example that was only split.

    Args:
      inputs: int [n], as `inputs_and_targets` gives them.
      targets: int [m].
      vocabulary: the objective's.

    Returns:
      int32, the raw tokens.

    Raises:
      ValueError: inputs and targets do not have the same sentinels in the same order.
    """
    inputs, targets = np.asarray(inputs, np.int32), np.asarray(targets, np.int32)
    sentinels = sentinel_ids(vocabulary)
    modes = [vocabulary.mode_token_id(mode) for mode in MODES if _has_mode(vocabulary, mode)]
    if len(inputs) and inputs[0] in modes:
        inputs = inputs[1:]
    holes, spans = np.flatnonzero(np.isin(inputs, sentinels)), np.flatnonzero(np.isin(targets, sentinels))
    if not np.array_equal(inputs[holes], targets[spans]):
        raise ValueError("inputs and targets differ in their sentinels")
    if not len(holes):
        return np.concatenate([inputs, targets])
    kept = np.split(inputs, holes)
    noise = np.split(targets[:-1], spans)[1:]
    pieces = [kept[0]]
    for span, after in zip(noise, kept[1:], strict=True):
        pieces += [span[1:], after[1:]]
    return np.concatenate(pieces)


def _has_mode(vocabulary: Vocabulary, mode: str) -> bool:
    return vocabulary.control_id(mode) is not None


def inputs_and_targets(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """The bidirectional prefix of an example and what is predicted behind it: int32 [prefix], int32 [m - prefix + 1].

    An example without a prefix is all targets, behind its first input.
    """
    prefix = max(example.prefix, 1)
    return example.inputs[:prefix], example.targets[prefix - 1 :]


def examples_of(fields: Mapping[str, np.ndarray], row: int) -> list[Example]:
    """The examples in a row of a batch, one for each segment, without padding."""
    columns = {name: field[row] for name, field in fields.items()}
    length = len(columns[batch_lib.INPUT_TOKENS])
    segments = columns.get(batch_lib.SEGMENT_IDS, np.ones(length, np.int32))
    prefix = columns.get(batch_lib.PREFIX, np.zeros(length, np.int32))
    examples = []
    for segment in range(1, int(segments.max(initial=0)) + 1):
        mine = segments == segment
        parts = [columns[n][mine] for n in (batch_lib.INPUT_TOKENS, batch_lib.TARGET_TOKENS, batch_lib.LOSS_WEIGHTS)]
        positions = columns[batch_lib.POSITIONS][mine] if batch_lib.POSITIONS in columns else None
        examples.append(Example(*parts, prefix=int(prefix[mine].sum()), positions=positions))
    return examples
