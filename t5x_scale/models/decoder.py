"""A decoder: embed, a stack of blocks under scan and remat, a final norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten
from t5x_scale.layers.embed import TokenEmbedder
from t5x_scale.layers.initializers import FanIn, Initializer
from t5x_scale.layers.masks import NO_WINDOW, Mask
from t5x_scale.layers.moe import LOSSES
from t5x_scale.layers.norm import RMSNorm
from t5x_scale.layers.residual import RESIDUAL_AXES
from t5x_scale.layers.tensor_names import RESIDUAL, named
from t5x_scale.models.blocks import Factory, ParallelBlock
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.remat import REMAT_POLICIES, Remat, check_remat, rematerialise
from t5x_scale.models.stack import Noted, Run, Stack
from t5x_scale.partitioning.shardings import constrain


def _enter(x: jax.Array) -> jax.Array:
    return named(constrain(x, RESIDUAL_AXES), RESIDUAL)


def _with_window(mask: Mask, window: jax.Array | None) -> Mask:
    return mask if window is None else dataclasses.replace(mask, window=window)


class DecoderStack(nn.Module):
    """The blocks and the final norm, `[B, L, D] -> [B, L, D]`."""

    config: ModelConfig
    block: Factory = ParallelBlock
    final_norm: Factory = RMSNorm
    remat: str | Remat = "none"
    scan_layers: bool = True
    windows: Sequence[int | None] = ()

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: Mask, positions: jax.Array, caches: Any = None, run: Run | None = None
    ) -> tuple[jax.Array, Any]:
        """Runs all layers. `caches` and the returned caches have a leading axis of layers, or are None."""

        def layer(block: nn.Module, x: jax.Array, own: tuple[Any, Any]) -> tuple[jax.Array, Any]:
            window, cache = own
            x, cache = block(_enter(x), _with_window(mask, window), positions, cache)
            return constrain(x, RESIDUAL_AXES), cache

        layer = rematerialise(layer, self.remat, in_loop=self.scan_layers)
        if run is not None:
            x = self._run_by(run, x, mask, positions)
        elif self.scan_layers:
            x, caches = self._scanned(layer, x, (self._windows(), caches))
        else:
            x, caches = self._unrolled(layer, x, (self._windows(), caches))
        c = self.config
        norm = self.final_norm(dim=c.embed_dim, dtype=c.dtype, param_dtype=c.param_dtype, name="final_norm")
        return norm(x), caches

    def _windows(self) -> jax.Array | None:
        """int32 [layers], or None where no layer has a window of its own."""
        if not self.windows:
            return None
        cycle = [NO_WINDOW if window is None else window for window in self.windows]
        if not all(isinstance(window, int) and window > 0 for window in cycle):
            raise UserError(f"Decoder.windows must be positive integers or None, not {self.windows!r}")
        return jnp.asarray([cycle[i % len(cycle)] for i in range(self.config.num_layers)], jnp.int32)

    def _scanned(self, layer: Callable[..., Any], x: jax.Array, own: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        run = nn.scan(
            layer,
            variable_axes={"params": 0, LOSSES: 0},
            split_rngs={"params": True, "dropout": True},
            length=self.config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return run(self.block(config=self.config, name="layers"), x, own)

    def _run_by(self, run: Run, x: jax.Array, mask: Mask, positions: jax.Array) -> jax.Array:
        """Hands the layers, as functions of their parameters, to one who runs them in an order of its own."""
        if not self.scan_layers:
            raise UserError("Decoder.scan_layers = False: layered accumulation and pipelines need stacked layers")
        block = self.block(config=self.config, parent=None)

        def layer(
            params: Any, window: jax.Array | None, x: jax.Array, mask: Mask, positions: jax.Array
        ) -> tuple[jax.Array, Noted]:
            variables, seen = {"params": params}, _with_window(mask, window)
            (x, _), noted = block.apply(variables, _enter(x), seen, positions, mutable=[LOSSES])
            return constrain(x, RESIDUAL_AXES), {path.rsplit("/", 1)[-1]: y for path, y in flatten(noted).items()}

        policy = self.remat.make_policy() if isinstance(self.remat, Remat) else REMAT_POLICIES[self.remat]
        params = self.variables["params"]["layers"]
        x, noted = run(Stack(layer, params, self._axes(block, x), self._windows(), policy), x, mask, positions)
        for name, losses in noted.items():
            self.sow(LOSSES, name, losses, init_fn=lambda: None, reduce_fn=lambda _, new: new)
        return x

    def _axes(self, block: nn.Module, x: jax.Array) -> Any:
        """Logical axes of one layer's parameters."""
        shapes = (jax.ShapeDtypeStruct((1, 2, x.shape[-1]), x.dtype), jax.ShapeDtypeStruct((1, 2), jnp.int32))
        drawn = jax.eval_shape(lambda x, i: block.init(jax.random.key(0), x, Mask(), i), *shapes)["params"]
        return jax.tree.map(lambda box: tuple(box.names), drawn, is_leaf=lambda x: isinstance(x, nn.Partitioned))

    def _unrolled(self, layer: Callable[..., Any], x: jax.Array, own: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        updated = []
        for index in range(self.config.num_layers):
            one = jax.tree.map(lambda leaf, i=index: leaf[i], own)
            x, cache = layer(self.block(config=self.config, name=f"layers_{index}"), x, one)
            updated.append(cache)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *updated)


