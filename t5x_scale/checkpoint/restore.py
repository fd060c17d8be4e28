"""Reading checkpoints: straight into shards, every leaf accounted for and verified."""

from __future__ import annotations

import dataclasses
import functools
import gc
import hashlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from t5x_scale.checkpoint import integrity, layout, multihost
from t5x_scale.checkpoint.absence import check_absence
from t5x_scale.checkpoint.layout import DamagedError, Document
from t5x_scale.checkpoint.plain_files import check_plain_files
from t5x_scale.checkpoint.together import read_together
from t5x_scale.core import files, trees
from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.core.leaves import Origin, OriginLine, render_lines
from t5x_scale.core.storage_errors import describe_read

PARAMETERS = "params"
_ORBAX, _CLOSED = "orbax", "Event loop is closed"


@dataclasses.dataclass(frozen=True)
class OriginReport:
    """Where every parameter of a run that starts from another checkpoint came from."""

    source: str
    step: int
    leaves: tuple[OriginLine, ...]

    def render(self) -> str:
        """The step, and a line a parameter; see `core.leaves.render_lines`."""
        return f"from {self.source}\n{render_lines(self.leaves)}"


def restore_parameters(path: str | os.PathLike, abstract_params: Mapping[str, Any]) -> tuple[Any, OriginReport]:
    """Reads the parameters, and nothing else, of another run's checkpoint.

    Args:
      path: a MODEL_DIR (its newest step that verifies), its `checkpoints` directory, or one step's directory.
      abstract_params: nested dict of `jax.ShapeDtypeStruct` with shardings. A dtype other than the saved one
        is a cast, done shard by shard after the saved bits were verified.

    Returns:
      The parameters, placed as asked, and the report of their origin.

    Raises:
      UserError: nothing is there, a leaf is missing, unexpected or of another shape (all found before
        anything is read), or nothing there verifies.
    """
    directory, steps = _find_steps(path)
    wanted = trees.flatten(abstract_params)

    def read(step: int) -> tuple[Any, OriginReport]:
        step_path = layout.step_directory(directory, step)
        document = read_document(step_path)
        _check_parameters(document, wanted, str(step_path))
        sources = {name: f"{PARAMETERS}/{name}" for name in wanted}
        saved = {
            source: jax.ShapeDtypeStruct(
                wanted[name].shape, document.leaves[source].dtype, sharding=wanted[name].sharding
            )
            for name, source in sources.items()
        }
        arrays = read_verified_leaves(functools.partial(read_leaves, step_path), document, saved)
        params = {name: _cast(arrays.pop(source), wanted[name]) for name, source in sources.items()}
        origins = tuple(
            OriginLine(name, tuple(leaf.shape), str(leaf.dtype), _origin(source, saved[source].dtype, leaf.dtype))
            for (name, source), leaf in zip(sources.items(), wanted.values(), strict=True)
        )
        return trees.unflatten(params), OriginReport(str(step_path), step, origins)

    return first_that_verifies(directory, steps, read)[1]


def _origin(source: str, saved: Any, wanted: Any) -> Origin:
    cast = "" if str(saved) == str(wanted) else f"cast {saved} to {wanted}"
    return Origin("restored", source, cast)


def _find_steps(path: str | os.PathLike) -> tuple[files.Path, list[int]]:
    """`layout.find_step_directory`, with one outcome for all processes of a run: a listing may race with a save."""
    directory, steps = read_together(lambda: layout.find_step_directory(path), os.fspath(path))
    return directory, multihost.share_steps(steps[::-1])[::-1]


def _check_parameters(document: Document, wanted: Mapping[str, Any], where: str) -> None:
    """Checks the parameters on record against those wanted, by path and shape."""
    prefix = f"{PARAMETERS}/"
    leaves = {name.removeprefix(prefix): leaf for name, leaf in document.leaves.items() if name.startswith(prefix)}
    if not leaves:
        near = did_you_mean(PARAMETERS, {name.split("/")[0] for name in document.leaves})
        raise UserError(f"{where} holds no '{PARAMETERS}'{near}")
    trees.check_shapes(leaves, wanted, where)


def first_that_verifies(
    directory: files.Path, steps: list[int], read: Any, on_damage: Callable[[int, str], None] | None = None
) -> tuple[int, Any]:
    """Calls `read(step)` for `steps` in their order until one raises no `DamagedError`.

    Every fallback is a warning that names the damaged step, the damage and the step tried next; `on_damage` is told of
    the first two.

    Returns:
      The step and what `read` returned for it.

    Raises:
      UserError: every step is damaged; the message says how.
    """
    reasons = []
    for position, step in enumerate(steps):
        try:
            return step, read(step)
        except DamagedError as error:
            reasons.append(f"step {step}: {error}")
            if on_damage is not None:
                on_damage(step, str(error))
            following = steps[position + 1 :]
            if following:
                layout.LOGGER.warning(
                    "the checkpoint of step %d in %s is damaged and NOT used: %s. Falling back to step %d",
                    *(step, directory, error, following[0]),
                )
    raise UserError(
        f"no checkpoint in {directory} can be trusted: {'; '.join(reasons)}; put a copy of one back, or begin anew in "
        "another directory"
    )


