"""The batch schema: what data delivers and the step consumes. Field names are SeqIO's.

Every field has shape [B, L] (batch, length).

| field | dtype | meaning |
|---|---|---|
| decoder_input_tokens | int32 | token fed at each position |
| decoder_target_tokens | int32 | token to predict at each position |
| decoder_loss_weights | float32 | weight of each target in the loss; 0 is no loss |
| decoder_segment_ids | int32 | 1, 2, ... number the packed documents; 0 is padding. Absent: one segment |
| decoder_positions | int32 | position inside the segment. Absent: 0 ... L-1 |
| decoder_causal_attention | int32 | 1 where a position belongs to a bidirectional prefix. Absent: causal |

The last three are optional, and optional means absent, not zero: a model that finds none of them runs the
cheaper program. Data delivers no other; the step adds `decoder_index`, int32, where each position stands in its row,
if it has put the length in another order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

INPUT_TOKENS = "decoder_input_tokens"
TARGET_TOKENS = "decoder_target_tokens"
LOSS_WEIGHTS = "decoder_loss_weights"
SEGMENT_IDS = "decoder_segment_ids"
POSITIONS = "decoder_positions"
PREFIX = "decoder_causal_attention"
INDEX = "decoder_index"

DTYPES: dict[str, np.dtype] = {
    INPUT_TOKENS: np.dtype(np.int32),
    TARGET_TOKENS: np.dtype(np.int32),
    LOSS_WEIGHTS: np.dtype(np.float32),
    SEGMENT_IDS: np.dtype(np.int32),
    POSITIONS: np.dtype(np.int32),
    PREFIX: np.dtype(np.int32),
}
REQUIRED = (INPUT_TOKENS, TARGET_TOKENS, LOSS_WEIGHTS)
# Logical axes of every field.
AXES = ("batch", "length")

Batch = Mapping[str, np.ndarray]


def check_batch(batch: Batch) -> tuple[int, int]:
    """Checks names, dtypes and shapes of a batch and returns its (batch size, length).

    Raises:
      ValueError: naming the field that is missing, unknown, of another dtype or of another shape.
    """
    missing = [name for name in REQUIRED if name not in batch]
    if missing:
        raise ValueError(f"batch lacks {', '.join(missing)}; it has {', '.join(sorted(batch))}")
    shape = np.shape(batch[INPUT_TOKENS])
    if len(shape) != 2:
        raise ValueError(f"{INPUT_TOKENS} has shape {shape}, expected [batch, length]")
    for name, value in batch.items():
        if name not in DTYPES:
            raise ValueError(f"batch has the unknown field '{name}'; known are {', '.join(DTYPES)}")
        if np.shape(value) != shape:
            raise ValueError(f"{name} has shape {np.shape(value)}, {INPUT_TOKENS} has {shape}")
        if value.dtype != DTYPES[name]:
            raise ValueError(f"{name} has dtype {value.dtype}, expected {DTYPES[name]}")
    return shape
