"""Packaging of t5x_scale: dependency ranges, extras and the console script."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = "0.1.0"

# Every range below was resolved in a clean environment. Upper bounds stand where a newer release is
# known, or likely, to change an interface that this project uses.
INSTALL_REQUIRES = [
    "jax>=0.10.2,<0.12",
    "flax>=0.12.8,<0.14",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "tensorstore>=0.1.86,<0.2",
    "gin-config==0.5.0",
    "seqio==0.0.20",
    "etils[epath]>=1.13,<2",
    "numpy>=2.0,<3",
    # Fits and optima of scaling laws; jax brings it too.
    "scipy>=1.14,<2",
    "sentencepiece>=0.2.1,<0.3",
    # T5X's checkpoints; flax and orbax bring it too.
    "msgpack>=1.1,<2",
    "tensorboardX>=2.6.4,<3",
    "matplotlib>=3.9,<4",
    "rich>=13.9,<16",
]

EXTRAS = {
    # Cloud TPU VMs: the TPU runtime, and gs:// paths that need no TensorFlow.
    "tpu": ["jax[tpu]>=0.10.2,<0.12", "gcsfs>=2026.6"],
    "gpu": ["jax[cuda13]>=0.10.2,<0.12"],
    # Pathways on Cloud: one process for all slices (JAX_PLATFORMS=proxy).
    "pathways": ["pathwaysutils>=0.1.13,<0.2"],
    # Hugging Face tokenizer.json vocabularies.
    "hf": ["tokenizers>=0.22,<0.24"],
    # JSON lines compressed as `.zst`, as the Pile comes.
    "zstd": ["zstandard>=0.23,<0.26"],
    # Building token stores on Dataflow, Flink or Spark, in an environment of its own (`make beam`): Beam wants
    # protobuf < 7, and sentencepiece from 0.2.2 on wants more; its TFRecord files want google-crc32c, which only
    # some of its dependencies bring; gs:// paths of ours want gcsfs.
    "beam": ["apache-beam[gcp]>=2.77,<3", "sentencepiece<0.2.2", "google-crc32c>=1.5,<2", "gcsfs>=2026.6"],
    # What imported models are held to (`make reference`), in an environment of its own: torch is large. This version's
    # CPU build is small; a range would take one with CUDA.
    "reference": ["torch==2.13.0", "transformers>=5.24,<6", "safetensors>=0.6,<1", "protobuf>=6.31,<8"],
    "test": [
        # Measured against in tools/benchmark_data.py.
        "grain>=0.2.18,<0.3",
        "pytest>=8.4,<10",
        "pytest-xdist>=3.6,<4",
        "hypothesis>=6.130,<7",
        "import-linter>=2.5,<3",
        "ruff>=0.14,<0.17",
        "gcsfs>=2026.6",
        "tokenizers>=0.22,<0.24",
        "zstandard>=0.23,<0.26",
    ],
}

setup(
    name="t5x_scale",
    version=VERSION,
    description="Train, continue and reshape large decoder language models on TPU pods.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # gin/ is no package where it lies (it would shadow gin-config); installed, it is data inside ours.
    packages=[*find_packages(include=["t5x_scale", "t5x_scale.*", "tasks"]), "t5x_scale.gin_files"],
    package_dir={"t5x_scale.gin_files": "gin"},
    package_data={"t5x_scale.gin_files": ["**/*.gin"], "t5x_scale.data": ["vocabularies/**/*"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["t5x_scale = t5x_scale.main:console_entry"]},
)
