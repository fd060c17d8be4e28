"""The families of models that are read and written, one small file each."""

from __future__ import annotations

from t5x_scale.interop.families import (
    cohere,
    gemma,
    gemma2,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    mixtral,
    qwen2,
    qwen3,
)
from t5x_scale.interop.families.family import Family

__all__ = ["FAMILIES", "Family"]

# By name, in the order in which a family is looked for that can carry a model of ours.
FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (llama, mistral, qwen2, qwen3, mixtral, gemma, gemma2, gpt_neox, gpt2, cohere)
}
