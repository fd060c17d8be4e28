"""Damage to a finished checkpoint, of every kind and to every kind of file: found before it is trained on, or harmless.

`DAMAGE=2000` tries so many cases of each form; `DAMAGE_SEED` draws others.
"""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

import damage_drill

CASES, SEED = int(os.environ.get("DAMAGE", "300")), int(os.environ.get("DAMAGE_SEED", "0"))


@pytest.mark.parametrize("form", damage_drill.FORMS)
def test_damage(form, tmp_path, record_property):
    outcomes = damage_drill.run_cases(damage_drill.Drill(tmp_path, form), CASES, SEED)
    fell_back = sum(count for (_, outcome), count in outcomes.items() if outcome == "fell back")
    record_property("cases", CASES)
    record_property("shown", f"{fell_back} fell back, {CASES - fell_back} restored the same bits")
    assert sum(outcomes.values()) == CASES
    assert CASES / 10 < fell_back < 0.95 * CASES, "the damage hits nothing, or everything"
