"""Which implementation attends: by platform, by what each covers, or by name."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.layers.attention import Attention
from t5x_scale.layers.masks import NO_WINDOW, Mask, make_mask
from t5x_scale.layers.ops.attention import BLOCK, IMPLEMENTATIONS, attention, choose
from t5x_scale.layers.ops.attention.case import Case
from t5x_scale.layers.ops.attention.notices import warn_once
from t5x_scale.partitioning.axes import MESH_AXES
from t5x_scale.partitioning.rules import fsdp_model
from t5x_scale.partitioning.shardings import activation_rules, current_platform

SEGMENTS = jnp.ones((2, 256), jnp.int32)


def mesh_of(platform, **sizes):
    """Something with the shape, size and devices of a mesh, of devices that are not here."""
    shape = {name: sizes.get(name, 1) for name in MESH_AXES}
    devices = np.full(tuple(shape.values()), types.SimpleNamespace(platform=platform), dtype=object)
    return types.SimpleNamespace(shape=shape, size=devices.size, devices=devices)


def case(mask=None, window=None, soft_cap=None, has_bias=False, length=256, keys=None, dtype=jnp.bfloat16):
    mask = Mask() if mask is None else mask
    return Case((2, length, 4, 64), (2, keys or length, 2, 64), dtype, mask, window, soft_cap, has_bias, BLOCK)


def on(platform, *args, **sizes):
    with activation_rules(mesh_of(platform, **sizes), fsdp_model()):
        return choose(*args)


def test_the_platform_is_of_the_mesh_that_is_traced_for():
    assert current_platform() == "cpu"
    with activation_rules(mesh_of("tpu"), fsdp_model()):
        assert current_platform() == "tpu"


@pytest.mark.parametrize(
    "made",
    [
        case(),
        case(make_mask(SEGMENTS, SEGMENTS), soft_cap=50.0),
        case(window=100),
        case(Mask(window=jnp.int32(NO_WINDOW))),
        case(window=4096, length=1 << 17),
        case(dtype=jnp.float32, length=33),
    ],
)
def test_tpus_take_splash(made):
    assert on("tpu", made) == "splash"
    assert on("tpu", made, "auto", fsdp=2, model=2) == "splash"
    assert choose(made) == on("cpu", made) == "reference"


UNCOVERED = {
    "relative positions": case(has_bias=True),
    "cache": case(Mask(query_index=jnp.zeros((2, 256), jnp.int32))),
    "in a cache": case(length=1, keys=256),
    "not in float16": case(dtype=jnp.float16),
    "from layer to layer at length 65536": case(Mask(window=jnp.int32(5)), length=1 << 16),
    "does not fit into scalar memory": case(length=1 << 18),
    "a window and a prefix at length 65536": case(make_mask(SEGMENTS, SEGMENTS), window=5, length=1 << 16),
}


@pytest.mark.parametrize("reason", UNCOVERED)
def test_what_splash_does_not_cover_falls_to_the_reference_and_is_said_by_name(reason):
    assert on("tpu", UNCOVERED[reason]) == "reference"
    with pytest.raises(UserError, match=f"implementation = 'splash' does not cover this: .*{reason}"):
        on("tpu", UNCOVERED[reason], "splash")


def test_that_a_tpu_forms_all_logits_is_said_once_where_sizes_could_change_it(caplog):
    warn_once.cache_clear()
    for _ in range(2):
        assert on("tpu", UNCOVERED["does not fit into scalar memory"]) == "reference"
    (said,) = caplog.messages
    assert said.startswith("attention forms all logits, batch x heads x length x length: 'splash' cannot: the plan of")
    assert on("tpu", UNCOVERED["cache"]) == on("tpu", UNCOVERED["relative positions"]) == "reference"
    assert on("tpu", case()) == "splash"
    assert on("cpu", UNCOVERED["does not fit into scalar memory"]) == "reference"
    assert len(caplog.messages) == 1


def test_a_length_that_is_split_is_not_for_splash():
    with pytest.raises(UserError, match="a part of every sequence"):
        on("tpu", case(), "splash", context=2)
    assert on("tpu", case(), "auto", context=2) == "ring"


def test_gpus_have_no_splash():
    with pytest.raises(UserError, match="kernel for TPUs"):
        on("gpu", case(), "splash")


def test_unknown_names():
    with pytest.raises(UserError, match=r"unknown implementation 'splsh'.*did you mean 'splash'"):
        choose(case(), "splsh")
    with pytest.raises(UserError, match=r"known are auto, .*reference"):
        choose(case(), 3)


def test_unknown_names_are_refused_where_parameters_are_drawn():
    layer = Attention(embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, implementation="splush")
    with pytest.raises(UserError, match=r"unknown implementation 'splush'.*did you mean 'splash'"):
        layer.init(jax.random.key(0), jnp.ones((1, 3, 8)), Mask(), jnp.arange(3)[None])


def test_the_reference_covers_everything():
    assert all(IMPLEMENTATIONS["reference"].unsupported(made) is None for made in UNCOVERED.values())


@pytest.mark.parametrize(("block", "blocks"), [(128, 8), (512, 2), (1024, 1)])
def test_the_kernel_has_blocks_of_the_size_asked_for(block, blocks):
    q = jnp.zeros((1, 1024, 2, 64))
    program = jax.make_jaxpr(lambda q: attention(q, q, q, Mask(), scale=1.0, implementation="splash", block=block))(q)
    assert f"grid=(2, 1, {blocks}, {blocks})" in str(program)


@pytest.mark.parametrize("block", [0, 64, 200, -128, 512.0, "512"])
def test_blocks_that_cannot_be(block):
    layer = Attention(embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, block=block)
    with pytest.raises(UserError, match=f"Attention.block is {block!r}: a multiple of 128"):
        layer.init(jax.random.key(0), jnp.ones((1, 3, 8)), Mask(), jnp.arange(3)[None])


def test_smaller_blocks_have_longer_plans():
    long = case(length=1 << 17)
    assert on("tpu", long) == "splash"
    assert on("tpu", long._replace(block=128)) == "reference"


def test_the_layer_takes_a_name_and_decodes_with_any(monkeypatch):
    """Drawing parameters and cached keys are the reference's, whatever is asked for."""
    taken = []
    monkeypatch.setattr(
        "t5x_scale.layers.attention.attention",
        lambda q, *args, implementation, **kwargs: taken.append(implementation) or q,
    )
    layer = Attention(embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, implementation="splash")
    x, positions = jnp.ones((1, 3, 8)), jnp.arange(3)[None]
    params = layer.init(jax.random.key(0), x, Mask(), positions)
    layer.apply(params, x, Mask(), positions)
    layer.apply(params, x, Mask(query_index=positions), positions, layer.empty_cache(1, 5))
    assert taken == ["reference", "splash", "reference"]


def test_splash_is_interpreted_on_a_cpu_and_agrees():
    x, positions = jax.random.normal(jax.random.key(1), (2, 40, 16)), jnp.arange(40)[None]
    mask = make_mask(jnp.asarray(np.repeat([[1, 2], [1, 0]], 20, axis=1), jnp.int32))
    shape = {"embed_dim": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    params = Attention(**shape).init(jax.random.key(0), x, mask, positions)
    got, expected = (
        jax.jit(Attention(**shape, implementation=name).apply)(params, x, mask, positions)[0]
        for name in ("splash", "reference")
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
