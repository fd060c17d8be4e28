import functools

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data import seqio_source

seqio, tf = seqio_source.seqio, seqio_source.tf
TEXT = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)
COUNTS = {"counted_big": 1000, "counted_small": 10}


def add_task(name, num_input_examples=None):
    def make_dataset(split, shuffle_files):
        return tf.data.Dataset.from_tensor_slices({"targets": ["x"]})

    source = seqio.FunctionDataSource(make_dataset, splits=("train",), num_input_examples=num_input_examples)
    seqio.TaskRegistry.add(name, source=source, preprocessors=[], output_features={"targets": TEXT})


@pytest.fixture(scope="module", autouse=True)
def tasks():
    add_task("counted_big")
    add_task("counted_small")
    add_task("counted_itself", {"train": 500})
    yield
    for name in ("counted_big", "counted_small", "counted_itself"):
        seqio.TaskRegistry.remove(name)


@pytest.fixture
def add_mixture():
    names = []

    def add(name, rates):
        names.append(name)
        seqio.MixtureRegistry.add(name, rates)
        return name

    yield add
    for name in names:
        seqio.MixtureRegistry.remove(name)


def by_size(**options):
    return functools.partial(seqio.mixing_rate_num_examples, **options)


def test_tasks_that_do_not_know_their_size_are_counted(add_mixture):
    name = add_mixture("by_size", [(task, by_size(maximum=400, temperature=2.0)) for task in COUNTS])
    assert seqio_source.has_counted_rates(name)
    rates = seqio_source.task_or_mixture_names(name, COUNTS)
    assert rates["counted_big"] / rates["counted_small"] == pytest.approx((400 / 10) ** 0.5)
    with pytest.raises(UserError, match=r"mixture 'by_size': the task 'counted_\w+' does not know its number"):
        seqio_source.task_or_mixture_names(name)


def test_a_task_that_was_never_cached_is_counted_too(add_mixture):
    name = add_mixture("cached", [(task, by_size(fallback_to_num_input_examples=False)) for task in COUNTS])
    assert seqio_source.task_or_mixture_names(name, COUNTS)["counted_big"] == pytest.approx(1000 / 1010)


def test_a_tasks_own_count_is_seqios(add_mixture):
    name = add_mixture("own", [("counted_itself", by_size()), ("counted_big", 500)])
    task = seqio.TaskRegistry.get("counted_itself")
    assert seqio.MixtureRegistry.get(name).get_rate(task) == 500
    rates = seqio_source.task_or_mixture_names(name, {"counted_itself": 7, "counted_big": 7})
    assert rates == {"counted_itself": 0.5, "counted_big": 0.5}


def test_the_shares_are_seqios_own(add_mixture):
    inner = add_mixture("inner", [("counted_big", 2.0), ("counted_itself", by_size(maximum=3))])
    outer = add_mixture("outer", [(inner, 5), ("counted_small", 1), ("counted_itself", lambda task: 4)])
    mixture = seqio.MixtureRegistry.get(outer)
    expected = {task.name: mixture.get_rate(task) / 10 for task in mixture.tasks}
    assert seqio_source.task_or_mixture_names(outer) == pytest.approx(expected)
    assert seqio_source.mixture_tasks(outer) == ("counted_big", "counted_itself", "counted_small")
    assert seqio_source.has_counted_rates(outer)
    assert not seqio_source.has_counted_rates(add_mixture("plain", [("counted_big", 1)]))


def test_rates_that_are_none(add_mixture):
    counted = add_mixture("broken", [("counted_big", lambda task: task.no_such_thing)])
    with pytest.raises(UserError, match=r"cannot compute the rates of mixture 'broken': .*no_such_thing"):
        seqio_source.task_or_mixture_names(counted, COUNTS)
    empty = add_mixture("empty", [("counted_big", 0)])
    nested = add_mixture("around_empty", [(empty, 1), ("counted_small", 1)])
    with pytest.raises(UserError, match="cannot compute the rates of mixture 'around_empty'"):
        seqio_source.task_or_mixture_names(nested)
    with pytest.raises(UserError, match="must not be negative"):
        seqio_source.task_or_mixture_names(add_mixture("nan", [("counted_big", float("nan"))]))


def test_what_a_name_is(add_mixture):
    assert not seqio_source.is_mixture("counted_big")
    assert seqio_source.is_mixture(add_mixture("mixture", [("counted_big", 1)]))
    with pytest.raises(UserError, match="did you mean 'counted_big'"):
        seqio_source.is_mixture("counted_bg")
