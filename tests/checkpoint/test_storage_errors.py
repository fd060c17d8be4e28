"""What the storage library raises is said in one line: the step, the file, and what is wrong with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_scale.checkpoint import restore
from t5x_scale.checkpoint.config import CheckpointConfig
from t5x_scale.checkpoint.manager import CheckpointManager
from t5x_scale.core import files
from t5x_scale.core.errors import UserError
from t5x_scale.core.storage_errors import describe_read, describe_write

STATE = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(256, 256)), jnp.float32), "bias": jnp.ones(3)}
ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE)


@pytest.fixture
def step(tmp_path):
    with CheckpointManager(tmp_path, CheckpointConfig(save_every_steps=1)) as manager:
        manager.save(1, STATE, {})
    return tmp_path / "checkpoints" / "1"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def blank(path):
    path.write_bytes(bytes(path.stat().st_size))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest(step):
    return max(step.glob("state/ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda step: flip(step / "state" / "manifest.ocdbt"), "state/manifest.ocdbt is damaged"),
        (lambda step: (step / "state" / "manifest.ocdbt").unlink(), r"(bias|kernel)/.zarray is missing"),
        (lambda step: [path.unlink() for path in step.glob("state/d/*")], r"d/[0-9a-f]{32} is missing"),
        (lambda step: [blank(path) for path in step.glob("state/d/*")], r"d/[0-9a-f]{32} is damaged"),
        (lambda step: cut(largest(step)), "kernel/0.0 is cut short"),
        (lambda step: largest(step).unlink(), "kernel/0.0 is not what was written"),
    ],
)
def test_damage_is_named_by_its_file(step, damage, said):
    damage(step)
    with pytest.raises(UserError, match=rf"can be trusted: step 1: its arrays cannot be read: {said}") as caught:
        CheckpointManager(step.parents[1]).restore(ABSTRACT)
    line = str(caught.value)
    assert line.endswith("; put a copy of one back, or begin anew in another directory")
    assert not any(word in line for word in ("Error", "Exception", "bound method", "tensorstore"))


@pytest.mark.parametrize(("content", "said"), [("{", "it is no JSON"), ("{}", "it has no 'tree_metadata'")])
def test_a_damaged_tree_is_named_by_its_file(step, content, said):
    """Orbax names none."""
    (step / "state" / "_METADATA").write_text(content)
    with pytest.raises(UserError, match=rf"can be trusted: step 1: its state/_METADATA cannot be read: {said}"):
        CheckpointManager(step.parents[1]).restore(ABSTRACT)


def test_what_may_not_be_read_is_not_taken_for_damaged(step, monkeypatch):
    """The checkpoint before it would be trained from, and this one set aside."""

    def fail(error):
        def read(*unused):
            raise error

        monkeypatch.setattr(restore, "read_leaves", read)

    manager = CheckpointManager(step.parents[1])
    fail(PermissionError(13, "Permission denied", str(step / "state" / "manifest.ocdbt")))
    with pytest.raises(UserError, match=r"step 1 cannot be read, and may be sound: state/manifest.ocdbt: Permission"):
        manager.restore(ABSTRACT)
    # As TensorStore says it.
    file = step / "state" / "manifest.ocdbt"
    fail(ValueError(f'PERMISSION_DENIED: Error reading local file "{file}": Failed to open: "{file}": Permission'))
    with pytest.raises(UserError, match=r"step 1 cannot be read, and may be sound: state/manifest.ocdbt may not be"):
        manager.restore(ABSTRACT)
    fail(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand a page"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        manager.restore(ABSTRACT)


def test_a_document_that_may_not_be_read_is_not_taken_for_damaged(step, monkeypatch):
    def read(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "read_bounded", read)
    said = "the metadata of step 1 cannot be read, and may be sound: metadata/metadata: Permission denied"
    with pytest.raises(UserError, match=said):
        CheckpointManager(step.parents[1]).restore(ABSTRACT)


def test_errors_of_every_kind_are_one_line():
    for error in (Exception("one\ntwo"), Exception(), KeyError("key"), OSError(5, "Input/output error"), TypeError()):
        for text in (describe_read(error), describe_write(error)):
            assert text
            assert "\n" not in text
