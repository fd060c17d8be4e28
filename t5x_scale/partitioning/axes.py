"""The vocabulary of axes: what a dimension means (logical) and what it may be split over (mesh)."""

from __future__ import annotations

# Slow to fast: neighbours on the fastest links come last.
MESH_AXES = ("data", "fsdp", "stage", "expert", "context", "model")

# Mesh axes over which parameters are only stored: they are gathered over them before use, since what is split there
# is the batch or the length. Over the others the work itself is split.
STORAGE_AXES = ("data", "fsdp", "context")

PARAMETER_AXES = ("vocab", "embed", "mlp", "heads", "kv_heads", "kv", "joined_kv", "layers", "expert")
ACTIVATION_AXES = (
    "batch",
    "length",
    "residual_length",
    "kv_length",
    "act_embed",
    "act_mlp",
    "act_heads",
    "act_kv_heads",
    "act_vocab",
    "act_expert",
)
LOGICAL_AXES = PARAMETER_AXES + ACTIVATION_AXES

# Logical axes of one array, one entry a dimension; None is a dimension without a name, never split.
Axes = tuple[str | None, ...]
