"""What XLA and libtpu are told when a step is compiled: one documented set for each kind of device, as data.

The options go with each program, not into the environment of the process: `train` and `precompile` compile the same
step with the same ones, and a run has them on record. `LIBTPU_INIT_ARGS` and `XLA_FLAGS` are left to the user.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from t5x_scale.core.errors import UserError

Value = bool | int | str

# Collectives run beside the products they do not depend on, several of them at once, and are cut into steps between
# which products may go on: without it the gathers of fsdp are only hidden as far as a single product reaches. On a
# torus that closes in three dimensions the compiler takes a sum over all devices for faster than a gather, and then
# hides nothing of it; it is told to gather. (Two weights on v5p:4x4x4 with fsdp=64: gathers that begin early instead of
# sums, with all of these options together and with no subset tried.)
_FUSED_COLLECTIVES: dict[str, Value] = {
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
    "xla_enable_async_all_gather": True,
    "xla_tpu_prefer_async_allgather_to_allreduce": True,
}
# Sums of gradients over copies of the model start as soon as they are ready, whatever their sizes.
_COPIES: dict[str, Value] = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}
# The compiler takes 95 % of the memory for full. It then hides no collective any more, or computes saved tensors again
# so as to get below, though a step of 96 % fits: MaxText's 64B on 64 v5p takes 9.98 s then, by prediction, and 7.36 s
# with these, 7.38 s published.
_FULL_MEMORY: dict[str, Value] = {
    "xla_tpu_scheduler_percent_shared_memory_limit": 98,
    "xla_jf_rematerialization_percent_shared_memory_limit": 98,
}
_EVERY_TPU = {**_COPIES, **_FULL_MEMORY}
# Patterns of `jax.Device.device_kind` -> options. A kind that no pattern fits is compiled with XLA's defaults.
FLAGS: dict[str, dict[str, Value]] = {
    r"TPU v4": {**_FUSED_COLLECTIVES, **_EVERY_TPU},
    r"TPU v5p?": {**_FUSED_COLLECTIVES, **_EVERY_TPU},
    r"TPU v5 ?(lite|e)": {**_FUSED_COLLECTIVES, **_EVERY_TPU},
    # Trillium's vector memory is larger: a kernel may take more of it.
    r"TPU v6 ?(lite|e)": {**_FUSED_COLLECTIVES, **_EVERY_TPU, "xla_tpu_scoped_vmem_limit_kib": 98304},
    r"TPU7x": _EVERY_TPU,
}


@dataclasses.dataclass(frozen=True)
class CompilerFlags:
    """The options of the steps of a run.

    Attributes:
      extra: options over those of the device's kind, by their names without dashes; None takes one away.
      use_defaults: whether to begin with the set of the device's kind at all.
    """

    extra: Mapping[str, Value | None] = dataclasses.field(default_factory=dict)
    use_defaults: bool = True

    def __post_init__(self) -> None:
        """Raises:
        UserError: a name is written like a flag, or a value is none.
        """
        for name, value in self.extra.items():
            if not re.fullmatch(r"xla_\w+", name):
                raise UserError(f"CompilerFlags.extra: {name!r} is no option; write its name alone, such as 'xla_…'")
            if value is not None and not isinstance(value, bool | int | float | str):
                raise UserError(f"CompilerFlags.extra: {name} is {value!r}; expected a word, a number, True or False")

    def options(self, device_kind: str) -> dict[str, Value]:
        """The options for devices of this `jax.Device.device_kind`, for `jax.jit(compiler_options=…)`."""
        options = dict(default_flags(device_kind)) if self.use_defaults else {}
        options |= self.extra
        return {name: value for name, value in options.items() if value is not None}


def default_flags(device_kind: str) -> Mapping[str, Value]:
    """The documented set of a kind of device; empty for one without."""
    return next((flags for kind, flags in FLAGS.items() if re.fullmatch(kind, device_kind)), {})
