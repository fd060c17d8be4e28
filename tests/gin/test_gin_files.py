"""Every file in gin/ is read strictly, with what it needs beside it, and its model is initialised abstractly."""

import math
import pathlib
import re
import sys

import jax
import pytest
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from gin_files import PRETRAIN, commands_of, is_family, load_files, load_model, load_program, names, text_of

from t5x_scale.config.load import make_arguments
from t5x_scale.core.errors import UserError
from t5x_scale.core.trees import flatten
from t5x_scale.partitioning.axes import LOGICAL_AXES
from t5x_scale.partitioning.rules import FirstOf
from t5x_scale.partitioning.topologies import GENERATIONS
from t5x_scale.program import Runtime
from t5x_scale.surgery.interface import Surgery

TINY = "gin/models/palm/tiny.gin"
SIZES = [name for name in names("models") if not is_family(name)]
FAMILIES = [name for name in names("models") if is_family(name)]
HARDWARE = names("hardware")

# Bytes of memory a chip, of the machines in gin/hardware.
MEMORY = {"v4": 32e9, "v5p": 95e9, "v6e": 32e9, "v5e": 16e9, "h200": 141e9}


def _runtime(*files, **options):
    program = load_program(*files, **options)
    return Runtime(program, program.mesh.make_abstract_mesh())


def _bytes_per_chip(state):
    leaves = jax.tree.leaves(state)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def test_folders():
    folders = {name.split("/")[1] for name in names("")}
    known = {
        "models",
        "calibration",
        "optim",
        "runs",
        "surgeries",
        "mixtures",
        "objectives",
        "packing",
        "sharding",
        "hardware",
    }
    assert folders == known


class TestModels:
    @pytest.mark.parametrize("name", SIZES)
    def test_size(self, name):
        model = load_model(name)
        params, axes = flatten(model.abstract_params()), flatten(model.axes())
        assert params.keys() == axes.keys()
        for path, leaf in params.items():
            assert leaf.dtype == "float32", path
            assert len(leaf.shape) == len(axes[path]), path
            assert {*axes[path]} <= {None, *LOGICAL_AXES}, path
        assert model.config.dtype == "bfloat16"

    @pytest.mark.parametrize("name", SIZES)
    def test_size_says_shapes_only(self, name):
        own = re.sub(r"#.*", "", (pathlib.Path(__file__).parents[2] / name).read_text())
        bound = set(re.findall(r"^ *(\w+) = ", own, re.MULTILINE))
        shapes = {"num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads", "head_dim", "vocab_size"}
        shapes |= {"num_experts", "num_experts_per_token"}
        assert bound <= shapes | {"NUM_LAYERS", "EMBED_DIM", "EMBEDDING_SCALE", "REMAT"}

    @pytest.mark.parametrize("name", FAMILIES)
    def test_family_asks_for_its_sizes(self, name):
        with pytest.raises(UserError, match=r"ModelConfig|NUM_LAYERS|EMBEDDING_SCALE"):
            load_program(name)

    def test_every_family_is_included(self):
        assert all(any(f'"{family}"' in text_of(size) for size in SIZES) for family in FAMILIES)

    @pytest.mark.parametrize("remat", ["none", "dots", "minimal", "full"])
    def test_remat_is_a_macro(self, remat):
        model = load_program("gin/models/llama/tiny.gin", REMAT=remat).model
        assert model.module.remat == remat


class TestOptimizers:
    @pytest.mark.parametrize("name", names("optim"))
    def test_state(self, name):
        state = _runtime(TINY, optimizer=name, hardware="gin/hardware/cpu_8.gin").abstract_state
        assert len(jax.tree.leaves(state.opt_state)) > len(jax.tree.leaves(state.params)) / 2


@pytest.mark.parametrize("name", names("runs"))
def test_run(name):
    """A run file works with a model, an optimiser and a machine that it does not know, for every command it serves."""
    alone = "train" in commands_of(name)
    files = (TINY, "gin/optim/adamw.gin", *([] if alone else [PRETRAIN]), name, "gin/hardware/cpu_8.gin")
    assert commands_of(name)
    for command in {"train", *commands_of(name)}:
        assert load_files(command, files).reached[command].calls


@pytest.mark.parametrize("name", names("surgeries"))
def test_a_surgery_alone_and_its_run_file(name):
    """`reshape --gin_file=gin/surgeries/X.gin` is all that the first line of X asks for, and gin/runs/X.gin follows."""
    loaded = load_files("reshape", (name,))
    surgeries = make_arguments(loaded)["transforms"]
    assert all(isinstance(surgery, Surgery) for surgery in surgeries)
    assert f"reshape --gin_file={name}" in (pathlib.Path(__file__).parents[2] / name).read_text()
    assert name.replace("surgeries", "runs") in names("runs")


