"""Times whole training steps against the matrix products they cannot do without, in the same run.

    python tools/benchmark_step.py                         # 50M parameters on a CPU
    python tools/benchmark_step.py --config llama-1b llama-3b palm-3b --batch_size=8 --length=4096 \
        --dtype=bfloat16 --remat=minimal --loss_chunk_length=512        # one large GPU

The floor is the sum of the times of all matrix products of a step (forward, gradient of the input, gradient of the
kernel; attention without its recomputation), each timed alone on operands of the same shapes. Steps and floor are
measured in turn, several rounds, and the smallest figures are compared: these are what the machine can do when it is
left alone. CPU-seconds count all threads; on an accelerator only wall time means anything.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import resource
import subprocess
import sys
import time

# The card is nobody else's; XLA leaves a quarter of it alone.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import jax.numpy as jnp

from t5x_scale.core import batch as fields
from t5x_scale.core.trees import flatten
from t5x_scale.models import accounting, blocks, decoder
from t5x_scale.models.config import ModelConfig
from t5x_scale.models.interface import DecoderModel
from t5x_scale.models.remat import REMAT_POLICIES
from t5x_scale.monitor.peaks import peak_flops
from t5x_scale.optim.adamw import AdamW
from t5x_scale.optim.schedules import Constant
from t5x_scale.program import Program, Runtime
from t5x_scale.step import StepConfig

# num_layers, embed_dim, mlp_dim, num_heads, num_kv_heads, head_dim, vocab_size. PaLM's have parallel layers and one kv
# head, the others serial layers; all have gated feed-forward layers and an output table of their own.
CONFIGS = {
    "llama-50m": (4, 512, 2048, 8, 8, 64, 32000),
    "llama-1b": (16, 2048, 8192, 16, 8, 128, 32000),
    "llama-3b": (28, 3072, 8192, 24, 8, 128, 32000),
    "llama-8b": (32, 4096, 14336, 32, 8, 128, 32000),
    "palm-3b": (12, 4096, 16384, 32, 1, 128, 32000),
    "palm-8b": (32, 4096, 16384, 16, 1, 256, 32000),
}


def make_runtime(name: str, options: argparse.Namespace) -> Runtime:
    """The benchmark's program: RMSNorm, gated MLP, an output table of its own, AdamW in float32."""
    block = blocks.ParallelBlock if name.startswith("palm") else blocks.SerialBlock
    model = DecoderModel(
        ModelConfig(*CONFIGS[name], dtype=options.dtype),
        functools.partial(decoder.Decoder, block=block, head=decoder.Head, remat=options.remat),
    )
    return Program(model, AdamW(Constant(1e-4)), step=StepConfig(loss_chunk_length=options.loss_chunk_length)).make()


def matrix_products(config: ModelConfig, rows: int, length: int) -> collections.Counter:
    """{(batch, m, k, n): how many} of one step: every product of a linear map stands for three of its size."""
    tokens, heads = rows * length, config.num_heads * config.head_dim
    kv = config.num_kv_heads * config.head_dim
    maps = collections.Counter()
    layer = [(config.embed_dim, heads), (heads, config.embed_dim), *[(config.embed_dim, kv)] * 2]
    layer += [(config.embed_dim, config.mlp_dim)] * 2 + [(config.mlp_dim, config.embed_dim)]
    for inputs, outputs in layer:
        maps[inputs, outputs] += config.num_layers
    maps[config.embed_dim, config.vocab_size] += 1
    products = collections.Counter()
    for (inputs, outputs), count in maps.items():
        products[1, tokens, inputs, outputs] += count
        products[1, tokens, outputs, inputs] += count
        products[1, inputs, tokens, outputs] += count
    batch = rows * config.num_heads
    products[batch, length, config.head_dim, length] += 2 * config.num_layers
    products[batch, length, length, config.head_dim] += 4 * config.num_layers
    return products


def cpu_seconds() -> float:
    """CPU time of all threads of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def timed(function, *args) -> tuple[float, float, object]:
    """Wall and CPU seconds until the result is there, and the result."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return time.perf_counter() - wall, cpu_seconds() - cpu, result


