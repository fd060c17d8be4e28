"""Checkpoints of every kind we read, as `Weights`: found out by what lies at the path, not by its name."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from t5x_scale.checkpoint import layout
from t5x_scale.checkpoint.lazy_reader import read_lazily
from t5x_scale.core import files
from t5x_scale.core.errors import UnavailableError, UserError, did_you_mean
from t5x_scale.core.lazy import LazyArray, Region
from t5x_scale.core.leaves import Leaf, Origin
from t5x_scale.core.patience import read_patiently
from t5x_scale.data.batch_schedule import BatchSchedule
from t5x_scale.data.vocabulary import tokenizer_files
from t5x_scale.interop.hugging_face import is_hugging_face
from t5x_scale.interop.reader import read_hugging_face
from t5x_scale.interop.t5x_reader import is_t5x, read_t5x
from t5x_scale.models.architecture import Architecture
from t5x_scale.models.assembly import axes_of, from_description
from t5x_scale.models.interface import DecoderModel
from t5x_scale.models.records import architecture_from_json
from t5x_scale.models.weights import Weights
from t5x_scale.surgery.optimizer_state import split_state

LOGGER = logging.getLogger("t5x_scale.conversion")
TOKENIZER = "tokenizer"
OWN = "t5x_scale"
_WANTED = "name the directory of a run of ours, of a Hugging Face model or of a T5X checkpoint"
_PARAMETERS, _OPTIMIZER = "params/", "opt_state/"

# What the checkpoint being opened began with, and that with, and so on.
_FOLLOWED: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("followed", default=())

# Called with the bytes done and the bytes in all.
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint that was opened.

    Attributes:
      weights: its tensors and what they mean.
      kind: "t5x_scale", "Hugging Face" or "T5X".
      place: the directory that holds the tensors.
    """

    weights: Weights
    kind: str
    place: str

    @property
    def is_own(self) -> bool:
        """Whether it is a checkpoint of this house."""
        return self.kind == OWN


def open_source(
    path: str,
    architecture: Architecture | None = None,
    *,
    parameters_only: bool = False,
    verify: bool = True,
    on_progress: Progress | None = None,
) -> Source:
    """Opens what lies at `path`. Nothing is kept of its tensors, which are read when they are wanted.

    Args:
      path: a run of ours or one step of it, what `import` or `reshape` wrote, a Hugging Face directory with
        `config.json` and safetensors, or a T5X checkpoint directory; local or gs://.
      architecture: what the parameters mean; used only where the checkpoint does not say (T5X's never do).
      parameters_only: leaves the state of an optimiser out.
      verify: whether a checkpoint of ours is read once and compared with its fingerprints before this returns; a
        damaged step is left for the one before it. The others carry none.
      on_progress: called with bytes verified and bytes in all.

    Raises:
      UserError: nothing that can be read lies there, or it is incomplete, inconsistent or damaged.
      UnavailableError: the storage does not answer.
    """
    options = {"parameters_only": parameters_only, "verify": verify, "on_progress": on_progress}
    return read_patiently(lambda: _open(path, architecture, **options), path)


def _open(
    path: str, architecture: Architecture | None, *, parameters_only: bool, verify: bool, on_progress: Progress | None
) -> Source:
    where = files.to_path(path)
    if not files.exists(where):
        raise UserError(f"{where} does not exist{_nearest(where)}; {_WANTED}")
    if not files.is_remote(where) and not files.is_directory(where):
        raise UserError(f"{where} is a file; {_WANTED}, such as {where.parent}")
    if is_hugging_face(where):
        return Source(read_hugging_face(where), "Hugging Face", str(where))
    if is_t5x(where):
        if architecture is None:
            raise UserError(
                f"{where} is a T5X checkpoint, which does not say what its parameters mean: give the model it is, "
                "with --gin_file=gin/models/<family>/<size>.gin and --gin_file=gin/runs/convert.gin behind it"
            )
        return Source(read_t5x(where, architecture), "T5X", str(where))
    if not is_own(path):
        raise UserError(
            f"{where} holds no finished checkpoint, nor is it a Hugging Face directory (config.json) or a T5X "
            f"checkpoint; {_WANTED}"
        )
    prefix = _PARAMETERS if parameters_only else ""
    return _open_own(path, architecture, prefix=prefix, verify=verify, on_progress=on_progress)


def _nearest(path: files.Path) -> str:
    beside = path.parent
    if files.is_remote(path) or not files.is_directory(beside):
        return ""
    if os.path.islink(path):
        return " (it is a link that leads nowhere)"
    return did_you_mean(path.name, [entry.name for entry in beside.iterdir()])


def is_own(path: str) -> bool:
    """Whether a checkpoint of this house, a run's or a converted one, lies at `path`."""
    try:
        layout.find_step_directory(path)
    except UserError:
        return False
    return True


def _open_own(path: str, architecture: Architecture | None, **options: Any) -> Source:
    step_path, document, arrays = read_lazily(path, **options)
    arrays = {name: _naming_damage(array, step_path) for name, array in arrays.items()}
    architecture = recorded_architecture(document.metadata) or architecture
    weights = Weights(
        leaves=_leaves(arrays, architecture),
        architecture=architecture,
        tokenizer=_tokenizer(step_path, document.metadata),
        recipe=_recipe(document),
    )
    moments, counters = split_state(_state_leaves(arrays), weights.leaves)
    weights = weights.replace(moments=moments, counters=counters)
    return Source(weights, OWN, str(step_path))


