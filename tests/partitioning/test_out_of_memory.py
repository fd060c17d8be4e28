"""What TPU compilers say of a program that does not fit, as numbers."""

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.partitioning.out_of_memory import to_out_of_memory

TEMPORARIES = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (32.47G) exceeds "
    "available HBM (30.75G)."
)
IN_ALL = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 35.51G of
15.75G hbm. Exceeded hbm capacity by 19.76G.

Total hbm usage >= 35.76G:
    reserved        258.00M
"""


@pytest.mark.parametrize(
    ("text", "needed", "available", "only_temporaries"),
    [(TEMPORARIES, 32.47, 30.75, True), (IN_ALL, 35.51, 15.75, False)],
)
def test_both_forms(text, needed, available, only_temporaries):
    error = to_out_of_memory(RuntimeError(text), "a step of 8 x 64 tokens")
    assert isinstance(error, UserError)
    assert error.needed == pytest.approx(needed * 2**30)
    assert error.available == pytest.approx(available * 2**30)
    assert error.only_temporaries is only_temporaries
    assert str(error).startswith(f"a step of 8 x 64 tokens does not fit: it needs {needed} GiB")
    assert "\n" not in str(error)


def test_a_form_that_is_not_known_is_passed_on_in_one_line():
    error = to_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: CompileTimeHbmOom:\n  something new"), "a step")
    assert str(error) == "a step does not fit a device: RESOURCE_EXHAUSTED: CompileTimeHbmOom: something new"
    assert (error.needed, error.available) == (None, None)


def test_another_error_is_not_about_memory():
    assert to_out_of_memory(RuntimeError("INVALID_ARGUMENT: no"), "a step") is None
