"""From a configuration to what runs on a mesh: shardings, an abstract state and the jitted steps.

Shared by train, eval, infer and precompile, so that what one measures is what the other runs.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from t5x_scale.checkpoint.integrity import fingerprint_shards
from t5x_scale.core import batch as fields
from t5x_scale.core.errors import UserError
from t5x_scale.core.rng import make_root_key, stream_key
from t5x_scale.core.trees import flatten, map_with_path
from t5x_scale.losses import TokenLosses
from t5x_scale.models.interface import DecoderModel, Params
from t5x_scale.optim.interface import Optimizer, stop_frozen
from t5x_scale.partitioning import length_order
from t5x_scale.partitioning.compiler_flags import CompilerFlags, Value
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.out_of_memory import to_out_of_memory
from t5x_scale.partitioning.rules import Rules, fsdp
from t5x_scale.partitioning.shardings import activation_rules, check_rules_use, make_sharding, to_spec
from t5x_scale.step import (
    StepConfig,
    make_eval_step,
    make_gradients,
    make_record,
    make_row_eval_step,
    make_train_step,
    metric_names,
)
from t5x_scale.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Program:
    """What is trained, how, and where its arrays lie.

    Attributes:
      model: the model.
      optimizer: the optimiser; commands that do not train do without.
      mesh: sizes of the mesh axes.
      rules: which mesh axes each logical axis is split over.
      step: knobs of the step.
      seed: of the initial parameters (and of everything else that is random on a device).
      compiler: what XLA is told when the steps are compiled.
    """

    model: DecoderModel
    optimizer: Optimizer | None = None
    mesh: MeshConfig = MeshConfig()
    rules: Rules = dataclasses.field(default_factory=fsdp)
    step: StepConfig = StepConfig()
    seed: int = 0
    compiler: CompilerFlags = CompilerFlags()

    def make(self, devices: Sequence[jax.Device] | None = None) -> Runtime:
        """The program on a mesh over `devices` (all of them by default)."""
        return Runtime(self, self.mesh.make_mesh(devices))


@dataclasses.dataclass(frozen=True)
class ParameterRow:
    """One line of the parameter table: path, shape, dtype, logical axes, partition and number of elements."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]
    spec: PartitionSpec
    count: int


