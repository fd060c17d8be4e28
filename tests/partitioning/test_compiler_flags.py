"""Compiler options are data: a set a kind of device, changed by name, given to the compiler with each step."""

import jax
import jax.numpy as jnp
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.partitioning.compiler_flags import FLAGS, CompilerFlags, default_flags

ANY = "xla_tpu_enable_async_collective_fusion"


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5", "TPU v5p", "TPU v5 lite", "TPU v5e", "TPU v6 lite", "TPU7x"])
def test_every_generation_has_one_set(kind):
    import re

    assert sum(re.fullmatch(pattern, kind) is not None for pattern in FLAGS) == 1
    assert CompilerFlags().options(kind) == default_flags(kind)


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H200", "TPU v3"])
def test_others_have_xlas_defaults(kind):
    assert CompilerFlags().options(kind) == {}


def test_changed_by_name():
    options = CompilerFlags(extra={ANY: None, "xla_tpu_scoped_vmem_limit_kib": 65536}).options("TPU v4")
    assert ANY not in options
    assert options["xla_tpu_scoped_vmem_limit_kib"] == 65536
    assert options.keys() > set()
    assert CompilerFlags(extra={"xla_a": "b"}, use_defaults=False).options("TPU v4") == {"xla_a": "b"}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"--xla_tpu_x": True}, "'--xla_tpu_x' is no option; write its name alone"),
        ({"xla_tpu_x": [1]}, r"xla_tpu_x is \[1\]; expected a word"),
    ],
)
def test_what_is_refused(extra, message):
    with pytest.raises(UserError, match=message):
        CompilerFlags(extra=extra)


def test_the_compiler_is_told(monkeypatch):
    """An option that it does not know is refused: so it was given to it."""
    double = jax.jit(lambda x: 2 * x, compiler_options={"xla_no_such_option": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_no_such_option'"):
        double(jnp.ones(3))
