"""Floor 6: changes of a model on lazy tensors: depth, experts, vocabulary, width, positions, merging."""