class Runtime:
    """A program on a mesh.

    Attributes:
      program: the configuration.
      mesh: the mesh.
    """

    def __init__(self, program: Program, mesh: Mesh | AbstractMesh):
        """Raises:
        UserError: the mesh has an axis over which the rules split nothing.
        """
        check_rules_use(mesh, program.rules)
        self.program = program
        self.mesh = mesh

    @functools.cached_property
    def abstract_params(self) -> Params:
        """The parameters as `ShapeDtypeStruct`s with their shardings."""
        return self._place(self.program.model.abstract_params(), self.program.model.axes())

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The whole state as `ShapeDtypeStruct`s with their shardings, in the structure of a real one."""
        # First, so that what does not divide is called by the parameter's name and not by its moment's.
        model, params = self.program.model, self.abstract_params
        shapes = jax.eval_shape(self._state_of, model.abstract_params())
        axes = self._optimizer.state_axes(model.abstract_params(), model.axes())
        leaves, structure = jax.tree.flatten(shapes.opt_state)
        names = structure.flatten_up_to(axes)
        placed = [self._struct(f"opt_state[{i}]", *pair) for i, pair in enumerate(zip(leaves, names, strict=True))]
        return TrainState(
            step=self._struct("step", shapes.step, ()),
            params=params,
            opt_state=jax.tree.unflatten(structure, placed),
        )

    def init_state(self) -> TrainState:
        """Draws the initial state straight into its shards. The same seed gives the same bits on every mesh."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return jax.jit(self._make_state, out_shardings=shardings)(make_root_key(self.program.seed))

    def state_from(self, params: Params, opt_state: Any = None) -> TrainState:
        """A state at step 0 that begins with `params`, and a fresh optimiser unless its state is given."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        if opt_state is not None:
            return TrainState(
                jax.jit(lambda: jnp.zeros((), jnp.int32), out_shardings=shardings.step)(), params, opt_state
            )
        return jax.jit(self._state_of, out_shardings=shardings)(params)

    @functools.cached_property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of every field of a batch."""
        return NamedSharding(self.mesh, to_spec(self.program.rules, fields.AXES, self.mesh))

    def check_batch_size(self, rows: int, length: int) -> None:
        """Checks that a batch divides over the mesh and into micro-batches.

        Raises:
          UserError: naming the sizes.
        """
        parts = self.program.step.micro_batches
        if rows % parts:
            raise UserError(f"BATCH_SIZE = {rows} does not divide into micro_batches = {parts}")
        length_order.check_length(length, self.mesh, self.program.rules, self.program.step.context_order)
        make_sharding(self.mesh, self.program.rules, fields.AXES, (rows // parts, length), "a (micro-)batch")

    def abstract_batch(
        self, rows: int, length: int, names: Sequence[str] = fields.REQUIRED
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch of the named fields (the required ones by default) as `ShapeDtypeStruct`s."""
        return {
            name: jax.ShapeDtypeStruct((rows, length), fields.DTYPES[name], sharding=self.batch_sharding)
            for name in names
        }

    def compile_step(
        self, rows: int, length: int, record_rows: int, names: Sequence[str] = fields.REQUIRED
    ) -> jax.stages.Compiled:
        """The training step compiled for a batch of the named fields; nothing is allocated, nothing runs.

        Raises:
          OutOfMemory: it does not fit a device; says how much it needs.
          UserError: the compiler does not know one of its options.
        """
        lowered = self.train_step.lower(*self._step_arguments(rows, length, record_rows, names))
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise self._said(error, f"a step of {rows} x {length} tokens") from error

    def trace_step(self, rows: int, length: int, record_rows: int, names: Sequence[str] = fields.REQUIRED) -> None:
        """Traces the training step as compiling it would, on an abstract mesh too: a second, whatever the model.

        Raises:
          UserError: what layers, kernels and schedules refuse, in the words in which compiling refuses it.
        """
        jax.eval_shape(self._constrained(self._step), *self._step_arguments(rows, length, record_rows, names))

    @functools.cached_property
    def metric_names(self) -> tuple[str, ...]:
        """What a step records, in the order of the record's columns."""
        return metric_names(self.program.model, self.program.step)

    @functools.cached_property
    def train_step(self) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, jax.Array]]:
        """The compiled `(state, batch, record) -> (state, record)`; the old state's memory is given to the new."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return self._jit(self._step, out_shardings=(shardings, self._replicated), donate_argnums=0)

    @functools.cached_property
    def eval_step(self) -> Callable[[Params, Any], TokenLosses]:
        """The compiled `(params, batch) -> TokenLosses`."""
        step = make_eval_step(self.program.model, self.program.step)
        return self._jit(step, out_shardings=self._replicated)

    @functools.cached_property
    def row_eval_step(self) -> Callable[[Params, Any], TokenLosses]:
        """The same with a sum for each row of the batch."""
        step = make_row_eval_step(self.program.model, self.program.step)
        return self._jit(step, out_shardings=self._replicated)

    @functools.cached_property
    def gradient_prints(self) -> Callable[[Params, Any], jax.Array]:
        """The compiled `(params, batch) -> uint32 [devices, 1 + parameters, 2]`: on each device of the mesh, in order,
        the fingerprints of the loss and of its shards of the gradients, which nobody keeps.
        """
        axes = self.program.model.axes()
        freeze = functools.partial(stop_frozen, self._optimizer, axes)
        gradients = make_gradients(self.program.model, self.program.step, freeze)
        specs = [leaf.sharding.spec for leaf in jax.tree.leaves(self.abstract_params)]

        def prints(params: Params, batch: Any) -> jax.Array:
            loss, grads = gradients(params, batch)
            return fingerprint_shards([loss, *jax.tree.leaves(grads)], [PartitionSpec(), *specs], self.mesh)

        return self._jit(prints, out_shardings=self._replicated)

    @functools.cached_property
    def state_prints(self) -> Callable[[TrainState], jax.Array]:
        """The compiled `state -> uint32 [devices, leaves, 2]`: the fingerprints of each device's shards."""
        specs = [leaf.sharding.spec for leaf in jax.tree.leaves(self.abstract_state)]

        def prints(state: TrainState) -> jax.Array:
            return fingerprint_shards(jax.tree.leaves(state), specs, self.mesh)

        return self._jit(prints, out_shardings=self._replicated)

    def make_record(self, rows: int) -> jax.Array:
        """An empty metrics buffer of `rows` steps on the mesh."""
        return jax.jit(lambda: make_record(rows, self.metric_names), out_shardings=self._replicated)()

    def parameter_rows(self) -> Iterator[ParameterRow]:
        """The parameter table, without allocating anything."""
        axes = flatten(self.program.model.axes())
        for path, leaf in flatten(self.abstract_params).items():
            yield ParameterRow(path, leaf.shape, str(leaf.dtype), axes[path], leaf.sharding.spec, leaf.size)

    @property
    def compiler_options(self) -> dict[str, Value]:
        """What the steps are compiled with beside XLA's defaults, for the devices of this mesh."""
        return self.program.compiler.options(self.mesh.devices.flat[0].device_kind)

    def check_compiler_options(self) -> None:
        """Checks that the compiler knows its options, before anything long is begun.

        Raises:
          UserError: naming the one it does not know.
        """
        if not self.compiler_options:
            return
        nothing = jax.ShapeDtypeStruct((), jnp.float32, sharding=self._replicated)
        try:
            jax.jit(lambda x: x, compiler_options=self.compiler_options).lower(nothing).compile()
        except jax.errors.JaxRuntimeError as error:
            raise self._said(error, "nothing") from error

    @property
    def _step(self) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, jax.Array]]:
        program = self.program
        axes = program.model.axes()
        return make_train_step(
            program.model,
            self._optimizer.make(axes),
            self._optimizer.learning_rate,
            program.step,
            functools.partial(stop_frozen, self._optimizer, axes),
        )

    def _step_arguments(self, rows: int, length: int, record_rows: int, names: Sequence[str]) -> tuple[Any, ...]:
        """State, batch and record of a step, without any bytes."""
        record = jax.eval_shape(lambda: make_record(record_rows, self.metric_names))
        record = jax.ShapeDtypeStruct(record.shape, record.dtype, sharding=self._replicated)
        return self.abstract_state, self.abstract_batch(rows, length, names), record

    @property
    def _optimizer(self) -> Optimizer:
        if self.program.optimizer is None:
            raise UserError("no optimiser is configured: bind OPTIMIZER, for example with gin/optim/palm_adafactor.gin")
        return self.program.optimizer

    @property
    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def _make_state(self, root: jax.Array) -> TrainState:
        return self._state_of(self.program.model.init(stream_key(root, "params")))

    def _state_of(self, params: Params) -> TrainState:
        opt_state = self._optimizer.make(self.program.model.axes()).init(params)
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state)

    def _place(self, tree: Params, axes: Any) -> Params:
        return map_with_path(self._struct, tree, axes)

    def _struct(self, name: str, leaf: Any, axes: tuple[str | None, ...]) -> jax.ShapeDtypeStruct:
        sharding = make_sharding(self.mesh, self.program.rules, axes, leaf.shape, name)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def _said(self, error: Exception, what: str) -> Exception:
        """What the compiler refused, in words for a user where it is his business."""
        unknown = re.search(r"No such compile option: '(\w+)'", str(error))
        if unknown:
            return UserError(
                f"the compiler has no option {unknown.group(1)!r}: take it away with CompilerFlags.extra = "
                f"{{'{unknown.group(1)}': None}}"
            )
        return to_out_of_memory(error, what) or error

    def _jit(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return jax.jit(self._constrained(function), compiler_options=self.compiler_options or None, **options)

    def _constrained(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def traced(*args: Any) -> Any:
            with activation_rules(self.mesh, self.program.rules):
                return function(*args)

        return traced
