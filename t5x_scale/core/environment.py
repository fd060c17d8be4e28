"""What a run's bits depend on besides its configuration."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from t5x_scale.core.parallel import count_cores

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
FLAG_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NPROC", "JAX_DEFAULT_MATMUL_PRECISION")


def describe_environment() -> dict[str, Any]:
    """Versions, devices, processes, cores and flags of this process, as plain JSON values.

    Two runs whose descriptions are equal, on the same mesh, give the same bits; where they differ the
    resume says which entry does.
    """
    import jax  # Not at the top: the rest of core is usable without starting a backend.

    versions = {package: package_version(package) for package in PACKAGES}
    cores = os.environ.get("NPROC") or count_cores()
    return {
        "versions": versions,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        # Only the CPU backend splits its work by the cores it sees.
        "cpu_cores": int(cores) if jax.default_backend() == "cpu" else None,
        "flags": {name: os.environ[name] for name in FLAG_VARIABLES if os.environ.get(name)},
    }


def package_version(package: str) -> str:
    """The installed version of a package, or "absent"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
