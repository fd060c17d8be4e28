"""Rule tables: which mesh axes each logical axis is split over.

A table maps logical axis names to a tuple of mesh axes; a name that is absent is not split. Within one array
every mesh axis is used at most once: the first dimension that asks for it gets it. A `FirstOf` names mesh axes of
which one is used: the first that no earlier dimension has. An `IfDivides` is used only where the dimension divides;
with any other rule that is an error.
"""

from __future__ import annotations

from collections.abc import Mapping

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.partitioning.axes import LOGICAL_AXES, MESH_AXES


class FirstOf(tuple[str, ...]):
    """Alternatives, best first, where a plain tuple means all of its mesh axes together."""

    __slots__ = ()


class IfDivides(tuple[str, ...]):
    """Mesh axes for a dimension that some models have too few of to split, as multi-query attention has kv heads."""

    __slots__ = ()


Rules = Mapping[str, tuple[str, ...]]

_BATCH = ("data", "fsdp", "expert")


def make_rules(table: Mapping[str, str | tuple[str, ...] | None]) -> Rules:
    """Checks a table of rules and returns it in normal form, the residual stream split like other activations if it
    is not said how.

    Raises:
      UserError: naming an unknown logical or mesh axis and the nearest known one.
    """
    rules: dict[str, tuple[str, ...]] = {}
    for logical, target in table.items():
        if logical not in LOGICAL_AXES:
            raise UserError(f"rules: unknown logical axis '{logical}'{did_you_mean(logical, LOGICAL_AXES)}")
        names = () if target is None else (target,) if isinstance(target, str) else target
        for name in names:
            if name not in MESH_AXES:
                hint = did_you_mean(str(name), MESH_AXES) or f"; known are {', '.join(MESH_AXES)}"
                raise UserError(f"rules: '{logical}' names the unknown mesh axis '{name}'{hint}")
        rules[logical] = names if isinstance(names, FirstOf | IfDivides) else tuple(names)
    if "length" in rules:
        rules.setdefault("residual_length", rules["length"])
    return rules


def data_parallel() -> Rules:
    """Copies of the model on every device; only the batch is split."""
    return make_rules({"batch": _BATCH})


def fsdp() -> Rules:
    """Fully sharded data parallelism: parameters and optimiser state split along `embed`."""
    return make_rules({"batch": _BATCH, "embed": "fsdp", "expert": "expert"})


def fsdp_model() -> Rules:
    """PaLM's two-dimensional layout: `embed` over fsdp, heads, feed-forward and vocabulary over model.

    The residual stream is split over the batch and, along `act_embed`, over model, so that the one activation
    saved per layer is fully sharded (PaLM, section 4).
    """
    return make_rules(
        {
            "batch": _BATCH,
            "length": "context",
            "act_embed": "model",
            "act_mlp": "model",
            "act_heads": "model",
            "act_kv_heads": "model",
            "act_vocab": "model",
            "act_expert": "expert",
            "embed": "fsdp",
            "mlp": "model",
            "heads": "model",
            "kv_heads": IfDivides(("model",)),
            "joined_kv": "model",
            "vocab": "model",
            "expert": "expert",
        }
    )


def fsdp_model_vocab_fsdp() -> Rules:
    """`fsdp_model` for a vocabulary that does not divide over `model`, as 256,000 does not over 12.

    The token table lies with `vocab` over fsdp and `embed` over model, everything else as in `fsdp_model`; an output
    table of its own is split over fsdp only. A look-up then gathers the table along `vocab`, and its rows are split
    as the residual stream is.
    """
    return make_rules({**fsdp_model(), "vocab": "fsdp", "embed": FirstOf(("fsdp", "model")), "act_vocab": None})


def sequence() -> Rules:
    """`fsdp_model` with the residual stream split over `model` along its length instead of along `act_embed`.

    Norms, residual sums and what is saved of a layer are then local and whole in their features (Korthikanti et al.
    2022, arXiv 2205.05198, section 4.2.2). What enters attention and feed-forward is gathered along the length, what
    leaves them is summed and scattered along it, as many bytes as one sum over `model`.
    """
    return make_rules({**fsdp_model(), "act_embed": None, "residual_length": ("context", "model")})


def context() -> Rules:
    """`fsdp_model` for long rows: the length is split over `context`, over which parameters are stored as well.

    Each device has a part of each row, and attention lets keys and values travel around (`layers.ops.attention.ring`).
    Cached keys are split in the same way.
    """
    return make_rules({**fsdp_model(), "embed": ("fsdp", "context"), "kv_length": "context"})


def expert() -> Rules:
    """`fsdp_model` with whole experts: they are dealt out over `expert` and `model` together.

    Under `fsdp_model` each device along `model` has a slice of every expert, and the fewer features a slice has, the
    slower its products. The number of experts must divide over both axes.
    """
    return make_rules({**fsdp_model(), "expert": ("expert", "model"), "act_expert": ("expert", "model")})


def pipeline(table: Rules | None = None) -> Rules:
    """`table` (`fsdp_model` if None) with the layers split over `stage` (see `models.pipeline`)."""
    return make_rules({**(fsdp_model() if table is None else table), "layers": "stage"})
