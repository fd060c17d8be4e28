"""`t5x_scale reshape`: a checkpoint becomes another model: deeper, with experts, with more words, merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from t5x_scale.conversion.output import check_arguments, write_checkpoint
from t5x_scale.conversion.progress import Progress
from t5x_scale.conversion.report import how_to_go_on, say_origins
from t5x_scale.conversion.sources import open_source, to_architecture
from t5x_scale.conversion.starting import Surgery, apply_transforms
from t5x_scale.core.errors import UserError
from t5x_scale.models.interface import DecoderModel
from t5x_scale.models.weights import Weights, cast_weights


def reshape(
    source: str = "",
    output: str = "",
    transforms: Sequence[Surgery] = (),
    merge: Callable[[list[Weights], list[str]], Weights] | None = None,
    others: Sequence[str] = (),
    model: DecoderModel | None = None,
    dtype: str | None = None,
) -> int:
    """Merges checkpoints if there are several, applies surgeries in order, and writes the result block by block.

    Args:
      source: a checkpoint of any kind that `import` reads, or of ours.
      output: a directory that does not exist yet.
      transforms: surgeries, such as `[@depth.DepthUpscale(), @experts.Upcycle()]`.
      merge: how several checkpoints become one, such as `@merging.Ties()`; `source` is the first of them.
      others: the further checkpoints of a merge.
      model: what the parameters mean, for checkpoints that do not say.
      dtype: of the parameters on disk; as they are when None.

    Returns:
      0.
    """
    check_arguments("reshape", source, output, dtype)
    if bool(others) != (merge is not None):
        raise UserError("a merge needs both: how (reshape.merge = @merging.Linear()) and with what (--merge_with=PATH)")
    if not transforms and merge is None:
        raise UserError("reshape has nothing to do: bind reshape.transforms, such as [@depth.DepthUpscale()]")
    if isinstance(merge, type):
        raise UserError(f"reshape.merge is the class {merge.__name__}; write a call, @merging.{merge.__name__}()")
    architecture = to_architecture(model)
    opened = [open_source(path, architecture, on_progress=Progress(f"read {path}")) for path in [source, *others]]
    weights = opened[0].weights
    if merge is not None:
        weights = merge([one.weights for one in opened], [one.place for one in opened])
    weights = cast_weights(apply_transforms(weights, transforms), dtype)
    places = ", ".join(f"{one.place} ({one.kind})" for one in opened)
    written = write_checkpoint(output, weights, source=places, on_progress=Progress("written"))
    say_origins(weights)
    print(how_to_go_on(written, weights))
    return 0
