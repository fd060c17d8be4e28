"""The resume policy: free, recorded, refused."""

import pytest

from t5x_scale.checkpoint import resume
from t5x_scale.core.errors import UserError


def make_record(free=None, recorded=None, refused=None, environment=None):
    return resume.make_run_record(
        free={"train_steps": 100, "mesh": {"data": 8, "fsdp": 1}, **(free or {})},
        recorded={"optimizer": {"learning_rate": {"peak": 0.01}}, "batch_size": 8, **(recorded or {})},
        refused={"model": {"embed_dim": 512, "num_layers": 4}, "seed": 0, **(refused or {})},
        environment={"versions": {"jax": "0.10.2"}, "cpu_cores": 2, "python": "3.11.7", **(environment or {})},
    )


def test_an_unchanged_run_resumes_without_a_word():
    record = make_record()
    decision = resume.compare_run_records(record, make_record(), step=40)
    assert decision == resume.ResumeDecision(record, (), ())


def test_free_entries_change_freely():
    current = make_record(free={"train_steps": 500, "log_every": 3})
    decision = resume.compare_run_records(make_record(), current, step=40)
    assert decision.record == current
    assert not decision.changes
    assert not decision.warnings


def test_recorded_changes_are_appended_with_their_step():
    first = make_record()
    second = make_record(recorded={"batch_size": 16})
    third = make_record(recorded={"batch_size": 16, "mixture": {"code": 0.5}})
    record = resume.compare_run_records(first, second, step=40).record
    decision = resume.compare_run_records(record, third, step=70)
    assert decision.record["changes"] == [
        {"step": 40, "key": "batch_size", "from": 8, "to": 16},
        {"step": 70, "key": "mixture/code", "from": None, "to": 0.5},
    ]
    assert [change.render() for change in decision.changes] == ["mixture/code: absent -> 0.5"]
    assert record["changes"] == decision.record["changes"][:1], "the saved record must not be altered"


def test_a_refused_change_names_key_values_and_the_way_out():
    current = make_record(refused={"model": {"embed_dim": 1024, "num_layers": 4}})
    with pytest.raises(UserError) as caught:
        resume.compare_run_records(make_record(), current, step=40)
    message = str(caught.value)
    assert "'model/embed_dim' is 512 in the checkpoint and 1024 now" in message
    assert "new MODEL_DIR" in message
    assert "INITIAL_CHECKPOINT_PATH" in message
    assert "\n" not in message


def test_many_refused_changes_are_counted_and_a_missing_one_is_refused():
    saved = make_record(refused={f"store_{i}": i for i in range(5)})
    with pytest.raises(UserError, match=r"'store_0' is 0 in the checkpoint and absent now.*\(and 2 more\)"):
        resume.compare_run_records(saved, make_record(), step=40)


def test_an_entry_that_an_old_record_lacks_is_a_warning():
    current = make_record(refused={"vocabulary": "abc"})
    decision = resume.compare_run_records(make_record(), current, step=40)
    assert decision.warnings == ("the checkpoint has no record of 'vocabulary': taken as asked, not compared",)
    assert decision.record["refused"]["vocabulary"] == "abc"


@pytest.mark.parametrize(
    ("current", "named"),
    [
        (make_record(environment={"versions": {"jax": "0.11.0"}}), 'versions/jax: "0.10.2" -> "0.11.0"'),
        (make_record(environment={"cpu_cores": 1}), "cpu_cores: 2 -> 1"),
        (make_record(free={"mesh": {"data": 4, "fsdp": 2}}), "mesh/data: 8 -> 4; mesh/fsdp: 1 -> 2"),
    ],
)
def test_an_environment_that_differs_is_named(current, named):
    (warning,) = resume.compare_run_records(make_record(), current, step=40).warnings
    assert warning == f"bitwise resume is not promised, because the environment differs: {named}"


def test_a_patch_release_of_python_changes_no_bits():
    assert not resume.compare_run_records(make_record(), make_record(environment={"python": "3.11.9"}), 1).warnings


def test_values_are_compared_as_json():
    assert resume.make_run_record({}, {"schedule": (1, 2)}, {}, {})["recorded"] == {"schedule": [1, 2]}
    assert not resume.find_differences({"a": 1, "b": {}}, {"a": 1.0})
    assert resume.find_differences({"a": True}, {"a": 1})
    assert resume.find_differences({"a": None}, {})
    with pytest.raises(TypeError):
        resume.make_run_record({"bad": object()}, {}, {}, {})