def make_floor(products: collections.Counter, dtype: str):
    """A function that times every product once and returns (wall, CPU) seconds of the whole step."""
    multiply = jax.jit(lambda a, b: a @ b)
    operands = {
        shape: (jnp.ones((shape[0], shape[1], shape[2]), dtype), jnp.ones((shape[0], shape[2], shape[3]), dtype))
        for shape in products
    }
    best = dict.fromkeys(products, (float("inf"), float("inf")))
    for pair in operands.values():
        jax.block_until_ready(multiply(*pair))

    def measure() -> tuple[float, float]:
        for shape, pair in operands.items():
            wall, cpu, _ = timed(multiply, *pair)
            best[shape] = (min(best[shape][0], wall), min(best[shape][1], cpu))
        return tuple(sum(best[shape][i] * count for shape, count in products.items()) for i in (0, 1))

    return measure


def measure(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Steps and floor of one configuration, in turn."""
    runtime = make_runtime(name, options)
    config, shape = runtime.program.model.config, (options.batch_size, options.length)
    tokens = jax.random.randint(jax.random.key(0), (shape[0], shape[1] + 1), 0, config.vocab_size, jnp.int32)
    batch = {
        fields.INPUT_TOKENS: tokens[:, :-1],
        fields.TARGET_TOKENS: tokens[:, 1:],
        fields.LOSS_WEIGHTS: jnp.ones(shape, jnp.float32),
    }
    batch = jax.device_put(batch, runtime.batch_sharding)
    state, record = runtime.init_state(), runtime.make_record(options.rounds + 1)
    compile_seconds, _, (state, record) = timed(runtime.train_step, state, batch, record)
    wall = cpu = float("inf")
    floor_wall = floor_cpu = None
    measure_floor = make_floor(matrix_products(config, *shape), options.dtype) if options.floor else None
    for _ in range(options.rounds):
        step_wall, step_cpu, (state, record) = timed(runtime.train_step, state, batch, record)
        wall, cpu = min(wall, step_wall), min(cpu, step_cpu)
        if measure_floor is not None:
            floor_wall, floor_cpu = measure_floor()

    count = accounting.count_tree({path: leaf.shape for path, leaf in flatten(runtime.abstract_params).items()})
    rate = shape[0] * shape[1] / wall
    flops = accounting.train_flops_per_token(count, config, options.length)
    device = jax.devices()[0]
    peak = peak_flops(device.device_kind)
    stats = device.memory_stats() or {}
    return {
        "config": name,
        "parameters": count.total,
        "batch": f"{shape[0]} x {shape[1]}",
        "dtype": options.dtype,
        "remat": options.remat,
        "device": device.device_kind,
        "jax": jax.__version__,
        "first_step_seconds": round(compile_seconds, 2),
        "seconds_per_step": round(wall, 4),
        "cpu_seconds_per_step": round(cpu, 3),
        "floor_seconds": floor_wall and round(floor_wall, 4),
        "floor_cpu_seconds": floor_cpu and round(floor_cpu, 3),
        "ratio": floor_wall and round(wall / floor_wall, 3),
        "cpu_ratio": floor_cpu and round(cpu / floor_cpu, 3),
        "tokens_per_second": round(rate, 1),
        "tflops_per_second": round(rate * flops / 1e12, 3),
        "mfu": round(rate * flops / (peak * jax.device_count()), 4) if peak else None,
        "peak_memory_gib": round(
            stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30, 3
        ),
        "loss": float(record[0, 0]),
    }


def run(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Measures one configuration and prints it; of several, each in a process of its own, with all of the memory."""
    if len(options.config) > 1:
        words = [word for word in sys.argv[1:] if word not in options.config and not word.startswith("--config")]
        done = subprocess.run([sys.executable, __file__, *words, "--config", name], stdout=subprocess.PIPE)
        print(done.stdout.decode(), end="", flush=True)
        if done.returncode:
            sys.exit(done.returncode)
        return json.loads(done.stdout.splitlines()[-1])
    result = measure(name, options)
    for key, value in result.items():
        print(f"{key:22} {value}")
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--config", choices=CONFIGS, nargs="+", default=["llama-50m"])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", choices=REMAT_POLICIES, default="none")
    parser.add_argument("--loss_chunk_length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--no_floor", dest="floor", action="store_false", help="do not time the products alone")
    parser.add_argument("--json", help="also write the results to this file, a list")
    options = parser.parse_args()

    results = [run(name, options) for name in options.config]
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
