"""C4 through TensorFlow Datasets: `c4_en`, and `register_c4` for its other English configurations.

Nothing is downloaded, neither on import nor on use: the data must lie prepared in the TFDS directory
(`~/tensorflow_datasets`, `TFDS_DATA_DIR`, or `data_dir`, which may be `gs://`). Preparing C4 is a job for
a cluster: see https://www.tensorflow.org/datasets/catalog/c4. The multilingual configuration has splits of
its own: see `mc4.py`. C4 as JSON lines is read by `jsonl.py`.
"""

from __future__ import annotations

import seqio

from tasks.common import add_text_task


def register_c4(name: str, config: str = "en", version: str = "3.0.1", data_dir: str | None = None) -> seqio.Task:
    """Registers one configuration of C4: `en`, `en.noclean`, `realnewslike` or `webtextlike`.

        register_c4("c4_news", "realnewslike", data_dir="gs://bucket/tfds")

    Raises:
      ValueError: `multilingual`, whose languages are splits.
    """
    if config == "multilingual":
        raise ValueError("the languages of c4/multilingual are splits: use tasks.mc4.register_mc4")
    source = seqio.TfdsDataSource(
        tfds_name=f"c4/{config}:{version}",
        tfds_data_dir=data_dir,
        splits=("train", "validation"),
        read_only=True,
    )
    return add_text_task(name, source)


register_c4("c4_en")
