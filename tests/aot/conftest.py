"""Tests with the TPU compiler and no TPU: they need `pip install t5x_scale[tpu]`, and fail where it is missing."""

import importlib.util
import os

# Before JAX starts: neither a metadata server nor a device is asked, and several processes may compile at once.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"

if importlib.util.find_spec("libtpu") is None:
    raise RuntimeError("tests/aot needs libtpu: run them by `make test-aot`, or pip install -e '.[tpu]' first")
