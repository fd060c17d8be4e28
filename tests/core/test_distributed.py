"""What the environment says about the other processes of a run."""

import pytest

from t5x_scale.core.distributed import ADDRESS, COUNT, INDEX, read_environment
from t5x_scale.core.errors import UserError


@pytest.fixture
def given(monkeypatch):
    """Reads an environment that holds these variables and no others that matter."""

    def read(on_tpu=False, **variables):
        for name in (ADDRESS, COUNT, INDEX, "TPU_SKIP_MDS_QUERY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return read_environment(on_tpu)

    return read


def test_a_process_on_its_own(given):
    assert given() is None
    assert given(**{COUNT: "1"}) is None
    assert given(**{COUNT: "1"}, on_tpu=True) is None
    assert given(TPU_SKIP_MDS_QUERY="1", on_tpu=True) is None


def test_a_cloud_tpu_knows_its_place(given):
    assert given(on_tpu=True) == {}


def test_a_place_that_was_given(given):
    variables = {ADDRESS: "10.0.0.1:1234", COUNT: "4", INDEX: "3"}
    expected = {"coordinator_address": "10.0.0.1:1234", "num_processes": 4, "process_id": 3}
    assert given(**variables) == given(**variables, on_tpu=True) == expected


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({COUNT: "2"}, f"{COUNT} is set, and so must be {ADDRESS} and {INDEX}"),
        ({ADDRESS: "a:1", COUNT: "2"}, INDEX),
        ({ADDRESS: "a:1", COUNT: "two", INDEX: "0"}, f"{COUNT} is 'two'"),
        ({ADDRESS: "a:1", COUNT: "2", INDEX: "2"}, "from 0 to 1"),
        ({ADDRESS: "a:1", COUNT: "2", INDEX: "-1"}, f"{INDEX} is '-1'"),
    ],
)
def test_a_place_that_makes_no_sense(given, variables, said):
    with pytest.raises(UserError, match=said):
        given(**variables)
