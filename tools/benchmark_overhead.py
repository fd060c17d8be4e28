"""What watching over a run costs: the host's time for guard, fingerprints and heartbeats, and a save's for the loop.

    python tools/benchmark_overhead.py

The loop of `t5x_scale train` runs over steps that do nothing, with real writers, recorder, guard and signs of life:
each variant in turn, several rounds, against the same loop with all of them off in the same round. A save every
`--save_every` steps computes real fingerprints and writes nothing. Then a small real model trains and saves while it
goes on: how long `save` keeps the loop, against the time of a step. Bars: 0.5 ms a step of the host for all together,
and a save under one step. The host's time is that which the loop's thread spends on a processor, so that it is the same
on a busy machine; the wall's is shown beside it, and holds what the devices do for the fingerprints, too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import statistics
import tempfile
import time
import types
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from t5x_scale.checkpoint.layout import flatten_leaves
from t5x_scale.checkpoint.manager import CheckpointConfig, CheckpointManager
from t5x_scale.checkpoint.saving import make_document
from t5x_scale.commands.training.course import Start
from t5x_scale.commands.training.loop import Loop
from t5x_scale.core import batch as fields
from t5x_scale.core.preemption import StopSignal
from t5x_scale.evaluation import EvaluationConfig
from t5x_scale.models import blocks, decoder
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.interface import DecoderModel
from t5x_scale.monitor.health import Health
from t5x_scale.monitor.plan_band import PlanWatch
from t5x_scale.monitor.spikes import OFF, REWIND, SpikeGuard
from t5x_scale.monitor.status import StatusLine
from t5x_scale.monitor.throughput import Throughput
from t5x_scale.monitor.writers import MetricWriters
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.schedules import Constant
from t5x_scale.program import Program, Runtime
from t5x_scale.step import METRICS, StepConfig

HOST_BAR_MS = 0.5
GUARD, FINGERPRINTS, HEARTBEATS = "guard", "fingerprints", "heartbeats"
# What is on in each variant; the first is what the others are compared with.
VARIANTS = {
    "none of them": (),
    "guard": (GUARD,),
    "fingerprints": (FINGERPRINTS,),
    "heartbeats": (HEARTBEATS,),
    "all together": (GUARD, FINGERPRINTS, HEARTBEATS),
}


class NoOpLoop(Loop):
    """The loop of a run, whose batches are nothing."""

    def _batches(self, start: int) -> contextlib.nullcontext:
        return contextlib.nullcontext(itertools.repeat((None, None)))


class FingerprintingManager:
    """Saves nothing, but computes what a save does."""

    def __init__(self, leaves: dict[str, jax.Array], every: int, enabled: bool):
        self.config = CheckpointConfig(save_every_steps=every, save_final=False)
        self._leaves, self._enabled = leaves, enabled

    def is_due(self, step: int) -> bool:
        return step % self.config.save_every_steps == 0

    def keep_since(self, step: int) -> None:
        """Nothing is deleted."""

    def save(self, step: int, state: Any, metadata: dict[str, Any], force: bool = False) -> None:
        if self._enabled:
            make_document(step, self._leaves, {})


def make_runtime(options: argparse.Namespace) -> Runtime:
    """A decoder with gated feed-forward layers, an output table of its own and AdamW in float32."""
    width = options.embed_dim
    config = ModelConfig(options.num_layers, width, 4 * width, width // 64, width // 64, 64, 32000, dtype="float32")
    model = DecoderModel(config, functools.partial(decoder.Decoder, block=blocks.SerialBlock, head=decoder.Head))
    return Program(model, AdamW(Constant(1e-4)), step=StepConfig()).make()


def fake_source() -> types.SimpleNamespace:
    """What the loop asks of its data."""
    schedule = types.SimpleNamespace(first_row=lambda step: 8 * step, size=lambda step: 8)
    counts = {"token_counts": lambda step: {}, "epochs": lambda step: {}, "names": (), "state": lambda step: {}}
    return types.SimpleNamespace(schedule=schedule, length=1024, jumps=(), **counts)


def run_loop(on: tuple[str, ...], leaves: dict[str, jax.Array], steps: int, save_every: int) -> tuple[float, float]:
    """Seconds of a loop over `steps` steps that do nothing: of its thread on a processor, and of the wall's clock."""
    values = np.abs(np.random.default_rng(0).normal(2.0, 0.01, (10, len(METRICS)))).astype(np.float32)
    values[:, METRICS.index("optim/skipped_updates")] = 0.0
    runtime = types.SimpleNamespace(
        metric_names=METRICS,
        make_record=lambda rows: values,
        train_step=lambda state, batch, record: (state, record),
    )
    guard = SpikeGuard(policy=REWIND if GUARD in on else OFF)
    manager = FingerprintingManager(leaves, save_every, FINGERPRINTS in on)
    probes = types.SimpleNamespace(is_due=lambda step: False)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        health = stack.enter_context(Health(directory)) if HEARTBEATS in on else None
        writers = stack.enter_context(MetricWriters(directory))
        line, stop = stack.enter_context(StatusLine(enabled=False)), stack.enter_context(StopSignal())
        throughput = Throughput(8192, listener=health)
        evaluation = EvaluationConfig(every_steps=0)
        log, plan = len(values), PlanWatch(None, writers, line)
        loop = NoOpLoop(runtime, {}, manager, evaluation, guard, log, throughput, writers, line, probes, plan)
        start = Start(0, None, fake_source(), {}, None, ())
        began = time.thread_time(), time.perf_counter()
        loop.run(start, steps, stop)
        return time.thread_time() - began[0], time.perf_counter() - began[1]


