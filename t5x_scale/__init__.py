"""t5x_scale: train, continue and reshape large decoder language models on TPU pods."""

__version__ = "0.1.0"
