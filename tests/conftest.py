"""Shared by every test: the platform is a CPU split into eight simulated devices, with a fixed thread pool."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# The thread pool's size decides how sums are split, and so the last bits of a result.
os.environ["NPROC"] = "2"
os.environ.setdefault("EPATH_USE_TF", "false")
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
