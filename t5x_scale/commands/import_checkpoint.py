"""`t5x_scale import`: another system's checkpoint becomes one of ours, with its tokenizer and a gin file."""

from __future__ import annotations

from t5x_scale.conversion.output import check_arguments, write_checkpoint
from t5x_scale.conversion.progress import Progress
from t5x_scale.conversion.report import how_to_go_on, say_origins
from t5x_scale.conversion.sources import open_source, to_architecture
from t5x_scale.models.interface import DecoderModel
from t5x_scale.models.weights import cast_weights


def import_checkpoint(
    source: str = "", output: str = "", model: DecoderModel | None = None, dtype: str | None = None
) -> int:
    """Reads a Hugging Face directory or a T5X checkpoint and writes a checkpoint of ours, block by block.

    Args:
      source: the directory.
      output: a directory that does not exist yet.
      model: what the parameters mean, for checkpoints that do not say (T5X's).
      dtype: of the parameters on disk; as they are when None.

    Returns:
      0.
    """
    check_arguments("import", source, output, dtype)
    opened = open_source(source, to_architecture(model))
    weights = cast_weights(opened.weights, dtype)
    place = f"{opened.place} ({opened.kind})"
    written = write_checkpoint(output, weights, source=place, on_progress=Progress("written"))
    say_origins(weights)
    print(how_to_go_on(written, weights))
    return 0
