"""Rule tables name only what exists."""

import pytest
from jax.sharding import PartitionSpec as P

from t5x_scale.core.errors import UserError
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.axes import LOGICAL_AXES, MESH_AXES
from t5x_scale.partitioning.mesh import MeshConfig
from t5x_scale.partitioning.shardings import to_spec


def test_normal_form():
    table = rules.make_rules({"embed": "fsdp", "batch": ["data", "fsdp"], "mlp": None})
    assert table == {"embed": ("fsdp",), "batch": ("data", "fsdp"), "mlp": ()}
    assert rules.make_rules(table) == table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"embd": "fsdp"}, r"unknown logical axis 'embd' \(did you mean 'embed'"),
        ({"embed": "fspd"}, r"'embed' names the unknown mesh axis 'fspd' \(did you mean 'fsdp'\?\)"),
        ({"batch": ("data", "modle")}, r"'batch' names the unknown mesh axis 'modle' \(did you mean 'model'\?\)"),
        ({"embed": "rows"}, "'embed' names the unknown mesh axis 'rows'; known are data, fsdp,"),
    ],
)
def test_errors_name_the_nearest(table, message):
    with pytest.raises(UserError, match=message):
        rules.make_rules(table)


TABLES = [
    *(rules.data_parallel, rules.fsdp, rules.fsdp_model, rules.fsdp_model_vocab_fsdp),
    *(rules.sequence, rules.context, rules.expert),
]


@pytest.mark.parametrize("make", TABLES)
def test_tables_that_are_shipped(make):
    table = make()
    assert set(table) <= set(LOGICAL_AXES)
    assert {name for names in table.values() for name in names} <= set(MESH_AXES)
    # Every layout splits the batch over all axes that hold copies of it.
    assert table["batch"] == ("data", "fsdp", "expert")


def test_the_residual_stream_lies_like_other_activations_if_nobody_says_otherwise():
    assert rules.make_rules({"length": "context"})["residual_length"] == ("context",)
    assert rules.make_rules({"length": "context", "residual_length": None})["residual_length"] == ()
    assert "residual_length" not in rules.make_rules({"batch": "data"})


def test_what_the_tables_for_long_rows_and_experts_split():
    """Over the axis of the rows parameters are stored, over that of experts whole experts are dealt out."""
    mesh = MeshConfig(fsdp=2, expert=2, context=2, model=2).make_abstract_mesh()
    kernel = ("expert", "embed", "mlp")
    assert to_spec(rules.context(), kernel, mesh) == P("expert", ("fsdp", "context"), "model")
    assert to_spec(rules.expert(), kernel, mesh) == P(("expert", "model"), "fsdp")
    residual = ("batch", "residual_length", "act_embed")
    assert to_spec(rules.sequence(), residual, mesh) == P(("fsdp", "expert"), ("context", "model"))
    assert to_spec(rules.context(), residual, mesh) == P(("fsdp", "expert"), "context", "model")
