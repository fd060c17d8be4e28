"""Floor 7: from a checkpoint of any kind, through surgeries, to a checkpoint of ours, another system's, or a run.

sources   what lies at a path, as lazy tensors: ours, Hugging Face's, T5X's
surgery   what is done to them, in order
output    a checkpoint of ours on disk, streamed block by block
loading   parameters and optimiser state straight into the shards of a run
"""
