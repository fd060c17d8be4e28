"""The mixture that a range of steps really holds."""

from __future__ import annotations

import numpy as np

from t5x_scale.data.batch_source import BatchSource


def describe_mixture(source: BatchSource, first: int, stop: int) -> str:
    """A table of what steps [first, stop) hold of every source: rows, tokens, shares of the tokens, epochs.

    Tokens are exact for windows; for packed documents a row counts as the mean of its source. Rows that were skipped
    are not in it, but they count as passed in the epochs, as in a run.

    Args:
      source: of the run.
      first, stop: steps, `stop` not included.
    """
    begin, end = source.position(first), source.position(stop)
    rows = source.delivered_rows(begin, end)
    tokens = rows * np.array([source.delivery.tokens_per_row[name] for name in source.names])
    passed = [source.mixture.rows_before(row) for row in (begin, end)]
    width = max(len(name) for name in (*source.names, "all"))
    lines = [
        f"steps {first} to {stop}: global rows {begin:,} to {end:,}",
        f"{'':{width}}  {'rows':>12}  {'tokens':>16}  {'share':>7}  epochs",
    ]
    for index, name in enumerate(source.names):
        epochs = [int(counts[index]) / source.rows_per_epoch[name] for counts in passed]
        lines.append(
            f"{name:{width}}  {int(rows[index]):12,}  {round(tokens[index]):16,}  {tokens[index] / tokens.sum():7.4f}  "
            f"{epochs[0]:.3f} to {epochs[1]:.3f}"
        )
    lines.append(f"{'all':{width}}  {int(rows.sum()):12,}  {round(tokens.sum()):16,}  {1:7.4f}")
    return "\n".join(lines)
