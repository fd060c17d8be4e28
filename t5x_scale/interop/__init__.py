"""Floor 6: other systems' checkpoints, configurations and tokenizers: read, written, and mapped by tables."""
