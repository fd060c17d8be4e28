"""What is said when a run finds no more memory on its devices: what a step takes of it, and what to change."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import jax

from t5x_scale.commands.precompiling.advice import advise
from t5x_scale.core.errors import UserError
from t5x_scale.data.batch_source import BatchSource
from t5x_scale.partitioning.out_of_memory import OutOfMemory, to_out_of_memory
from t5x_scale.program import Runtime

_ROWS = {
    "argument_size_in_bytes": "arguments: parameters, optimiser, batch",
    "output_size_in_bytes": "results: the next of these",
    "alias_size_in_bytes": "of which results take the place of arguments",
    "temp_size_in_bytes": "temporaries: activations, gradients",
    "generated_code_size_in_bytes": "the program itself",
}


@contextlib.contextmanager
def explained(runtime: Runtime, source: BatchSource) -> Iterator[None]:
    """Turns an error of the devices for want of memory into one for people; any other passes.

    Raises:
      UserError: in one line; the table and the advice are on standard error before it.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, OutOfMemory) as error:
        rows, length = max(source.schedule.sizes()), source.length
        what = f"a step of {rows} x {length} tokens"
        found = error if isinstance(error, OutOfMemory) else to_out_of_memory(error, what)
        if found is None:
            raise
        print("\n".join(_explain(runtime, rows, length, found)), file=sys.stderr, flush=True)
        raise UserError(f"out of memory: {found}; see above for what takes it and what to change") from error


def _explain(runtime: Runtime, rows: int, length: int, found: OutOfMemory) -> list[str]:
    state = sum(_bytes_of_shard(leaf) for leaf in jax.tree.leaves(runtime.abstract_state))
    try:
        analysis = runtime.compile_step(rows, length, 1).memory_analysis()
        sizes = {words: getattr(analysis, name, None) for name, words in _ROWS.items()}
    except (UserError, jax.errors.JaxRuntimeError, NotImplementedError):
        sizes = {}  # It does not even compile, or the compiler does not say.
    lines = [f"What the compiler counts for a step of {rows} x {length} tokens, on each device:"] if sizes else []
    lines += [f"  {size / 2**30:9.3f} GiB  {words}" for words, size in sizes.items() if size]
    lines += [f"  {state / 2**30:9.3f} GiB  parameters and optimiser"]
    lines += [f"  {limit / 2**30:9.3f} GiB  on a device in all"] if (limit := _limit(found)) else []
    return [*lines, "What to change:", *(f"  {line}" for line in advise(runtime, rows, state, limit))]


def _limit(found: OutOfMemory) -> float | None:
    if found.available is not None:
        return found.available
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def _bytes_of_shard(leaf: jax.ShapeDtypeStruct) -> int:
    size = leaf.dtype.itemsize
    for dimension in leaf.sharding.shard_shape(leaf.shape):
        size *= dimension
    return size
