"""The only door into `models/`: plain nested dicts in, plain arrays out. No framework object passes it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_scale.core import batch as fields
from t5x_scale.core.describe import SIMPLE, describe
from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten, unflatten
from t5x_scale.layers.masks import Mask, make_mask
from t5x_scale.layers.moe import LOSSES
from t5x_scale.layers.rope_scaling import RopeScaling
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.decoder import Decoder
from t5x_scale.models.stack import Run

Params = dict[str, Any]


class ModelOutput(NamedTuple):
    """What a forward pass gives.

    Attributes:
      hidden: [B, L, D], after the final norm, in the compute dtype.
      auxiliary: losses that layers ask for beside the cross-entropy, by name, their coefficients included: float32
        [B], the mean over the tokens of each row and over layers. To be added to the loss of every token of the row.
    """

    hidden: jax.Array
    auxiliary: dict[str, jax.Array]


class OutputHead(NamedTuple):
    """How hidden states become logits: `soft_cap(scale * hidden @ table)`.

    Attributes:
      table: [V, D] when `vocab_first` (shared embeddings), else [D, V].
      scale: multiplies the logits.
      vocab_first: which axis of the table is the vocabulary.
      soft_cap: None, or the bound of a tanh on the logits.
    """

    table: jax.Array
    scale: float
    vocab_first: bool
    soft_cap: float | None = None

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 logits [..., V] of hidden states [..., D]."""
        axis = 1 if self.vocab_first else 0
        contract = (((hidden.ndim - 1,), (axis,)), ((), ()))
        table = self.table.astype(hidden.dtype)
        logits = self.scale * jax.lax.dot_general(hidden, table, contract, preferred_element_type=jnp.float32)
        return logits if self.soft_cap is None else self.soft_cap * jnp.tanh(logits / self.soft_cap)


