"""Tasks whose text is elsewhere: they register without reading or downloading anything."""

import socket

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data import seqio_source
from t5x_scale.data.seqio_source import iterate_texts
from t5x_scale.data.vocabulary import load_vocabulary


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


def test_data_that_is_not_prepared_is_named(no_network, tmp_path):
    from tasks.wikipedia import register_wikipedia

    register_wikipedia("wikipedia_test", data_dir=str(tmp_path))
    try:
        with pytest.raises(UserError, match=r"cannot read task 'wikipedia_test'") as caught:
            next(iterate_texts("wikipedia_test", "train"))
    finally:
        seqio_source.seqio.TaskRegistry.remove("wikipedia_test")
    assert "\n" not in str(caught.value)


def test_template_works_as_it_stands():
    seqio_source.import_task_modules(["tasks.template"])
    assert seqio_source.task_or_mixture_names("my_mixture") == {"my_task": 1.0}
    assert list(iterate_texts("my_task", "train")) == ["The first document to train on.", "The second document."]
    vocabulary = load_vocabulary("stdlib_8k")
    held_out = list(seqio_source.iterate_documents("my_task", "validation", vocabulary))
    assert [vocabulary.decode(ids) for ids in held_out] == ["A document that is held out."]
