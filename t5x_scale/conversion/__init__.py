"""Floor 7: from a checkpoint of any kind, through surgeries, to a checkpoint of ours, another system's, or a run.

sources     what lies at a path, as lazy tensors: ours, Hugging Face's, T5X's
starting    surgeries applied in order, and the result as the beginning of a run
loading     lazy tensors straight into the shards of a run
output      a checkpoint of ours on disk, streamed block by block
statistics  norms, fingerprints and differences of lazy tensors, for tools
report, progress   what a conversion says, at its end and on its way
"""