def read_document(step_path: files.Path) -> Document:
    """`layout.read_document` of a step of plain files, with one outcome for all processes of a run.

    Raises:
      DamagedError: some process could not read it or does not trust it.
      UserError: some process may not read it, or its storage is away, which says nothing of what it holds.
    """

    def read() -> Document:
        check_plain_files(step_path)
        return layout.read_document(step_path)

    document = read_together(read, f"the metadata of step {step_path.name}")
    check_same(document)
    return document


def check_same(document: Document) -> None:
    """Checks that every process has read the same document.

    Raises:
      DamagedError: they have not.
    """
    content = json.dumps(vars(document), default=vars, sort_keys=True)
    word = int(hashlib.sha256(content.encode()).hexdigest()[:15], 16)
    if not multihost.all_agree(multihost.share_word(word) == word):
        raise DamagedError("the processes have different ones")


def read_verified_leaves(
    read: Callable[[Mapping[str, jax.ShapeDtypeStruct]], dict[str, jax.Array]],
    document: Document,
    abstract: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
    """Reads the leaves `abstract` (by path, with their saved dtypes) into their shardings and verifies them.

    Args:
      read: called with `abstract` by every process, such as `read_leaves` of a step.
      document: what is on record.
      abstract: what is wanted.

    Raises:
      DamagedError: a leaf cannot be read, or its bits are not those that were saved, in some process.
      UserError: some process may not read them, has no memory for them, or its storage is away, which says nothing of
        their bits.
    """
    _mute_orbax()

    def read_once() -> dict[str, jax.Array]:
        try:
            return read(abstract)
        except (DamagedError, MemoryError, jax.errors.JaxRuntimeError) as error:
            _end_reads(error)
            raise
        except Exception as error:
            # The storage library raises a dozen types for bytes it cannot make sense of.
            _end_reads(error)
            raise DamagedError(f"its arrays cannot be read: {describe_read(error)}") from error

    arrays = read_together(read_once, f"the arrays of step {document.step}")
    expected = {path: integrity.from_text(document.leaves[path].fingerprint) for path in abstract}
    different = integrity.find_differences(expected, integrity.fingerprint_leaves(arrays))
    if not multihost.all_agree(not different):
        for array in arrays.values():
            array.delete()  # The step before it needs the memory.
        if not different:
            raise DamagedError("another process finds that leaves lost their bits")
        raise DamagedError(f"{len(different)} of {len(expected)} leaves lost their bits, the first is '{different[0]}'")
    return arrays


def read_leaves(step_path: files.Path, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads leaves by path into the shardings of `abstract`, without verifying them. A dtype is a silent cast."""
    arguments = {
        path: ocp.ArrayRestoreArgs(
            restore_type=jax.Array, dtype=leaf.dtype, sharding=_sharding(leaf), global_shape=leaf.shape, strict=True
        )
        for path, leaf in abstract.items()
    }
    # Without what Orbax notes of arrays a second time: where the leaves lie and what they are is on our record.
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, ocp.type_handlers.ArrayHandler(array_metadata_store=None))
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    # Each process reads for itself, and waits in there for none whose reading has failed: they agree afterwards.
    alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
    state = step_path / layout.STATE_ITEM
    arguments = ocp.args.PyTreeRestore(
        item=trees.unflatten(abstract), restore_args=trees.unflatten(arguments), partial_restore=True
    )
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            nested = checkpointer.restore(state, args=arguments)
    except Exception as error:
        check_absence(state, abstract, error)
        raise
    found = trees.flatten(nested)
    return {path: found[path] for path in abstract}


@functools.cache
def _mute_orbax() -> None:
    """Keeps Python from printing a page for each of Orbax's reads that were under way when one of them failed."""
    before = sys.unraisablehook

    def say(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        if (code is None or _ORBAX not in code.co_filename) and _CLOSED not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = say


def _end_reads(failure: Exception) -> None:
    """Has Orbax's reads that were under way end here, and not whenever Python happens to look for garbage."""
    traceback.clear_frames(failure.__traceback__)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        gc.collect()


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _cast(array: jax.Array, wanted: Any) -> jax.Array:
    if array.dtype == wanted.dtype:
        return array
    return jax.jit(lambda x: x.astype(wanted.dtype), out_shardings=array.sharding)(array)
