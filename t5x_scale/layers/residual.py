"""Where the residual stream lies, and the ways from it into a branch and back.

A branch, attention or feed-forward, is split by heads or by features over a mesh axis. Where the stream is split along
its length over that same axis, it is gathered in front of a branch, and the branch's parts are summed and scattered
behind it. Backwards each is the other (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2). It is said in so many
words for both passes, since a partitioner left to choose may gather the weights instead.
"""

from __future__ import annotations

import jax

from t5x_scale.partitioning.shardings import constrain, current_rules, to_spec

RESIDUAL_AXES = ("batch", "residual_length", "act_embed")
_BRANCH_AXES = ("batch", "length", None)


def enter_branch(x_BLD: jax.Array) -> jax.Array:
    """The whole length that a branch works on; the identity where the rules split the stream like the branch."""
    return _gather(x_BLD) if _is_apart() else x_BLD


def leave_branch(x_BLD: jax.Array) -> jax.Array:
    """What a branch adds to the stream, where the stream lies; the identity as above."""
    return _scatter(x_BLD) if _is_apart() else x_BLD


def _is_apart() -> bool:
    context = current_rules()
    if context is None:
        return False
    mesh, rules = context
    return to_spec(rules, ("residual_length",), mesh) != to_spec(rules, ("length",), mesh)


@jax.custom_vjp
def _gather(x: jax.Array) -> jax.Array:
    return constrain(x, _BRANCH_AXES)


@jax.custom_vjp
def _scatter(x: jax.Array) -> jax.Array:
    return constrain(x, RESIDUAL_AXES)


_gather.defvjp(lambda x: (_gather(x), None), lambda _, gradient: (_scatter(gradient),))
_scatter.defvjp(lambda x: (_scatter(x), None), lambda _, gradient: (_gather(gradient),))