class TestSharding:
    @pytest.mark.parametrize("name", ["gin/sharding/data_parallel.gin", "gin/sharding/fsdp.gin"])
    def test_leaves_no_axis_of_the_machine_idle(self, name):
        with pytest.raises(UserError, match=r"model=2.*split nothing over it"):
            _runtime(TINY, hardware="gin/hardware/cpu_8.gin", more=(name,))

    @pytest.mark.parametrize("name", [name for name in names("sharding") if "fsdp_model" in name])
    def test_overrides_the_machine(self, name):
        runtime = _runtime(TINY, hardware="gin/hardware/cpu_8.gin", more=(name,))
        specs = {path: leaf.sharding.spec for path, leaf in flatten(runtime.abstract_params).items()}
        expected = {
            "fsdp_model": (P("model", "fsdp"), P(None, "fsdp", "model")),
            "fsdp_model_vocab_fsdp": (P("fsdp", "model"), P(None, "fsdp", "model")),
        }[pathlib.Path(name).stem]
        assert (specs["token_embedder/embedding"], specs["decoder/layers/mlp/wi_0/kernel"]) == expected

    def test_alternatives_do_not_depend_on_sizes(self):
        """A first choice of size 1 stays the choice: `embed` must not take the axis that `mlp` asks for."""
        rules = load_program(TINY, more=("gin/sharding/fsdp_model_vocab_fsdp.gin",)).rules
        assert isinstance(rules["embed"], FirstOf)
        runtime = _runtime(
            TINY,
            hardware="gin/hardware/cpu_8.gin",
            more=("gin/sharding/fsdp_model_vocab_fsdp.gin",),
            MeshConfig__data=1,
            MeshConfig__fsdp=1,
            MeshConfig__model=8,
            ModelConfig__num_heads=8,
        )
        specs = {path: leaf.sharding.spec for path, leaf in flatten(runtime.abstract_params).items()}
        assert specs["decoder/layers/mlp/wi_0/kernel"] == P(None, None, "model")
        assert specs["token_embedder/embedding"] == P(None, "model")


class TestHardware:
    @pytest.mark.parametrize("name", HARDWARE)
    def test_mesh_has_as_many_devices_as_the_name_says(self, name):
        runtime = _runtime(TINY, hardware=name)
        generation, chips = pathlib.Path(name).stem.split("_")
        devices = GENERATIONS[generation].devices_per_chip if generation in GENERATIONS else 1
        assert runtime.mesh.size == devices * math.prod(int(number) for number in chips.split("x"))
        assert runtime.abstract_batch(6144, 128)

    @pytest.mark.parametrize(
        ("model", "hardware"),
        [
            ("palm/8b", "v4_64"),
            ("palm/62b", "v4_512"),
            ("palm/540b", "v4_2x3072"),
            ("palm/540b", "v5p_512"),
            ("llama2/7b", "v5p_64"),
            ("llama2/13b", "v5p_64"),
            ("llama2/70b", "v5p_512"),
            ("llama3/8b", "v6e_256"),
            ("llama3/70b", "v6e_256"),
            ("llama3/405b", "v5p_512"),
            ("gopher/1.4b", "v4_64"),
            ("gopher/280b", "v4_512"),
            ("chinchilla/70b", "v4_512"),
            ("gpt3/1.3b", "v5e_16"),
            ("gpt3/175b", "v5p_512"),
            ("pythia/160m", "h200_1"),
            ("pythia/1b", "h200_1"),
            ("pythia/2.8b", "v5e_16"),
            ("pythia/12b", "v4_512"),
            ("llama3.1/8b", "v5p_64"),
            ("mistral/7b", "v5p_64"),
            ("qwen2/7b", "v5p_64"),
            ("qwen3/8b", "v6e_256"),
            ("gemma/7b", "v4_64"),
            ("gemma2/27b", "v5p_512"),
            ("gpt2/1.5b", "h200_1"),
            ("mixtral/8x7b", "v5p_512"),
            ("palm/tiny", "cpu_8"),
            ("llama/tiny", "cpu_8"),
        ],
    )
    def test_state_divides_and_fits(self, model, hardware):
        runtime = _runtime(f"gin/models/{model}.gin", hardware=f"gin/hardware/{hardware}.gin")
        used = _bytes_per_chip(runtime.abstract_state)
        assert used < 0.8 * MEMORY.get(hardware.split("_")[0], 1e9)

    def test_palm_540b_on_its_machine(self):
        """Two gibibytes of state a chip: all that is large is split over the 3,072 chips of a pod."""
        runtime = _runtime("gin/models/palm/540b.gin", hardware="gin/hardware/v4_2x3072.gin")
        assert dict(runtime.mesh.shape) == {"data": 2, "fsdp": 256, "stage": 1, "expert": 1, "context": 1, "model": 12}
        table = flatten(runtime.abstract_params)["token_embedder/embedding"]
        assert table.sharding.shard_shape(table.shape) == (1000, 1536)
        assert _bytes_per_chip(runtime.abstract_state) / 2**30 == pytest.approx(2.0, abs=0.05)

    def test_the_usual_layout_cannot_split_256000_by_12(self):
        runtime = _runtime(
            "gin/models/palm/540b.gin",
            hardware="gin/hardware/v4_2x3072.gin",
            more=("gin/sharding/fsdp_model.gin",),
        )
        with pytest.raises(UserError, match=r"token_embedder/embedding.*256000.*model=12"):
            _ = runtime.abstract_params

    def test_gpt3_pads_its_vocabulary_to_split_it(self):
        options = {"hardware": "gin/hardware/v4_512.gin"}
        with pytest.raises(UserError, match="50257"):
            _ = _runtime("gin/models/gpt3/175b.gin", **options).abstract_params
        assert _runtime("gin/models/gpt3/175b.gin", **options, ModelConfig__vocab_size=50304).abstract_params
