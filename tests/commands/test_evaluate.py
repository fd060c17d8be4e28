"""What evaluation calls its sources, and when it is due."""

import pytest

from t5x_scale.commands.evaluate import _table
from t5x_scale.core.errors import UserError
from t5x_scale.evaluation import EvaluationConfig, metric_names
from t5x_scale.monitor.metric_log import check_names


def test_names_of_sources_are_names_of_metrics_and_differ():
    sources = ["c4.en:3.0", "stdlib_docs", "text:/a/b.txt", "text:/a_b.txt", "text:/a b.txt", "text:/a b.txt-2", "é"]
    names = metric_names(sources)
    check_names({f"eval/{name}/loss": 0.0 for name in names})
    assert names[:3] == ["c4.en_3.0", "stdlib_docs", "text_a_b.txt"]
    assert len(set(names)) == len(sources)


@pytest.mark.parametrize(("every", "due"), [(None, []), (0, []), (3, [3, 6])])
def test_when_it_is_due(every, due):
    assert [step for step in range(8) if EvaluationConfig(every).is_due(step)] == due


@pytest.mark.parametrize("wrong", [{"every_steps": -1}, {"batch_size": 0}, {"max_batches": 0}, {"max_batches": 1.5}])
def test_numbers_that_make_no_sense(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        EvaluationConfig(**wrong)


def test_the_table_has_a_line_for_each_source():
    values = {"loss": 1.5, "perplexity": 4.5, "accuracy": 0.5, "tokens": 2048.0}
    lines = _table(
        {f"eval/{task}/{name}": value for task in ("a", "bb") for name, value in values.items()}
    ).splitlines()
    assert lines[0].split() == list(values)
    assert [line.split() for line in lines[1:]] == [
        [f"eval/{task}", "1.5000", "4.500", "0.5000", "2,048"] for task in ("a", "bb")
    ]
