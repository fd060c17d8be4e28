"""The loss on a mesh: the same as on one device, and the table's gradient exchanged once however many chunks."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from t5x_scale.losses import Projection, cross_entropy
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.shardings import activation_rules, make_sharding

FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
B, L, D, V = 8, 12, 16, 48
# An output table that lies whole along the axis that is to split the work.
LEFT_WHOLE = rules.make_rules({"batch": ("data", "fsdp"), "embed": "fsdp"})
# Rows and features over axes that are both free of tokens.
CROSSED = rules.make_rules({"batch": "data", "vocab": "model", "embed": "context"})
MESHES = {
    "data": (MeshConfig(data=8, fsdp=1), rules.data_parallel()),
    "fsdp": (MeshConfig(fsdp=8), rules.fsdp()),
    "fsdp x model": (MeshConfig(fsdp=2, model=4), rules.fsdp_model()),
    "fsdp x model, vocabulary over fsdp": (MeshConfig(fsdp=2, model=4), rules.fsdp_model_vocab_fsdp()),
    "data x fsdp x model": (MeshConfig(data=2, fsdp=2, model=2), rules.fsdp_model()),
    "fsdp x context x model": (MeshConfig(fsdp=2, context=2, model=2), rules.fsdp_model()),
    "fsdp x expert x model": (MeshConfig(fsdp=2, expert=2, model=2), rules.fsdp_model()),
    "stages share the head": (MeshConfig(fsdp=2, stage=2, model=2), rules.fsdp_model()),
    "left whole": (MeshConfig(fsdp=2, model=4), LEFT_WHOLE),
    "crossed": (MeshConfig(data=2, fsdp=1, context=2, model=2), CROSSED),
}


def draw(vocab_first, batch=B, length=L, vocabulary=V):
    rng = np.random.default_rng(0)
    hidden = 2 * rng.standard_normal((batch, length, D)).astype(np.float32)
    table = rng.standard_normal((vocabulary, D) if vocab_first else (D, vocabulary)).astype(np.float32)
    targets = rng.integers(0, vocabulary, (batch, length)).astype(np.int32)
    weights = (rng.random((batch, length)) * (rng.random((batch, length)) < 0.7)).astype(np.float32)
    return hidden, table, targets, weights


def losses(projection, chunk_length, hidden, table, targets, weights):
    result = cross_entropy(
        hidden, table, targets, weights, projection=projection, z_loss=0.1, chunk_length=chunk_length
    )
    return result.total / 7, result


def placed(mesh, table_rules, projection, chunk_length):
    """The function jitted for a mesh, and its arguments put where they belong."""
    mesh = mesh.make_mesh()
    stored = ("vocab", "embed") if projection.vocab_first else ("embed", "vocab")
    names = (("batch", "length", "act_embed"), stored, ("batch", "length"), ("batch", "length"))

    def function(*arguments):
        with activation_rules(mesh, table_rules):
            gradient = jax.value_and_grad(functools.partial(losses, projection, chunk_length), (0, 1), has_aux=True)
            return gradient(*arguments)

    def put(*arguments):
        return [
            jax.device_put(x, make_sharding(mesh, table_rules, axes, x.shape))
            for x, axes in zip(arguments, names, strict=True)
        ]

    def shardings(*arguments):
        return [make_sharding(mesh, table_rules, a, x.shape) for x, a in zip(arguments[:2], names[:2], strict=True)]

    return function, put, shardings


def check(mesh, table_rules, projection, arguments, chunk_length=5):
    single = jax.value_and_grad(functools.partial(losses, projection, chunk_length), (0, 1), has_aux=True)
    (total, sums), gradients = jax.jit(single, compiler_options=FAST)(*arguments)
    function, put, _ = placed(mesh, table_rules, projection, chunk_length)
    (got, got_sums), got_gradients = jax.jit(function, compiler_options=FAST)(*put(*arguments))
    assert float(got) == pytest.approx(float(total), rel=1e-6)
    np.testing.assert_allclose(got_sums, sums, rtol=1e-6)
    for one, other in zip(got_gradients, gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vocab_first", [True, False])
@pytest.mark.parametrize("name", MESHES)
def test_values_and_gradients(name, vocab_first):
    check(*MESHES[name], Projection(0.7, vocab_first, None if vocab_first else 2.0), draw(vocab_first))


@pytest.mark.parametrize("vocabulary", [46, 2])
@pytest.mark.parametrize("vocab_first", [True, False])
def test_vocabularies_that_do_not_divide(vocab_first, vocabulary):
    """46 tokens over fsdp or, where the table lies whole, not at all: four devices then share out 12, 12, 12 and 10."""
    arguments = draw(vocab_first, vocabulary=vocabulary)
    for name in ("fsdp x model, vocabulary over fsdp", "left whole"):
        check(*MESHES[name], Projection(0.7, vocab_first, 2.0), arguments)


def test_a_share_of_a_share_that_does_not_divide():
    """Rows shared out over stages, and each share again over model: both leave some over."""
    table_rules = rules.make_rules({"batch": "data", "vocab": "fsdp", "embed": "model"})
    mesh = MeshConfig(data=1, fsdp=1, stage=4, model=2)
    for vocab_first in (True, False):
        check(mesh, table_rules, Projection(0.7, vocab_first), draw(vocab_first, vocabulary=45))


@pytest.mark.parametrize(("batch", "length"), [(3, 12), (8, 5), (1, 7)])
def test_tokens_that_do_not_divide(batch, length):
    for name in ("fsdp x model", "fsdp x context x model"):
        mesh, table_rules = MESHES[name]
        projection, arguments = Projection(0.7), draw(True, batch, length)
        function, _, _ = placed(mesh, table_rules, projection, 5)
        (got, _), gradients = jax.jit(function)(*arguments)
        (wanted, _), wanted_gradients = jax.jit(
            jax.value_and_grad(functools.partial(losses, projection, 5), (0, 1), has_aux=True)
        )(*arguments)
        assert float(got) == pytest.approx(float(wanted), rel=1e-6)
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6), gradients, wanted_gradients)


def test_each_row_on_its_own():
    """As evaluation by rows asks for it."""
    hidden, table, targets, weights = draw(True)
    mesh, table_rules = MESHES["fsdp x model"]

    def by_row(*arguments):
        return jax.vmap(lambda *row: losses(Projection(), 5, row[0][None], table, *(x[None] for x in row[1:]))[1])(
            *arguments
        )

    def on_mesh(*arguments):
        with activation_rules(mesh.make_mesh(), table_rules):
            return by_row(*arguments)

    wanted = jax.jit(by_row)(hidden, targets, weights)
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5),
        jax.jit(on_mesh)(hidden, targets, weights),
        wanted,
    )


def exchanged(text):
    """Floats of the collectives inside and outside of loops whose result is as large as a table's shard or larger."""
    found = {"inside": [], "outside": []}
    inside = False
    for line in text.splitlines():
        if line and not line.startswith((" ", "}")):
            inside = not line.startswith("ENTRY")
        match = re.search(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all)(?:-start)?\(", line)
        if match:
            sizes = [math.prod(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", match[1])]
            found["inside" if inside else "outside"].append((match[2], sum(sizes)))
    return found


@pytest.mark.parametrize(
    ("name", "reductions"), [("data", 1), ("fsdp", 1), ("fsdp x model", 1), ("fsdp x context x model", 2)]
)
def test_the_gradient_of_the_table_is_exchanged_once(name, reductions):
    """Within the loop over chunks nothing as large as a shard of the table is exchanged: only what tokens need."""
    mesh, table_rules = MESHES[name]
    arguments = draw(True, length=64, vocabulary=512)
    function, put, shardings = placed(mesh, table_rules, Projection(), 4)
    gradients = jax.jit(lambda *a: function(*a)[1], out_shardings=tuple(shardings(*arguments)), compiler_options=FAST)
    found = exchanged(gradients.lower(*put(*arguments)).compile().as_text())
    shard = 512 * D // 8
    assert not [one for one in found["inside"] if one[1] >= shard], found
    large = [kind for kind, size in found["outside"] if size >= shard and "reduce" in kind]
    assert len(large) == reductions, found
