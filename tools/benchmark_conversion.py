"""Times conversions of a generated checkpoint against `cp` of as many bytes, and says how much memory they took.

    python tools/benchmark_conversion.py --gigabytes=3
    python tools/benchmark_conversion.py --gigabytes=12 --dtype=bfloat16 --directory=/mnt/disk

Every line is a process of its own, whose peak resident memory the kernel reports. `copy` reads, verifies, and writes
the checkpoint anew; `double` writes it with every layer twice. The source is dropped from the page cache before each,
and a line has ended when its bytes are on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

HEAD_DIM = 128
LAYERS = "params/decoder/layers/"


def layer_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Of one layer of a Llama-shaped decoder."""
    mlp, heads = width * 11 // 4, (width // HEAD_DIM, HEAD_DIM)
    return {
        "mlp/wi_0/kernel": (width, mlp),
        "mlp/wi_1/kernel": (width, mlp),
        "mlp/wo/kernel": (mlp, width),
        "self_attention/query/kernel": (width, *heads),
        "self_attention/key/kernel": (width, *heads),
        "self_attention/value/kernel": (width, *heads),
        "self_attention/out/kernel": (*heads, width),
        "pre_norm/scale": (width,),
        "pre_mlp_norm/scale": (width,),
    }


def generate(source: str, target: str, options: argparse.Namespace) -> None:
    """Writes a checkpoint of about the size asked for."""
    del source
    from t5x_scale.checkpoint.stream_writer import write_stream
    from t5x_scale.core import lazy

    def draw(name: str, *shape: int) -> lazy.LazyArray:
        return lazy.normal(shape, options.dtype, 0.02, 0, name)

    table, one = draw("embedding", 16 * options.width, options.width), layer_shapes(options.width)
    size = sum(draw(name, *shape).nbytes for name, shape in one.items())
    layers = max(1, round((options.gigabytes * 1e9 - table.nbytes) / size))
    leaves = {LAYERS + name: draw(name, layers, *shape) for name, shape in one.items()}
    write_stream(target, 0, {"params/token_embedder/embedding": table, **leaves}, {})


def convert(source: str, target: str, options: argparse.Namespace) -> None:
    """Reads, verifies and writes, with each layer `options.times` times."""
    from t5x_scale.checkpoint.lazy_reader import read_lazily
    from t5x_scale.checkpoint.stream_writer import write_stream
    from t5x_scale.core import lazy

    began = time.perf_counter()
    _, _, leaves = read_lazily(source)
    print(f"verified in {time.perf_counter() - began:.1f} s", file=sys.stderr)
    for path in [path for path in leaves if path.startswith(LAYERS)]:
        layers = [*range(leaves[path].shape[0])] * options.times
        leaves[path] = lazy.take(leaves[path], 0, layers)
    write_stream(target, 0, leaves, {})


def measure(command: list[str], source: pathlib.Path, target: pathlib.Path) -> dict[str, float]:
    """Seconds until what the command wrote is on the disk, its bytes, and its peak resident memory."""
    _forget(source)
    began = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    for path in _list_files(target):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in _list_files(target))
    return {"seconds": seconds, "gigabytes": size / 1e9, "peak_memory_gb": usage.ru_maxrss * 1024 / 1e9}


def _forget(directory: pathlib.Path) -> None:
    for path in _list_files(directory):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _list_files(directory: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--width", type=int, default=2048, help="of the residual stream")
    parser.add_argument("--directory", help="where to work; some four times the size is needed")
    parser.add_argument("--json", help="also write the result to this file")
    parser.add_argument("--part", nargs=3, metavar=("FUNCTION", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, source, target = options.part
        {"generate": generate, "convert": convert}[name](source, target, options)
        return
    results = {}
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        source = pathlib.Path(directory) / "source"
        kept = [f"--{name}={getattr(options, name)}" for name in ("gigabytes", "dtype", "width")]
        base = [sys.executable, __file__, *kept]
        measure([*base, "--part", "generate", "", str(source)], source, source)
        for name, times in (("cp", 0), ("copy", 1), ("double", 2), ("cp again", 0)):
            target = pathlib.Path(directory) / "target"
            command = [*base, f"--times={times}", "--part", "convert", str(source), str(target)]
            result = measure(command if times else ["cp", "-r", str(source), str(target)], source, target)
            results[name] = result
            rate = result["gigabytes"] / result["seconds"]
            print(
                f"{name:10} {result['gigabytes']:7.2f} GB {result['seconds']:8.1f} s {rate:7.3f} GB/s written, "
                f"peak memory {result['peak_memory_gb']:.3f} GB",
                flush=True,
            )
            shutil.rmtree(target)
    print(json.dumps(results))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
