import pathlib

import numpy as np
import pytest

from t5x_scale.data import seqio_source
from t5x_scale.data.vocabulary import load_vocabulary
from tasks import stdlib


@pytest.fixture(scope="module")
def texts():
    # Not the docstrings of the train split: parsing them takes longer than the rest together.
    splits = [("stdlib_code", "train"), ("stdlib_code", "validation"), ("stdlib_docs", "validation")]
    return {(task, split): list(seqio_source.iterate_texts(task, split)) for task, split in splits}


def test_files_are_ordered_and_chosen():
    paths = [path for path, _ in stdlib.list_files()]
    assert paths == sorted(set(paths))
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= set(paths)
    assert len(paths) > 200
    for path in paths:
        assert not {"test", "tests", "site-packages", "encodings", "idlelib"} & set(pathlib.PurePath(path).parts)
        assert not path.startswith("_sysconfigdata")


def test_both_tasks_hold_out_the_same_files():
    """A docstring also stands in the source: the file, not the document, decides the split."""
    held_out = [file for path, file in stdlib.list_files() if stdlib.split_of(path) == "validation"]
    assert 0.05 < len(held_out) / len(stdlib.list_files()) < 0.15
    expected = {
        "stdlib_code": [text for text in map(stdlib.read_code, held_out) if text],
        "stdlib_docs": [text for text in map(stdlib.read_docs, held_out) if text],
    }
    for task, documents in expected.items():
        assert list(seqio_source.iterate_texts(task, "validation")) == documents


def test_no_validation_document_is_trained_on(texts):
    train = "".join(texts["stdlib_code", "train"])
    assert not [text for text in texts["stdlib_code", "validation"] if len(text) > 200 and text in train]


def test_split_depends_on_the_path_alone():
    """Frozen: moving a file from one side to the other would train on what another run is measured on."""
    paths = ["abc.py", "os.py", "json/decoder.py", "ast.py", "http/client.py", "enum.py"]
    assert [stdlib.split_of(path) for path in paths] == ["train"] * 3 + ["validation"] * 3


def test_docs_are_the_english_of_docstrings(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        '"""Of the module."""\nx = "no docstring"\n'
        'def f():\n    """Of f.\n\n    Code:\n        x = 1\n    """\n    def g():\n        "Of g."\n'
        'class C:\n    """   """\n    async def h(self):\n        """Of h."""\n'
    )
    assert stdlib.read_docs(file) == "Of the module.\n\nOf f.\n\nCode:\n    x = 1\n\nOf g.\n\nOf h.\n\n"


def test_sources_are_decoded_as_they_declare(tmp_path):
    file = tmp_path / "latin.py"
    file.write_bytes("# -*- coding: latin-1 -*-\r\nx = 'caf\u00e9'\n".encode("latin-1"))
    assert stdlib.read_code(file) == "# -*- coding: latin-1 -*-\nx = 'caf\u00e9'\n"


def test_amount_and_order(texts):
    """Enough text for a demonstration, the same each time it is read."""
    characters = {key: sum(map(len, value)) for key, value in texts.items()}
    assert characters["stdlib_code", "train"] > 4_000_000
    assert characters["stdlib_code", "validation"] > 300_000
    assert characters["stdlib_docs", "validation"] > 50_000
    assert list(seqio_source.iterate_texts("stdlib_code", "validation")) == texts["stdlib_code", "validation"]


def test_shipped_vocabulary_suits_it(texts):
    vocabulary = load_vocabulary("stdlib_8k")
    documents = list(seqio_source.iterate_documents("stdlib_code", "validation", vocabulary))
    assert [vocabulary.decode(ids) for ids in documents] == texts["stdlib_code", "validation"]
    tokens = np.concatenate(documents)
    assert sum(map(len, texts["stdlib_code", "validation"])) / tokens.size > 3.0


def test_mixture():
    assert seqio_source.task_or_mixture_names("stdlib") == {"stdlib_code": 0.5, "stdlib_docs": 0.5}


def test_description_tells_the_version_of_python():
    import platform

    description = seqio_source.describe_document_source("stdlib_code", "train")
    assert f"python='{platform.python_version()}'" in description["source"]
    other = seqio_source.document_source_fingerprint("stdlib_docs", "train")
    assert seqio_source.document_source_fingerprint("stdlib_code", "train") != other
