"""A task of your own: copy this file next to your work, change what is marked, name it in TASK_MODULES.

    t5x_scale train --gin_file=… --gin.TASK_MODULES='["my_tasks"]' --gin.MIXTURE_OR_TASK_NAME='"my_task"'

As it stands it registers a task over two sentences, and one over two questions with their answers, so that it can be
tried before it is changed.
"""

import seqio
import tensorflow as tf

from tasks.common import add_supervised_task, add_text_task
from tasks.metrics import exact_match

# If your text lies in files you need no code of your own; one line does:
#
#   from tasks.text_files import register_text_files
#   register_text_files("my_task", {"train": "data/train-*.txt", "validation": "data/held_out.txt"})
#
#   from tasks.jsonl import register_jsonl
#   register_jsonl("my_task", {"train": "gs://bucket/*.jsonl.gz"})
#
#   from tasks.instructions import register_instructions
#   register_instructions("my_supervised_task", "data/capitals.jsonl", [("{country}:", " {capital}")])


# CHANGE: where the text comes from. `split` is one of the names given to `splits=` below. The documents of
# a split must come in the same order every time: order and repetition are the data pipeline's business.
def make_dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del shuffle_files, seed
    texts = {
        "train": ["The first document to train on.", "The second document."],
        "validation": ["A document that is held out."],
    }
    return tf.data.Dataset.from_tensor_slices({"text": texts[split]})


# CHANGE: the task's name. The text stays text here; the run's VOCABULARY turns it into ids when the task is
# frozen. `text_key` names the field of the data set that holds the document.
add_text_task("my_task", seqio.FunctionDataSource(make_dataset, splits=("train", "validation")), text_key="text")


# CHANGE or remove: questions and answers. Both stay text; only the targets are learnt. They are joined with nothing
# between them, so the blank that stands between question and answer belongs to one of them.
def make_supervised_dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del shuffle_files, seed
    rows = {
        "train": {"inputs": ["Chile:", "Peru:"], "targets": [" Santiago", " Lima"]},
        "validation": {"inputs": ["Cuba:"], "targets": [" Havana"]},
    }
    return tf.data.Dataset.from_tensor_slices(rows[split])


add_supervised_task(
    "my_supervised_task",
    seqio.FunctionDataSource(make_supervised_dataset, splits=("train", "validation")),
    metric_fns=[exact_match],
)

# CHANGE or remove: several tasks under one name, with rates. They are shares of examples, as always in
# SeqIO; MIXTURE_RATES in gin gives shares of tokens instead.
seqio.MixtureRegistry.add("my_mixture", [("my_task", 1.0)])

# A T5-style task that tokenises in its preprocessors works too, unchanged: its ids are used as they are, and
# the run's VOCABULARY must be the one it tokenises with:
#
#   from t5x_scale.data.seqio_source import SeqioVocabulary
#   from t5x_scale.data.vocabulary import load_vocabulary
#
#   vocabulary = SeqioVocabulary(load_vocabulary("stdlib_8k"))  # or seqio.SentencePieceVocabulary(path)
#   seqio.TaskRegistry.add(
#       "my_tokenised_task",
#       source=seqio.FunctionDataSource(make_dataset, splits=("train", "validation")),
#       preprocessors=[
#           functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
#           seqio.preprocessors.tokenize,
#       ],
#       output_features={"targets": seqio.Feature(vocabulary, add_eos=False)},
#   )
