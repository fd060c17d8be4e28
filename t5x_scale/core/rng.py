"""Named streams of randomness: every key is a function of (seed, stream, step), nothing random is saved."""

from __future__ import annotations

import jax

# The numbers are part of the format of a run: changing one changes every run that uses its stream.
STREAMS = {"params": 0, "dropout": 1, "data": 2, "sampling": 3, "router": 4}


def make_root_key(seed: int) -> jax.Array:
    """The root threefry key of a run. Threefry gives the same bits on every mesh."""
    return jax.random.key(seed, impl="threefry2x32")


def stream_key(root: jax.Array, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """`fold_in(fold_in(root, stream), step)`: the key that `stream` uses at `step`.

    Raises:
      KeyError: `stream` is not one of `STREAMS`.
    """
    return jax.random.fold_in(jax.random.fold_in(root, STREAMS[stream]), step)
