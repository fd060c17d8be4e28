"""One process of a sweep: it imports the program once, and trains one run after another by the command line's words."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from t5x_scale.sweeps.jobs import Job

LOG = "train.log"


def serve(connection: Connection, lock_path: str) -> None:
    """Receives jobs and answers each with its exit code, until None comes or nobody is there any more."""
    # Between two runs a signal ends the process at once; a run saves first (see `core.preemption.StopSignal`).
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    while (job := _receive(connection)) is not None:
        connection.send(train(job, lock_path))


def train(job: Job, lock_path: str) -> int:
    """Trains one run, or goes on with it; what it prints goes to train.log beside it. Returns its exit code."""
    _write_to(f"{job.model_dir}/{LOG}")
    try:
        from t5x_scale.main import main

        _build_stores(job, lock_path)
        return main(job.words)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _build_stores(job: Job, lock_path: str) -> None:
    """Builds missing token stores, one process at a time: runs of a sweep share them."""
    from t5x_scale.commands import COMMANDS
    from t5x_scale.config.load import Setting, load, make_arguments
    from t5x_scale.core.errors import UserError
    from t5x_scale.data.pipeline import make_eval_sources, make_pipeline
    from t5x_scale.run_files import data_options

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with open(lock_path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            settings = [Setting(name, value, f"--gin.{name}") for name, value in job.settings.items()]
            arguments = make_arguments(load("train", COMMANDS, job.gin_files, settings))
            data, evaluation = arguments["data"], arguments.get("evaluation")
            make_pipeline(data, **data_options(job.model_dir))
            if evaluation is not None and evaluation.every_steps != 0:
                make_eval_sources(data, **evaluation.options(), **data_options(job.model_dir))
        except UserError:
            pass  # The command says it, in its own words.


def _receive(connection: Connection) -> Job | None:
    try:
        return connection.recv()
    except EOFError:
        return None


def _write_to(path: str) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
