"""Wikipedia through TensorFlow Datasets: `wikipedia_en`, and functions for other languages.

Nothing is downloaded, neither on import nor on use: the data must lie prepared in the TFDS directory
(`~/tensorflow_datasets`, `TFDS_DATA_DIR`, or `data_dir`, which may be `gs://`), for example by
`tfds build wikipedia/20230601.en`. See https://www.tensorflow.org/datasets/catalog/wikipedia.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import seqio

from tasks.common import add_text_task
from tasks.mixtures import register_proportional_mixture


def register_wikipedia(
    name: str, language: str = "en", dump: str = "20230601", version: str = "1.0.0", data_dir: str | None = None
) -> seqio.Task:
    """Registers one language of one dump. TFDS has a single split; its last hundredth is `validation`.

    register_wikipedia("wikipedia_sw", "sw")
    """
    source = seqio.TfdsDataSource(
        tfds_name=f"wikipedia/{dump}.{language}:{version}",
        tfds_data_dir=data_dir,
        splits={"train": "train[:99%]", "validation": "train[99%:]"},
        read_only=True,
    )
    return add_text_task(name, source)


def register_wikipedias(
    languages: Sequence[str],
    *,
    name: str = "wikipedias",
    temperature: float = 1.0,
    counts: Mapping[str, int] | None = None,
    dump: str = "20230601",
    version: str = "1.0.0",
    data_dir: str | None = None,
) -> seqio.Mixture:
    """Registers `<name>_<language>` for every language, and the mixture `<name>`.

        register_wikipedias(["en", "de", "sw"], temperature=3.33)

    Args:
      languages: codes, such as `en` or `zh-yue`; a hyphen becomes an underscore in the name of the task.
      name: of the mixture, and the beginning of the tasks' names.
      temperature, counts: see `tasks.mixtures`; counts are by language.
      dump, version, data_dir: of the TFDS data.
    """
    names = {language: f"{name}_{language.replace('-', '_')}" for language in languages}
    for language, task in names.items():
        register_wikipedia(task, language, dump, version, data_dir)
    by_task = None if counts is None else {names.get(language, language): n for language, n in counts.items()}
    return register_proportional_mixture(name, list(names.values()), temperature=temperature, counts=by_task)


register_wikipedia("wikipedia_en")
