"""Rule tables name only what exists."""

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.partitioning import rules
from t5x_scale.partitioning.axes import LOGICAL_AXES, MESH_AXES


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


@pytest.mark.parametrize("make", [rules.data_parallel, rules.fsdp, rules.fsdp_model])
def test_tables_that_are_shipped(make):
    table = make()
    assert set(table) <= set(LOGICAL_AXES)
    assert {name for names in table.values() for name in names} <= set(MESH_AXES)
    # Every layout splits the batch over all axes that hold copies of it.
    assert table["batch"] == ("data", "fsdp", "expert")
