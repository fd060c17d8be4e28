"""Live streams: training straight from a source, with the objectives and the packing of token stores, without one.

examples     a source's examples, gone through again and again, or several sources sampled; where a stream stands
documents    examples -> documents (token ids), in batches
rows         documents -> windows, or rows of packed documents
reader       the rows of one shard: every source's, dealt by the mixture
source       batch(step), state(step), resumed(state, step): what the training loop uses
inputs       from names to sources of examples
pipeline     from a configuration to all of this

None of it imports TensorFlow; `data.seqio_source.live` does, when a source is a SeqIO task.
"""

from t5x_scale.data.live.pipeline import make_live_pipeline, open_live_eval_stores
from t5x_scale.data.live.source import LiveSource

__all__ = ["LiveSource", "make_live_pipeline", "open_live_eval_stores"]