def _naming_damage(array: LazyArray, place: files.Path) -> LazyArray:
    """The array; what rots after it was verified is said as other mistakes are."""

    def read(region: Region) -> np.ndarray:
        try:
            return array.read(region)
        except layout.DamagedError as error:
            raise UserError(f"the checkpoint {place} went bad while it was read: {error}") from error

    return dataclasses.replace(array, reader=read)


def recorded_architecture(metadata: Mapping[str, Any]) -> Architecture | None:
    """What the metadata of a checkpoint says of its model; None where it is something an Architecture cannot say."""
    if "conversion" in metadata:
        record = metadata["conversion"].get("architecture")
        return None if record is None else architecture_from_json(record)
    run = metadata.get("run", {})
    description = run.get("refused", {}).get("model")
    if description is None:
        return None
    try:
        architecture = from_description(description)
    except UserError as error:
        LOGGER.warning("the model of this checkpoint can be moved, not translated: %s", error)
        return None
    if architecture.max_length:
        return architecture
    length = max(run.get("free", {}).get("sequence_length") or 0, _context_before(run))
    return dataclasses.replace(architecture, max_length=length)


def _context_before(run: Mapping[str, Any]) -> int:
    """The context of what a run began with, as far as that can still be seen: rows may be shorter than it."""
    start = run.get("recorded", {}).get("initial_checkpoint_path")
    if not start:
        return 0
    try:
        with _following(start):
            architecture = open_source(start, parameters_only=True, verify=False).weights.architecture
    except UserError as error:
        LOGGER.warning("the context of the model is taken from the run's rows: %s", error)
        return 0
    return 0 if architecture is None else architecture.max_length


@contextlib.contextmanager
def _following(path: str) -> Iterator[None]:
    """The time in which the record of what a run began with is looked at.

    Raises:
      UserError: it says, by whatever way, that it began with itself.
    """
    if path in _FOLLOWED.get():
        raise UserError(f"{path} began with itself, by its record")
    token = _FOLLOWED.set((*_FOLLOWED.get(), path))
    try:
        yield
    finally:
        _FOLLOWED.reset(token)


def _leaves(arrays: Mapping[str, LazyArray], architecture: Architecture | None) -> dict[str, Leaf]:
    axes = {} if architecture is None else axes_of(architecture)
    found = {}
    for name, array in arrays.items():
        if name.startswith(_PARAMETERS):
            path = name.removeprefix(_PARAMETERS)
            known = axes.get(path)
            names = known if known and len(known) == array.ndim else _axes_by_path(path, array.ndim)
            found[path] = Leaf(array, names, Origin("restored", path))
    return found


def _state_leaves(arrays: Mapping[str, LazyArray]) -> dict[str, Leaf]:
    """The optimiser's part; `split_state` finds the axes."""
    return {
        name: Leaf(array, (None,) * array.ndim, Origin("restored", name))
        for name, array in arrays.items()
        if name.startswith(_OPTIMIZER)
    }


def _axes_by_path(path: str, ndim: int) -> tuple[str | None, ...]:
    stacked = "decoder/layers/" in path and ndim > 0
    return (("layers",) if stacked else ()) + (None,) * (ndim - stacked)


def _tokenizer(step_path: files.Path, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    beside = step_path.parent.parent / TOKENIZER
    if files.is_directory(beside):
        return tokenizer_files(str(beside))
    vocabulary = metadata.get("run", {}).get("free", {}).get("vocabulary")
    if not vocabulary:
        return {}
    try:
        return tokenizer_files(vocabulary)
    except UnavailableError:
        raise  # What is written without it could not be used.
    except UserError as error:
        LOGGER.warning("the model comes without its tokenizer: %s", error)
        return {}


def _recipe(document: layout.Document) -> tuple[dict[str, Any], ...]:
    """How a checkpoint came about, oldest step first: a conversion says it, a run says what it began with."""
    if "conversion" in document.metadata:
        return tuple(document.metadata["conversion"].get("recipe", ()))
    run = document.metadata.get("run", {})
    free, recorded = run.get("free", {}), run.get("recorded", {})
    trained = {
        "steps": document.step,
        "sequence_length": free.get("sequence_length"),
        "tokens": _count_tokens(run, document.step),
        "optimizer": (recorded.get("optimizer") or {}).get("class"),
        "mixture": recorded.get("mixture"),
    }
    surgeries = tuple(
        {"surgery": values.get("class"), **{name: value for name, value in values.items() if name != "class"}}
        for values in recorded.get("initial_transforms") or ()
    )
    step = {"trained": {name: value for name, value in trained.items() if value is not None}}
    return (*_recipe_before(recorded.get("initial_checkpoint_path")), *surgeries, step)


def _count_tokens(run: Mapping[str, Any], step: int) -> int | None:
    """Tokens of the first `step` steps of a run; None where its batch size was changed on the way."""
    length, size = run.get("free", {}).get("sequence_length"), run.get("recorded", {}).get("batch_size")
    if not length or not size or any(change.get("key") == "batch_size" for change in run.get("changes", ())):
        return None
    return BatchSchedule(size).rows(step) * length


def _recipe_before(path: str | None) -> tuple[dict[str, Any], ...]:
    """The recipe of what a run began with, as far as it can still be seen there."""
    if not path:
        return ()
    try:
        with _following(path):
            return _recipe(layout.read_newest(path)[1])
    except UserError:
        return ({"read": path},)


def to_architecture(model: DecoderModel | None) -> Architecture | None:
    """What a configured model computes; None for None.

    Raises:
      UserError: it is something an Architecture cannot say.
    """
    return None if model is None else from_description(model.architecture())
