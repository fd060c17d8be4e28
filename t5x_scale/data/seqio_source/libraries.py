"""Imports SeqIO and TensorFlow, quietly, and keeps TensorFlow off the accelerators."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator

__all__ = ["first_line", "seqio", "tf"]


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drops what native code writes to stderr: TensorFlow's search for drivers, which no log level stops."""
    sys.stderr.flush()
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

with _silent_stderr():
    import seqio
    import tensorflow as tf

    # TensorFlow would take the memory of every accelerator it sees. Too late if it has been used already.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_visible_devices([], "TPU")
# SeqIO and TFDS explain themselves at length at level INFO.
logging.getLogger("absl").setLevel(logging.WARNING)


def first_line(error: Exception) -> str:
    """The reason inside an error of TensorFlow, which carries a traceback of its own in the text."""
    text = str(getattr(error, "message", "") or error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return re.sub(r"^\{\{.*?\}\} ", "", line)
