"""Wikipedia through TensorFlow Datasets: `wikipedia_en`, and `register_wikipedia` for other languages.

Nothing is downloaded, neither on import nor on use: the data must lie prepared in the TFDS directory
(`~/tensorflow_datasets`, `TFDS_DATA_DIR`, or `data_dir`, which may be `gs://`), for example by
`tfds build wikipedia/20230601.en`. See https://www.tensorflow.org/datasets/catalog/wikipedia.
"""

from __future__ import annotations

import seqio

from tasks.common import add_text_task


def register_wikipedia(
    name: str, language: str = "en", dump: str = "20230601", version: str = "1.0.0", data_dir: str | None = None
) -> seqio.Task:
    """Registers one language of one dump. TFDS has a single split; its last hundredth is `validation`."""
    source = seqio.TfdsDataSource(
        tfds_name=f"wikipedia/{dump}.{language}:{version}",
        tfds_data_dir=data_dir,
        splits={"train": "train[:99%]", "validation": "train[99%:]"},
        read_only=True,
    )
    return add_text_task(name, source)


register_wikipedia("wikipedia_en")