@dataclasses.dataclass(frozen=True)
class DecoderModel:
    """A decoder-only language model.

    Attributes:
      config: shapes.
      decoder: factory of the Linen module, called with `config`.
      logit_scale: multiplies the logits; None is 1/sqrt(embed_dim) for shared embeddings (PaLM, section 5: they
        are drawn from N(0, 1)) and 1 for a head of its own.
      logit_soft_cap: bound of a tanh on the logits, or None.
    """

    config: ModelConfig
    decoder: Callable[..., nn.Module] = Decoder
    logit_scale: float | None = None
    logit_soft_cap: float | None = None

    @functools.cached_property
    def module(self) -> nn.Module:
        """The Linen module, for use inside `models/` and its tests."""
        return self.decoder(config=self.config)

    @functools.cached_property
    def _abstract_variables(self) -> Any:
        return jax.eval_shape(self._init_variables, jax.random.key(0))

    @property
    def _boxed_shapes(self) -> Any:
        return self._abstract_variables["params"]

    def _init_variables(self, key: jax.Array) -> Any:
        tokens = jnp.zeros((1, 2), jnp.int32)
        positions = jnp.arange(2, dtype=jnp.int32)[None]
        return self.module.init(key, tokens, Mask(), positions)

    def _init_boxed(self, key: jax.Array) -> Any:
        return self._init_variables(key)["params"]

    def init(self, key: jax.Array) -> Params:
        """Draws the parameters. Traceable; meant to be jitted with output shardings."""
        return jax.tree.map(lambda box: box.value, self._init_boxed(key), is_leaf=_is_box)

    def abstract_params(self) -> Params:
        """The parameters as `ShapeDtypeStruct`s, without allocating any."""
        return jax.tree.map(lambda box: box.value, self._boxed_shapes, is_leaf=_is_box)

    def axes(self) -> dict[str, Any]:
        """Logical axis names of every parameter: the structure of the parameters, a tuple at each leaf."""
        return jax.tree.map(lambda box: tuple(box.names), self._boxed_shapes, is_leaf=_is_box)

    def architecture(self) -> dict[str, dict[str, Any]]:
        """Every module with its class and its plain settings, by path: what the parameters mean.

        Two models with equal shapes may still differ here (a RoPE base, an epsilon, the order of norms).
        """
        found: dict[str, dict[str, Any]] = {"model": _settings(self)}

        def note(next_method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            # The first call of a path counts: inside a scan the path starts again for a moment.
            found.setdefault("/".join(context.module.path) or "decoder_model", _settings(context.module))
            return next_method(*args, **kwargs)

        with nn.intercept_methods(note):
            jax.eval_shape(self._init_boxed, jax.random.key(0))
        return found

    def hidden(
        self,
        params: Params,
        batch: Mapping[str, jax.Array],
        *,
        rng: jax.Array | None = None,
        run: Run | None = None,
    ) -> ModelOutput:
        """The forward pass over a training batch (fields: `core.batch`).

        Args:
          rng: for dropout.
          run: runs the layers in an order of its own (`models.layered`, `models.pipeline`); one after another
            without.
        """
        tokens = batch[fields.INPUT_TOKENS]
        index = batch.get(fields.INDEX)
        positions = batch.get(fields.POSITIONS, index)
        if positions is None:
            positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        mask = make_mask(batch.get(fields.SEGMENT_IDS), batch.get(fields.PREFIX), index)
        rngs = None if rng is None else {"dropout": rng}
        (hidden, _), noted = self.module.apply(
            {"params": params}, tokens, mask, positions, run=run, rngs=rngs, mutable=[LOSSES]
        )
        return ModelOutput(hidden, _mean_over_layers(noted.get(LOSSES, {})))

    @property
    def auxiliary_names(self) -> tuple[str, ...]:
        """The names in `ModelOutput.auxiliary`, without running anything."""
        return tuple(_by_name(self._abstract_variables.get(LOSSES, {})))

    def head(self, params: Params) -> OutputHead:
        """The output head of these parameters."""
        tied = "logits" not in params
        table = params["token_embedder"]["embedding"] if tied else params["logits"]["kernel"]
        scale = self.logit_scale
        if scale is None:
            scale = self.config.embed_dim**-0.5 if tied else 1.0
        return OutputHead(table, scale, vocab_first=tied, soft_cap=self.logit_soft_cap)

    def logits(self, params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        """float32 logits [B, L, V] of a whole batch: for small batches, tests and decoding."""
        return self.head(params).logits(self.hidden(params, batch).hidden)

    def make_cache(self, batch_size: int, length: int) -> Any:
        """An empty key-value cache for `length` tokens, every leaf [layers, B, ...]."""
        block = self.module.block(config=self.config, parent=None)
        one = jax.eval_shape(lambda: block.empty_cache(batch_size, length))
        return jax.tree.map(lambda leaf: jnp.zeros((self.config.num_layers, *leaf.shape), leaf.dtype), one)

    def extend(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array,
        cache: Any,
        prefix_length: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Feeds [B, L] tokens at [B, L] positions into the cache.

        A token's position is its slot in the cache; position -1 is padding, which writes nothing.

        Args:
          prefix_length: int32 [B]; positions below it see each other in both directions. Valid only while the
            whole prefix is fed in one call.

        Returns:
          Hidden states [B, L, D] and the updated cache.
        """
        last = positions
        if prefix_length is not None:
            inside = positions < prefix_length[:, None]
            last = jnp.where(inside, prefix_length[:, None] - 1, positions)
        mask = Mask(query_index=positions, last_visible=last)
        return self.module.apply({"params": params}, tokens, mask, positions, cache)


def unstack_layers(tree: Params, num_layers: int) -> Params:
    """Turns `decoder/layers/...` with a leading axis of layers into `decoder/layers_<i>/...`."""
    flat: dict[str, Any] = {}
    for path, leaf in flatten(tree).items():
        if not path.startswith("decoder/layers/"):
            flat[path] = leaf
            continue
        for index in range(num_layers):
            flat[path.replace("decoder/layers/", f"decoder/layers_{index}/", 1)] = leaf[index]
    return unflatten(flat)


def stack_layers(tree: Params, num_layers: int) -> Params:
    """The inverse of `unstack_layers`."""
    flat = flatten(tree)
    stacked: dict[str, Any] = {}
    for path, leaf in flat.items():
        if path.startswith("decoder/layers_0/"):
            rest = path.removeprefix("decoder/layers_0/")
            leaves = [flat[f"decoder/layers_{index}/{rest}"] for index in range(num_layers)]
            stacked[f"decoder/layers/{rest}"] = jnp.stack(leaves)
        elif not path.startswith("decoder/layers_"):
            stacked[path] = leaf
    return unflatten(stacked)


def _mean_over_layers(noted: Any) -> dict[str, jax.Array]:
    """From what layers noted, [B] or, scanned, [layers, B], to means [B]."""
    return {
        name: jnp.mean(jnp.concatenate([jnp.atleast_2d(leaf) for leaf in leaves]), axis=0)
        for name, leaves in _by_name(noted).items()
    }


def _by_name(noted: Any) -> dict[str, list[jax.Array]]:
    found: dict[str, list[jax.Array]] = {}
    for path, leaf in flatten(noted).items():
        found.setdefault(path.rsplit("/", 1)[-1], []).append(leaf)
    return dict(sorted(found.items()))


# How the forward pass is compiled, not what it computes.
_EXECUTION = ("remat", "scan_layers", "implementation", "exchange_buffer", "parent", "name")
# Kinds of settings that give parameters their meaning; initialisers and factories do not.
_MEANINGFUL = (*SIMPLE, tuple, ModelConfig, RopeScaling)


def _settings(module: Any) -> dict[str, Any]:
    values = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
    plain = {
        name: describe(value)
        for name, value in values.items()
        if name not in _EXECUTION and isinstance(value, _MEANINGFUL)
    }
    return {"class": type(module).__name__, **plain}


def _is_box(node: Any) -> bool:
    if isinstance(node, jax.Array | jax.ShapeDtypeStruct):
        raise UserError("a parameter has no logical axes: wrap its initialiser in nn.with_logical_partitioning")
    return isinstance(node, nn.LogicallyPartitioned)