class Head(nn.Module):
    """The output table `logits/kernel` [embed, vocab] of a model whose embeddings are not shared.

    Holds the parameter only: the product with it belongs to the loss, which never forms all logits at once.
    """

    embed_dim: int
    vocab_size: int
    table_init: Initializer = FanIn()
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self) -> jax.Array:
        draw = nn.with_logical_partitioning(
            lambda key, shape, dtype: self.table_init(key, shape, dtype, self.embed_dim), ("embed", "vocab")
        )
        return self.param("kernel", draw, (self.embed_dim, self.vocab_size), self.param_dtype)


class Decoder(nn.Module):
    """Tokens to final hidden states.

    Attributes:
      config: shapes.
      block: factory of one layer.
      final_norm: factory of the last norm.
      embedder: factory of the token embedding.
      position_embedder: factory of a table of positions added to the embeddings, or None.
      head: factory of an output table of its own; None shares the token embedding.
      remat: what the backward pass finds saved of each layer: a word or a choice of tensors, see `models.remat`.
      scan_layers: one compiled layer in a loop (always, but for comparisons: unrolled programs are 11 times as
        large).
      windows: a cycle of sliding windows over the layers, None where a layer sees all keys; () is none at all. Windows
        that are the same in all layers are better given to the attention, which then knows them while compiling.
    """

    config: ModelConfig
    block: Factory = ParallelBlock
    final_norm: Factory = RMSNorm
    embedder: Factory = TokenEmbedder
    position_embedder: Factory | None = None
    head: Factory | None = None
    remat: str | Remat = "none"
    scan_layers: bool = True
    windows: Sequence[int | None] = ()

    @nn.compact
    def __call__(
        self, tokens: jax.Array, mask: Mask, positions: jax.Array, caches: Any = None, run: Run | None = None
    ) -> tuple[jax.Array, Any]:
        """[B, L] tokens and [B or 1, L] positions to ([B, L, D] hidden states, caches).

        `run` runs the layers in place of the loop over them; it has no caches.
        """
        check_remat(self.remat)
        c = self.config
        dtypes = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        x = self.embedder(vocab_size=c.vocab_size, embed_dim=c.embed_dim, **dtypes, name="token_embedder")(tokens)
        if self.position_embedder is not None:
            x += self.position_embedder(embed_dim=c.embed_dim, **dtypes, name="position_embedder")(positions)
        stack = DecoderStack(c, self.block, self.final_norm, self.remat, self.scan_layers, self.windows, name="decoder")
        x, caches = stack(constrain(x, RESIDUAL_AXES), mask, positions, caches, run)
        if self.head is not None and self.is_initializing():
            self.head(embed_dim=c.embed_dim, vocab_size=c.vocab_size, param_dtype=c.param_dtype, name="logits")()
        return x, caches