def measure_host(leaves: dict[str, jax.Array], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds a step of each variant, and beyond the bare loop of the same round; medians of the rounds."""
    rounds = []
    for _ in range(options.rounds + 1):
        rounds.append({name: run_loop(on, leaves, options.steps, options.save_every) for name, on in VARIANTS.items()})
    rounds = rounds[1:]  # The first compiles and warms up.
    bare = next(iter(VARIANTS))
    rows = []
    for name in VARIANTS:
        row: dict[str, Any] = {"variant": name}
        for index, clock in enumerate(("host", "wall")):
            beyond = [seconds[name][index] - seconds[bare][index] for seconds in rounds]
            row[f"{clock}_ms"] = 1e3 * statistics.median(seconds[name][index] for seconds in rounds) / options.steps
            row[f"extra_{clock}_ms"] = 1e3 * statistics.median(beyond) / options.steps
        rows.append(row)
    return rows


def measure_saves(runtime: Runtime, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step, for which an asynchronous save keeps the loop, and of the step beside its writing."""
    batch = jax.device_put(_make_batch(runtime, options), runtime.batch_sharding)
    state, record = runtime.init_state(), runtime.make_record(10)
    steps, blocked, beside = [], [], []
    with (
        tempfile.TemporaryDirectory() as directory,
        CheckpointManager(directory, CheckpointConfig(1, keep=1)) as manager,
    ):
        for number, saving in _plan(options.saves):
            began = time.perf_counter()
            if saving:
                manager.save(number, state, {})
                blocked.append(time.perf_counter() - began)
                began = time.perf_counter()
            state, record = jax.block_until_ready(runtime.train_step(state, batch, record))
            (beside if saving else steps).append(time.perf_counter() - began)
            if saving:
                manager.wait()
    return {
        "state_megabytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6,
        "step_seconds": statistics.median(steps[1:]),  # The first compiles.
        "save_blocks_seconds": statistics.median(blocked[1:]),  # The first makes what saves.
        "step_beside_a_save_seconds": statistics.median(beside[1:]),
    }


def _plan(saves: int) -> Iterator[tuple[int, bool]]:
    """(step, whether it is saved before it): three plain steps, then a saved one, and so on."""
    return ((step, step % 4 == 3) for step in range(4 * saves))


def _make_batch(runtime: Runtime, options: argparse.Namespace) -> dict[str, jax.Array]:
    shape = (options.batch_size, options.length + 1)
    tokens = jax.random.randint(jax.random.key(0), shape, 0, runtime.program.model.config.vocab_size, np.int32)
    weights = np.ones((options.batch_size, options.length), np.float32)
    return {
        fields.INPUT_TOKENS: tokens[:, :-1],
        fields.TARGET_TOKENS: tokens[:, 1:],
        fields.LOSS_WEIGHTS: weights,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=2000, help="of the loop that does nothing, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save_every", type=int, default=100, help="steps between two fingerprints of the state")
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--embed_dim", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args()

    tiny = dataclasses.replace(make_runtime(argparse.Namespace(num_layers=2, embed_dim=64)).program).make()
    host = measure_host(flatten_leaves(tiny.init_state()), options)
    saves = measure_saves(make_runtime(options), options)
    extra = host[-1]["extra_host_ms"]
    verdicts = {
        "host_under_bar": extra < HOST_BAR_MS,
        "save_under_a_step": saves["save_blocks_seconds"] < saves["step_seconds"],
    }
    print(
        f"{'ms a step that does nothing':<32}" + "".join(f"{name:>10}" for name in ("host", "extra", "wall", "extra"))
    )
    for row in host:
        values = (row[name] for name in ("host_ms", "extra_host_ms", "wall_ms", "extra_wall_ms"))
        print(f"{row['variant']:<32}" + "".join(f"{value:>10.4f}" for value in values))
    for name, value in {**saves, **verdicts}.items():
        print(f"{name:<32}{str(value) if isinstance(value, bool) else format(value, '.4f'):>10}")
    result = {"device": jax.devices()[0].device_kind, "host": host, "saves": saves, **verdicts}
    print(json.dumps(result), flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=2)
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
