"""A few dozen cases of the damage drill (tests/drills), and what a run makes of a damaged step."""

import pathlib
import random
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

import damage_drill


@pytest.fixture(scope="module")
def drills(tmp_path_factory):
    return {form: damage_drill.Drill(tmp_path_factory.mktemp(form), form) for form in damage_drill.FORMS}


@pytest.mark.parametrize("form", damage_drill.FORMS)
def test_every_kind_of_damage(drills, form):
    outcomes = damage_drill.run_cases(drills[form], 16, seed=1)
    assert {outcome for _, outcome in outcomes} == {"identical", "fell back"}


@pytest.mark.parametrize("form", damage_drill.FORMS)
def test_the_damaged_step_is_set_aside_and_not_deleted(drills, form):
    drill = drills[form]
    generator = random.Random(0)
    _, step, verdict = drill.try_case("empty", "metadata/metadata", generator)
    assert step == damage_drill.STEPS[-2]
    assert "metadata" in verdict.damage
    assert drill.continue_run() == ["20", "30", "30.set_aside"]


def test_a_document_of_an_older_save_is_not_believed(drills):
    """Its digest is right and its step is right: only the bits tell."""
    drill = drills["run"]
    newest, stale = drill.copy / "checkpoints" / "30", drill.older / "checkpoints" / "30"
    drill.try_case("duplicate", "commit_success.txt", random.Random(0))
    (newest / "metadata" / "metadata").write_bytes((stale / "metadata" / "metadata").read_bytes())
    restored = damage_drill.CheckpointManager(drill.copy).restore(drill.abstract)
    assert restored.step == 20
    verdict = damage_drill.verifying.verify_step(damage_drill.files.to_path(newest))
    assert "leaves" in verdict.damage
