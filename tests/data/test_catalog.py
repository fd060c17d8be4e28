import os
import subprocess
import sys
import textwrap

import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.data import catalog as catalog_lib
from t5x_scale.data.catalog import Catalog
from t5x_scale.data.mixtures.named_mixture import look_up
from t5x_scale.data.mixtures.rates import resolve_mixture
from t5x_scale.data.vocabulary import load_vocabulary

TASKS = """
import functools
import seqio
import tensorflow as tf

TEXTS = {texts}
FEATURE = seqio.Feature(seqio.PassThroughVocabulary(256), add_eos=False, dtype=tf.string, rank=0)

def make_dataset(split, shuffle_files=False, seed=None, *, name):
    return tf.data.Dataset.from_tensor_slices({{"targets": TEXTS[name]}})

for name in TEXTS:
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(functools.partial(make_dataset, name=name), splits=("train",)),
        preprocessors=[],
        output_features={{"targets": FEATURE}},
    )
seqio.MixtureRegistry.remove("catalog_mix")
seqio.MixtureRegistry.add("catalog_mix", [("catalog_long", 1.0), ("catalog_short", 3.0)])
"""
COUNTED = """
count = seqio.mixing_rate_num_examples
seqio.MixtureRegistry.remove("catalog_counted")
seqio.MixtureRegistry.add(
    "catalog_counted", [("catalog_long", functools.partial(count, maximum=1)), ("catalog_short", count)]
)
"""
TEXTS = {"catalog_long": ["l" * 299] * 4, "catalog_short": ["s" * 99] * 4}
SPLITS = ("train", "train[:1%]", "train[1%:]", "train[:90%]", "train[90%:]", "a-b", "a_b")
# What a machine that only trains may not import.
BLOCKED = (
    "import sys\n"
    "for name in ('tensorflow', 'seqio'): sys.modules[name] = None\n"
    "from t5x_scale.data.pipeline import DataConfig, make_pipeline\n"
    "config = DataConfig(sys.argv[1], 'bytes', {'targets': 8}, 4, task_modules=('catalog_tasks',))\n"
    "print(make_pipeline(config, default_store_dir=sys.argv[2]).fingerprint)\n"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    write_tasks(tmp_path)
    yield tmp_path
    sys.modules.pop("catalog_tasks", None)


def write_tasks(folder, texts=TEXTS, extra=""):
    (folder / "code" / "catalog_tasks.py").write_text(textwrap.dedent(TASKS.format(texts=texts)) + extra)
    sys.modules.pop("catalog_tasks", None)


def make_catalog(folder):
    return Catalog(str(folder / "stores"), load_vocabulary("bytes"), ("catalog_tasks",))


def run_without_tensorflow(folder, name):
    environment = {**os.environ, "PYTHONPATH": str(folder / "code")}
    command = [sys.executable, "-c", BLOCKED, name, str(folder / "stores")]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def open_all(folder, name):
    return resolve_mixture(name, rate_unit=None, catalog=make_catalog(folder), split="train")


def example_shares(folder, name):
    """By the stores' number of documents, which is 4 each."""
    return look_up(name, make_catalog(folder)).example_shares(dict.fromkeys(TEXTS, 4))


def test_a_registered_mixture_keeps_its_meaning_in_examples(folder):
    assert example_shares(folder, "catalog_mix") == {"catalog_long": 0.25, "catalog_short": 0.75}
    found = open_all(folder, "catalog_mix")
    assert found.stores["catalog_long"].num_tokens == 4 * 300
    # One long example of 300 tokens to three short ones of 100: as many tokens.
    ((_, shares),) = found.plan.pieces
    assert shares["catalog_long"] == pytest.approx(shares["catalog_short"])


def test_finished_stores_need_no_tensorflow(folder):
    missing = run_without_tensorflow(folder, "catalog_mix")
    assert missing.returncode != 0
    assert "needs seqio and TensorFlow" in missing.stderr
    open_all(folder, "catalog_mix")
    for name in ("catalog_mix", "catalog_long"):
        done = run_without_tensorflow(folder, name)
        assert done.returncode == 0, done.stderr


def test_an_edited_task_is_noticed(folder):
    open_all(folder, "catalog_long")
    # Another file content, the same task.
    write_tasks(folder, extra="\n# a comment\n")
    open_all(folder, "catalog_long")
    path = folder / "code" / "catalog_tasks.py"
    path.write_text(path.read_text().replace("preprocessors=[]", "preprocessors=[seqio.preprocessors.tokenize]"))
    sys.modules.pop("catalog_tasks")
    with pytest.raises(
        UserError, match=r"task 'catalog_long' changed .*/stores/catalog_long-.*needs the old task back"
    ):
        open_all(folder, "catalog_long")


def test_changed_rates_of_a_mixture_are_read_again(folder):
    open_all(folder, "catalog_mix")
    path = folder / "code" / "catalog_tasks.py"
    path.write_text(path.read_text().replace("3.0", "1.0"))
    sys.modules.pop("catalog_tasks")
    assert example_shares(folder, "catalog_mix") == {"catalog_long": 0.5, "catalog_short": 0.5}


def test_rates_that_count_need_no_tensorflow_while_the_stores_stay(folder):
    write_tasks(folder, extra=COUNTED)
    shares = open_all(folder, "catalog_counted").plan.pieces[0][1]
    # Four documents each, the long ones limited to one.
    assert shares["catalog_long"] == pytest.approx(300 / (300 + 4 * 100))
    done = run_without_tensorflow(folder, "catalog_counted")
    assert done.returncode == 0, done.stderr
    # Other counts: only SeqIO can say.
    with pytest.raises(UserError, match="must not be negative, nor all zero"):
        look_up("catalog_counted", make_catalog(folder)).example_shares(dict.fromkeys(TEXTS, 0))
    more = look_up("catalog_counted", make_catalog(folder)).example_shares(dict.fromkeys(TEXTS, 1))
    assert more == {"catalog_long": 0.5, "catalog_short": 0.5}
    assert run_without_tensorflow(folder, "catalog_counted").returncode == 0


def test_without_tensorflow_an_edited_task_is_only_warned_about(folder):
    open_all(folder, "catalog_long")
    write_tasks(folder, extra="\n# a comment\n")
    done = run_without_tensorflow(folder, "catalog_long")
    assert done.returncode == 0, done.stderr
    assert "cannot compare 'catalog_long'" in done.stderr


def test_unknown_names(folder):
    with pytest.raises(UserError, match=r"did you mean 'catalog_mix'"):
        look_up("catalog_mixx", make_catalog(folder))
    with pytest.raises(UserError, match="catalog_lnog"):
        make_catalog(folder).open("catalog_lnog", "train")
    with pytest.raises(UserError, match="has no split 'test'"):
        make_catalog(folder).open("catalog_long", "test")
    assert not any(name.endswith("building") for name in os.listdir(folder / "stores"))


def test_directories_never_collide(folder):
    catalog = make_catalog(folder)
    names = ["a", "a-b", "a_b", "a b", "text:/x/*.txt", "text:/x/_.txt", "x" * 100, "x" * 101]
    directories = [catalog.directory(name, split) for name in names for split in SPLITS]
    assert len(set(directories)) == len(directories)
    assert catalog.directory("a", "train").name == f"a-train-{catalog.vocabulary.fingerprint[:8]}"


def test_a_store_of_another_split_is_refused(folder):
    catalog = make_catalog(folder)
    directory = catalog.open("catalog_long", "train").directory
    os.rename(directory, catalog.directory("catalog_long", "train[90%:]"))
    with pytest.raises(UserError, match=r"holds the split 'train' of 'catalog_long', not 'train\[90%:\]'"):
        catalog.open("catalog_long", "train[90%:]")


def test_a_task_is_known_by_its_store_alone(folder):
    open_all(folder, "catalog_long")
    catalog = Catalog(str(folder / "stores"), load_vocabulary("bytes"))
    assert look_up("catalog_long", catalog).sources == ("catalog_long",)


def test_modules_are_hashed_without_being_imported(folder):
    (folder / "code" / "pack").mkdir()
    (folder / "code" / "pack" / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "code" / "pack" / "inner.py").write_text("x = 1")
    first = catalog_lib.hash_modules(["pack.inner"])
    (folder / "code" / "pack" / "inner.py").write_text("x = 2")
    assert catalog_lib.hash_modules(["pack.inner"]) != first
    assert catalog_lib.hash_modules(["no_such_module.x"]) != catalog_lib.hash_modules([])
