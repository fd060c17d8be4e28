"""Tasks whose text is elsewhere: they register without reading or downloading anything."""

import socket

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data import seqio_source
from t5x_scale.data.seqio_source import iterate_texts
from t5x_scale.data.vocabulary import load_vocabulary
from tasks.c4 import register_c4
from tasks.mc4 import register_mc4
from tasks.wikipedia import register_wikipedia, register_wikipedias

seqio = seqio_source.seqio


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_c4_and_wikipedia_register_without_data(no_network):
    seqio_source.import_task_modules(["tasks.c4", "tasks.wikipedia"])
    for name in ("c4_en", "wikipedia_en"):
        assert seqio_source.task_or_mixture_names(name) == {name: 1.0}
        assert list(seqio_source.get_task(name).splits) == ["train", "validation"]
    c4 = seqio_source.describe_document_source("c4_en", "train")
    assert "c4/en:3.0.1" in c4["source"]


@pytest.fixture
def forget():
    before = {registry: set(registry.names()) for registry in (seqio.MixtureRegistry, seqio.TaskRegistry)}
    yield
    for registry, names in before.items():
        for name in set(registry.names()) - names:
            registry.remove(name)


def splits_of(task):
    return {split: task.source.tfds_dataset._map_split(split) for split in task.splits}


def test_the_multilingual_c4_is_another_module(no_network, forget):
    with pytest.raises(ValueError, match=r"use tasks.mc4.register_mc4"):
        register_c4("c4_test", "multilingual")
    assert register_c4("c4_test", "realnewslike").source.tfds_dataset.name == "c4/realnewslike:3.0.1"


def test_languages_of_mc4(no_network, forget):
    counts = {"en": 1_000_000, "zh-Latn": 1_000}
    mixture = register_mc4(list(counts), name="mc4_test", counts=counts)
    english, chinese = sorted(mixture.tasks, key=lambda task: task.name)
    assert (english.name, chinese.name) == ("mc4_test_en", "mc4_test_zh_Latn")
    assert splits_of(chinese) == {"train": "zh-Latn", "validation": "zh-Latn-validation"}
    assert chinese.source.tfds_dataset.name == "c4/multilingual:3.0.1"
    # mT5: in proportion to n^0.3.
    assert mixture.get_rate(english) / mixture.get_rate(chinese) == pytest.approx(1000**0.3)
    with pytest.raises(ValueError, match="do not name the same: fr, mc4_flat_en"):
        register_mc4(["en"], name="mc4_flat", counts={"fr": 1})


def test_mc4_in_json_lines(no_network, forget, tmp_path):
    for language in ("de", "sw"):
        (tmp_path / f"c4-{language}.json").write_text(f'{{"text": "{language}"}}\n')
    files = {"train": str(tmp_path / "c4-{language}.json")}
    register_mc4(["de", "sw"], name="mc4_test", files=files, counts={"de": 16, "sw": 1}, temperature=2)
    assert list(iterate_texts("mc4_test_sw", "train")) == ["sw"]
    assert seqio_source.task_or_mixture_names("mc4_test") == pytest.approx({"mc4_test_de": 0.8, "mc4_test_sw": 0.2})
    with pytest.raises(ValueError, match=r"write \{language\}"):
        register_mc4(["de"], name="mc4_other", files={"train": "c4-de.json"})


def test_languages_of_wikipedia(no_network, forget):
    mixture = register_wikipedias(["en", "zh-yue"], name="wiki_test", dump="20220620")
    assert sorted(task.name for task in mixture.tasks) == ["wiki_test_en", "wiki_test_zh_yue"]
    (cantonese,) = [task for task in mixture.tasks if task.name.endswith("yue")]
    assert cantonese.source.tfds_dataset.name == "wikipedia/20220620.zh-yue:1.0.0"
    assert splits_of(cantonese) == {"train": "train[:99%]", "validation": "train[99%:]"}


def test_data_that_is_not_prepared_is_named(no_network, tmp_path):
    register_wikipedia("wikipedia_test", data_dir=str(tmp_path))
    try:
        with pytest.raises(UserError, match=r"cannot read task 'wikipedia_test'") as caught:
            next(iterate_texts("wikipedia_test", "train"))
    finally:
        seqio.TaskRegistry.remove("wikipedia_test")
    assert "\n" not in str(caught.value)


def test_template_works_as_it_stands():
    seqio_source.import_task_modules(["tasks.template"])
    assert seqio_source.task_or_mixture_names("my_mixture") == {"my_task": 1.0}
    assert list(iterate_texts("my_task", "train")) == ["The first document to train on.", "The second document."]
    vocabulary = load_vocabulary("stdlib_8k")
    held_out = list(seqio_source.iterate_documents("my_task", "validation", vocabulary))
    assert [vocabulary.decode(ids) for ids in held_out] == ["A document that is held out."]
    (held_out,) = seqio_source.iterate_documents("my_supervised_task", "validation", vocabulary)
    assert vocabulary.decode(held_out) == "Cuba: Havana"
