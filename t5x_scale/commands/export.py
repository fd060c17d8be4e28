"""`t5x_scale export`: a checkpoint goes out as a Hugging Face directory, read back and compared before it counts."""

from __future__ import annotations

from collections.abc import Sequence

from t5x_scale.conversion.output import check_arguments
from t5x_scale.conversion.progress import Progress
from t5x_scale.conversion.report import count_tokens, say_origins
from t5x_scale.conversion.sources import open_source, to_architecture
from t5x_scale.conversion.starting import Surgery, apply_transforms
from t5x_scale.core.errors import UserError
from t5x_scale.interop.writer import write_hugging_face
from t5x_scale.models.interface import DecoderModel
from t5x_scale.models.weights import cast_weights


def export(
    source: str = "",
    output: str = "",
    family: str | None = None,
    dtype: str | None = None,
    transforms: Sequence[Surgery] = (),
    vocab_size: int | None = None,
    max_shard_gigabytes: float = 5.0,
    model: DecoderModel | None = None,
) -> int:
    """Writes config.json, safetensors, tokenizer and a model card.

    Args:
      source: a run of ours or one step of it, or anything else that `import` reads.
      output: a directory that does not exist yet.
      family: the Hugging Face family that shall carry it (`llama`, `cohere`, ...); found by what the model is when
        None.
      dtype: of the parameters on disk; as they are when None.
      transforms: surgeries before the export.
      vocab_size: rows of the token table that go out; those behind are padding and are left out. All when None.
      max_shard_gigabytes: size of a file.
      model: what the parameters mean, for checkpoints that do not say.

    Returns:
      0.
    """
    check_arguments("export", source, output, dtype)
    if not max_shard_gigabytes > 0:
        raise UserError(f"export.max_shard_gigabytes is {max_shard_gigabytes}; it must be more than 0")
    opened = open_source(source, to_architecture(model), parameters_only=True, on_progress=Progress(f"read {source}"))
    weights = cast_weights(apply_transforms(opened.weights, transforms), dtype)
    written = write_hugging_face(
        output,
        weights,
        family=family,
        vocab_size=vocab_size,
        max_shard_bytes=int(max_shard_gigabytes * 1e9),
        card_facts={"tokens_trained": count_tokens(weights)},
        on_progress=Progress("written"),
    )
    say_origins(weights)
    print(f'written to {written}; transformers reads it: AutoModelForCausalLM.from_pretrained("{written}")')
    return 0
