"""SeqIO tasks as streams of documents: the only folder of the package that imports SeqIO and TensorFlow.

A task's feature comes in one of two kinds.

*Text*: its `dtype` is `tf.string`. The task says where text is and what to do with it, the run's
vocabulary turns it into ids, in batches, outside TensorFlow. All tasks under `tasks/` are of this kind, so
one task serves every vocabulary.

*Ids*: its `dtype` is an integer, as in T5-style tasks that tokenise in their preprocessors. The ids are
taken as they are; a run whose vocabulary is known to be another one is refused.

Documents come without end-of-sequence or end-of-document ids: whoever joins documents adds them.
"""

from t5x_scale.data.seqio_source.describe import describe_document_source, document_source_fingerprint
from t5x_scale.data.seqio_source.documents import iterate_documents, iterate_texts
from t5x_scale.data.seqio_source.libraries import seqio, tf
from t5x_scale.data.seqio_source.mixtures import (
    has_counted_rates,
    is_mixture,
    mixture_tasks,
    task_or_mixture_names,
)
from t5x_scale.data.seqio_source.records import count_examples, is_supervised, iterate_records
from t5x_scale.data.seqio_source.registry import get_task, is_text
from t5x_scale.data.seqio_source.vocabulary import SeqioVocabulary, check_vocabulary, describe_feature_vocabulary
from t5x_scale.data.task_modules import import_task_modules

__all__ = [
    "SeqioVocabulary",
    "check_vocabulary",
    "count_examples",
    "describe_document_source",
    "describe_feature_vocabulary",
    "document_source_fingerprint",
    "get_task",
    "has_counted_rates",
    "import_task_modules",
    "is_mixture",
    "is_supervised",
    "is_text",
    "iterate_documents",
    "iterate_records",
    "iterate_texts",
    "mixture_tasks",
    "seqio",
    "task_or_mixture_names",
    "tf",
]
