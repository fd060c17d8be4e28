"""What the backward pass finds of each layer, and what it computes again or fetches from the host.

A policy is a word, from most memory to most recomputation, or a `Remat` that names tensors. In gin:

  REMAT = "full"

  from t5x_scale.models import remat
  REMAT = @remat.Remat()
  remat.Remat.save = ("query", "key", "value", "context")
  remat.Remat.offload = ("residual",)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn

from t5x_scale.core.errors import UserError, did_you_mean
from t5x_scale.layers.ops.attention import cudnn
from t5x_scale.layers.ops.grouped_matmul import PRODUCT
from t5x_scale.layers.tensor_names import CONTEXT, KEY, QUERY, TENSOR_NAMES, VALUE

Policy = Callable[..., Any]

_policies = jax.checkpoint_policies


def _and_kernels(*names: str) -> Policy:
    """Saves what is named so, and what kernels without names of their own give."""
    return _policies.save_from_both_policies(_policies.save_only_these_names(*names), cudnn.is_saveable)


# No policy for products knows them, since they are made by kernels, or lie inside of a gradient rule of their own.
_kernels = _and_kernels(CONTEXT, PRODUCT)

# What is saved of each layer; everything else is computed again.
REMAT_POLICIES: dict[str, Policy | None] = {
    "none": None,  # No remat: all intermediates are saved.
    # All matrix products, attention's L x L among them, where they are no kernel's.
    "dots": _policies.save_from_both_policies(_policies.dots_saveable, _kernels),
    # Products with parameters, and what attention gives.
    "minimal": _policies.save_from_both_policies(_policies.dots_with_no_batch_dims_saveable, _kernels),
    # What attention needs for its gradient: it is not run again, the feed-forward layer is.
    "attention": _and_kernels(QUERY, KEY, VALUE, CONTEXT),
    "full": _policies.nothing_saveable,  # Only the layer's input.
}


@dataclasses.dataclass(frozen=True)
class Remat:
    """Tensors of each layer that outlive the forward pass, by the names in `layers.tensor_names`.

    The input of a layer is saved on the device unless `residual` is offloaded. All others are computed again.

    Attributes:
      save: in the device's own memory.
      offload: in pinned memory of the host, fetched again by the backward pass.
    """

    save: Sequence[str] = ()
    offload: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raises:
        UserError: a name is none, or stands in both lists.
        """
        for kind in ("save", "offload"):
            names = getattr(self, kind)
            if isinstance(names, str) or not all(isinstance(name, str) for name in names):
                raise UserError(f"Remat.{kind} is {names!r}; give a tuple of names")
            object.__setattr__(self, kind, tuple(names))
            for name in names:
                if name not in TENSOR_NAMES:
                    hint = did_you_mean(name, TENSOR_NAMES) or f"; they are {', '.join(TENSOR_NAMES)}"
                    raise UserError(f"Remat.{kind}: a layer has no tensor '{name}'{hint}")
        both = sorted({*self.save} & {*self.offload})
        if both:
            raise UserError(f"Remat: {' and '.join(both)} cannot be both saved and offloaded")

    def make_policy(self) -> Policy:
        """The policy for `jax.checkpoint`."""
        if not self.offload:
            return _and_kernels(*self.save) if CONTEXT in self.save else _policies.save_only_these_names(*self.save)
        return _policies.save_and_offload_only_these_names(
            names_which_can_be_saved=list(self.save),
            names_which_can_be_offloaded=list(self.offload),
            offload_src="device",
            offload_dst="pinned_host",
        )


def check_remat(remat: str | Remat) -> None:
    """Checks that `remat` is a known word or a `Remat`.

    Raises:
      UserError: with the nearest known word.
    """
    if not isinstance(remat, Remat) and remat not in REMAT_POLICIES:
        hint = did_you_mean(str(remat), REMAT_POLICIES) or f"; known are {', '.join(REMAT_POLICIES)}"
        raise UserError(f"Decoder.remat: unknown policy {remat!r}{hint}")


def rematerialise(layer: Callable[..., Any], remat: str | Remat, *, in_loop: bool) -> Callable[..., Any]:
    """`layer`, a function of a module and arrays, that keeps for its gradient what `remat` says.

    Args:
      layer: `(module, *arrays) -> results`.
      remat: a key of `REMAT_POLICIES`, or a `Remat`.
      in_loop: whether it runs in a scan, where XLA cannot undo the remat by finding equal expressions.
    """
    policy = remat.make_policy() if isinstance(remat, Remat) else REMAT_POLICIES[remat]
    return layer if policy is None else nn.remat(layer, policy=policy, prevent_cse=not in_loop)
