"""mC4, C4 in 107 languages: a task for each language, and a mixture that gives small ones more than their share.

Nothing is downloaded, neither on import nor on use. The text lies in the TFDS directory (`c4/multilingual`, as
in `c4.py`), or in JSON lines with the language in their names.

from tasks.mc4 import register_mc4

register_mc4(["en", "de", "sw"], data_dir="gs://bucket/tfds")
register_mc4(["en", "de", "sw"], files={
    "train": "gs://bucket/multilingual/c4-{language}.tfrecord-*.json.gz",
    "validation": "gs://bucket/multilingual/c4-{language}-validation.tfrecord-*.json.gz",
})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import seqio

from tasks.common import add_text_task
from tasks.jsonl import register_jsonl
from tasks.mixtures import register_proportional_mixture

# mT5 samples a language of n examples in proportion to n^0.3 (arXiv 2010.11934, section 3.1).
MT5_TEMPERATURE = 1 / 0.3


def register_mc4(
    languages: Sequence[str],
    *,
    temperature: float = MT5_TEMPERATURE,
    name: str = "mc4",
    counts: Mapping[str, int] | None = None,
    files: Mapping[str, str] | None = None,
    version: str = "3.0.1",
    data_dir: str | None = None,
) -> seqio.Mixture:
    """Registers `mc4_<language>` for every language, and the mixture `mc4` with rates n^(1 / temperature).

    Args:
      languages: codes of mC4, such as `en`, `sw`, `zh-Latn`; `tfds.text.c4.MC4_LANGUAGES` has them all. A hyphen
        becomes an underscore in the name of the task.
      temperature: 1 takes languages as they come; larger values move towards equal shares.
      name: of the mixture, and the beginning of the tasks' names.
      counts: {language: examples}; otherwise they are counted, see `tasks.mixtures`.
      files: {split: glob of JSON lines in which `{language}` stands for the code}; TFDS otherwise.
      version, data_dir: of the TFDS data.

    Raises:
      ValueError: a glob without `{language}`, or counts of other languages.
    """
    names = {language: f"{name}_{language.replace('-', '_')}" for language in languages}
    for language, task in names.items():
        if files is None:
            _register_tfds(task, language, version, data_dir)
        else:
            register_jsonl(task, {split: _of_language(pattern, language) for split, pattern in files.items()})
    by_task = None if counts is None else {names.get(language, language): n for language, n in counts.items()}
    return register_proportional_mixture(name, list(names.values()), temperature=temperature, counts=by_task)


def _register_tfds(task: str, language: str, version: str, data_dir: str | None) -> None:
    source = seqio.TfdsDataSource(
        tfds_name=f"c4/multilingual:{version}",
        tfds_data_dir=data_dir,
        splits={"train": language, "validation": f"{language}-validation"},
        read_only=True,
    )
    add_text_task(task, source)


def _of_language(pattern: str, language: str) -> str:
    if "{language}" not in pattern:
        raise ValueError(f"'{pattern}' does not say where the language stands: write {{language}}")
    return pattern.replace("{language}", language)
