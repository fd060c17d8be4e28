"""Imports the program once and runs every command in a process of its own, forked before a device is touched.

Importing takes seconds, and a test of kills and resumes starts many processes. Each is a real one: it has its own
environment, directory, standard streams, threads and signals, and it can be killed. One JSON object a line:

    {"start": argv, "env": {...}, "cwd": ..., "out": file, "err": file, "compiled": folder}  ->  {"pid": ...}
    {"wait": pid}                                                     ->  {"code": ...}   as subprocess has it

`compiled` holds the programs that earlier processes compiled; null compiles them anew. A `PROCESS_HOOK` in the
environment is a function of process_hooks.py that is called in the process first.
"""

import json
import os
import signal
import sys

import jax
import matplotlib.backends.backend_agg  # noqa: F401
import process_hooks

import t5x_scale.commands.evaluate
import t5x_scale.commands.infer
import t5x_scale.commands.train
import t5x_scale.monitor.figures  # noqa: F401
from t5x_scale.main import main


def run(request: dict) -> None:
    """What the forked process does, to its end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        descriptor = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, stream.fileno())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    jax.config.update("jax_compilation_cache_dir", request["compiled"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if hook := request["env"].get("PROCESS_HOOK"):
        name, _, argument = hook.partition(":")
        getattr(process_hooks, name)(argument)
    sys.argv = ["t5x_scale", *request["start"]]
    sys.exit(main())


def serve() -> None:
    """Reads requests until the end of the standard input."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        else:
            child = os.fork()
            if child == 0:
                run(request)
            answer = {"pid": child}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
