"""Precompile refuses what train would, compiles what train runs, and says what it takes."""

import dataclasses
import importlib.util
import json
import types

import jax
import pytest

from t5x_scale import run_files
from t5x_scale.commands import COMMANDS
from t5x_scale.commands.precompiling.memory import USABLE_HBM
from t5x_scale.commands.precompiling.search import Search, candidates_of_micro_batches
from t5x_scale.config.load import load, make_arguments
from t5x_scale.core.describe import describe
from t5x_scale.core.errors import UserError
from t5x_scale.main import main
from t5x_scale.partitioning.out_of_memory import OutOfMemory
from t5x_scale.partitioning.topologies import count_devices, topology_devices
from t5x_scale.program import Runtime

# A model, a machine, and nothing else but sizes that a test can wait for.
ALONE = [
    "precompile",
    "--gin_file=gin/models/palm/tiny.gin",
    "--gin_file=gin/hardware/cpu_8.gin",
    "--gin.BATCH_SIZE=16",
    "--gin.TASK_FEATURE_LENGTHS={'targets': 64}",
    "--gin.ModelConfig.num_layers=2",
    "--gin.REMAT='full'",
]
COMMON = [
    "--gin_file=gin/optim/palm_adafactor.gin",
    "--gin.MODEL_DIR='none'",
    "--gin.MIXTURE_OR_TASK_NAME='any'",
    "--gin.VOCABULARY='any'",
    "--gin.TRAIN_STEPS=10",
]


def test_a_step_is_compiled_and_measured(capsys):
    run = [
        "--gin_file=gin/runs/pretrain.gin",
        "--gin_file=gin/objectives/ul2r.gin",
        "--gin_file=gin/hardware/cpu_8.gin",
    ]
    sizes = ["--gin.BATCH_SIZE=8", "--gin.TASK_FEATURE_LENGTHS={'targets': 64}"]
    assert main(["precompile", "--gin_file=gin/models/palm/tiny.gin", *COMMON, *run, *sizes]) == 0
    text = capsys.readouterr().out
    assert "8 x 64 tokens on data=2 x fsdp=2 x model=2 compiled in" in text
    assert "temporaries" in text


def test_a_model_and_a_machine_are_enough(capsys, tmp_path):
    assert main([*ALONE, f"--output={tmp_path / 'new' / 'step.json'}"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("no run file is given; a usual run is assumed")
    assert "CausalLm, PalmAdafactor, float32 over float32 parameters, z-loss 0.0001, remat full, 1 micro-batch" in text
    (step,) = json.loads((tmp_path / "new" / "step.json").read_text())["steps"]
    assert (step["rows"], step["length"], step["fits"], step["optimizer"]) == (16, 64, True, "PalmAdafactor")
    memory = step["memory"]
    # Parameters of two layers and the table in float32, in four parts; the moments are twice as much.
    assert memory["parameters"] * 2 == pytest.approx(memory["optimizer_state"], rel=1e-3)
    assert step["parameters"] // 4 * 4 <= memory["parameters"] < step["parameters"] // 4 * 4 * 1.1
    # One input of a layer, 4 rows of 64 x 256 split in two, for each of two layers.
    assert memory["activations"] == 2 * 4 * 64 * 256 // 2 * 4
    parts = sum(memory[name] for name in memory if name not in ("total", "usable", "host", "peak"))
    assert memory["peak"] <= memory["total"] <= parts


def test_what_does_not_fit_says_what_to_change_and_exits_with_1(capsys, monkeypatch):
    monkeypatch.setitem(USABLE_HBM, "cpu", 2**20)
    assert main(ALONE) == 1
    text = capsys.readouterr().out
    assert "it does not fit: it needs" in text
    assert "and a device has 1.000 MiB" in text
    assert "what would help:\n  parameters and optimiser alone take 0.01 GiB a device: use more devices" in text


def test_what_the_compiler_refuses_is_reported_not_raised(capsys, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (32.47G) "
            "exceeds available HBM (30.75G)."
        )

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    assert main([*ALONE, f"--output={tmp_path / 'step.json'}"]) == 1
    text = capsys.readouterr().out
    assert "it does not fit: it needs 32.47 GiB of temporaries alone, and a device has 30.75 GiB" in text
    assert "what would help:\n  work on fewer rows at once, 2 of 4: --gin.StepConfig.micro_batches=2" in text
    assert json.loads((tmp_path / "step.json").read_text())["steps"][0]["advice"]


SEARCH = """
from __gin__ import dynamic_registration
from t5x_scale.commands import precompile
from t5x_scale.commands.precompiling import search
from t5x_scale.models import remat

precompile.precompile.search = @search.Search()
search.Search.remat = ("full", @remat.Remat())
search.Search.micro_batches = (2,)
search.Search.meshes = ({"fsdp": 2}, {"fsdp": 3})
remat.Remat.save = ("mlp_hidden",)
"""


def test_search_names_the_best_that_fits_as_gin(capsys, tmp_path):
    run = tmp_path / "search.gin"
    run.write_text('include "gin/runs/precompile.gin"\n' + SEARCH)
    (best, output) = (tmp_path / "best.gin", tmp_path / "steps.json")
    assert main([*ALONE[:1], f"--gin_file={run}", *ALONE[1:], f"--output={output}"]) == 0
    text = capsys.readouterr().out
    assert "needs 12 devices and there are 8" in text  # The mesh that does not fit is passed over.
    first, second = json.loads(output.read_text())["steps"]
    assert (first["remat"], second["remat"]["save"]) == ("full", ["mlp_hidden"])
    assert second["memory"]["activations"] > first["memory"]["activations"]
    best.write_text(text.split("the fastest that fits:\n\n")[1].split("\n\n16 x 64")[0])
    loaded = load("precompile", COMMANDS, files=[*(word.split("=")[1] for word in ALONE[1:3]), str(best)])
    program = make_arguments(loaded)["program"]
    assert (program.step.micro_batches, program.mesh.fsdp) == (2, 2)
    assert describe(program.model.module.remat) == second["remat"]


def search_with(tmp_path, lines, monkeypatch, capsys, refused=lambda remat, parts: None):
    """Searches; `refused(remat, micro_batches)` is what the compiler raises. Returns exit code, tried, output."""
    tried, compiled = [], []
    compile_step = Runtime.compile_step

    def compile_or_refuse(runtime, *arguments):
        choice = (runtime.program.model.module.remat, runtime.program.step.micro_batches, runtime.mesh.shape["model"])
        tried.append(choice)
        error = refused(*choice[:2])
        if error is not None:
            raise error
        # One program stands for all: what they take is not what is tested.
        compiled[:] = compiled or [compile_step(runtime, *arguments)]
        return compiled[0]

    monkeypatch.setattr(Runtime, "compile_step", compile_or_refuse)
    run = tmp_path / "search.gin"
    run.write_text('include "gin/runs/precompile.gin"\n' + SEARCH.split("search.Search.remat")[0] + lines)
    code = main([*ALONE[:1], f"--gin_file={run}", *ALONE[1:]])
    return code, tried, capsys.readouterr().out


def test_search_takes_the_fewest_micro_batches_that_fit_and_then_other_meshes(tmp_path, monkeypatch, capsys):
    def refused(remat, parts):
        return OutOfMemory("a step", "does not fit") if remat == "attention" and parts == 1 else None

    code, tried, text = search_with(tmp_path, "", monkeypatch, capsys, refused)
    assert code == 0
    assert tried[:4] == [("full", 1, 2), ("attention", 1, 2), ("attention", 2, 2), ("minimal", 2, 2)]
    # A CPU has no prediction: what recomputes least is taken for the fastest.
    assert tried[4:] == [("minimal", 2, 1), ("minimal", 2, 4)]
    table = text.split("\n\n")[1].splitlines()
    assert [row.split()[0] for row in table[1:]] == ["1", "2", "3", "4", "5", "-"]
    assert "does not fit" in table[-1]


def test_search_goes_on_where_a_candidate_does_not_compile(tmp_path, monkeypatch, capsys):
    def refused(remat, parts):
        return jax.errors.JaxRuntimeError("INTERNAL: a mishap\nin the compiler") if remat == "attention" else None

    lines = "search.Search.micro_batches = (2,)\nsearch.Search.meshes = ({},)"
    code, tried, text = search_with(tmp_path, lines, monkeypatch, capsys, refused)
    assert (code, tried) == (0, [("full", 2, 2), ("attention", 2, 2), ("minimal", 2, 2)])
    assert "  remat attention, 2 micro-batch(es): JaxRuntimeError: INTERNAL: a mishap in the compiler\n" in text


def test_search_where_nothing_fits(tmp_path, monkeypatch, capsys):
    def refused(*_):
        return OutOfMemory("a step", "does not fit")

    lines = 'search.Search.remat = ("full", "minimal")\nsearch.Search.micro_batches = (1,)'
    code, tried, text = search_with(tmp_path, lines, monkeypatch, capsys, refused)
    # With other meshes it might have fitted.
    assert (code, tried) == (1, [("full", 1, 2), ("full", 1, 1), ("full", 1, 4)])
    assert text.endswith("none of these fits: use more devices, or shorter rows\n")


@pytest.mark.parametrize(
    ("output", "message"), [("file/a.json", "cannot write to the directory"), ("", "is a directory; name a file in it")]
)
def test_where_results_cannot_be_written_nothing_is_compiled(output, message, capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    assert main([*ALONE, f"--output={tmp_path / output}"]) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert (said.err.count("\n"), said.out) == (1, "")


def test_the_flag_alone_asks_for_the_usual_candidates(capsys):
    assert main([*ALONE, "--search", "--dry_run"]) == 0
    assert "\n    search = True\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "rows", "micro_batches", "expected"),
    [((), 16, 1, [1, 2]), ((), 64, 4, [2, 4, 8]), ((), 4, 1, [1]), ((4, 1), 16, 1, [1, 4])],
)
def test_candidates_of_micro_batches(given, rows, micro_batches, expected):
    loaded = load("precompile", COMMANDS, files=[word.split("=")[1] for word in ALONE[1:3]])
    program = make_arguments(loaded)["program"]
    program = dataclasses.replace(program, step=dataclasses.replace(program.step, micro_batches=micro_batches))
    assert candidates_of_micro_batches(Search(micro_batches=given), program.make(), rows) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gin.TOPOLOGY='v4:9'"], "t5x_scale: error: "),
        (["--gin.TOPOLOGY='v44:4x4x4'"], "unknown generation 'v44' (did you mean 'v4'"),
        (["--gin.MeshConfig.fsdp=3"], "mesh data=2 x fsdp=3 x model=2 needs 12 devices and there are 8"),
        (["--gin.MICRO_BATCHES=5"], "BATCH_SIZE = 16 does not divide into micro_batches = 5"),
        (["--gin.BATCH_SIZE=6", "--gin.MICRO_BATCHES=1"], "'batch', size 6) does not divide over data=2 x fsdp=2 = 4"),
        (["--gin.REMAT='ful'"], "unknown policy 'ful' (did you mean 'full'"),
        (["--gin.CompilerFlags.extra={'--xla': 1}"], "'--xla' is no option"),
        (["--gin.CompilerFlags.extra={'xla_no_such': 1}"], "the compiler has no option 'xla_no_such'"),
    ],
)
def test_each_mistake_is_one_line(words, message, capsys):
    assert main([*ALONE, *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_pipeline_says_how_it_cuts_the_batch(capsys):
    words = ["--gin_file=gin/sharding/pipeline.gin", "--gin.PipelineConfig.micro_batches=4"]
    sizes = ["--gin.MeshConfig.stage=2", "--gin.MeshConfig.data=1"]
    assert main([*ALONE, *words, *sizes]) == 0
    assert "remat full, a pipeline of 4 micro-batches, repeats 1\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gin.MeshConfig.fsdp=32"], "mesh fsdp=32 needs 32 devices and there are 64; "),
        (["--gin.MeshConfig.dcn_data=2", "--gin.MeshConfig.fsdp=128"], "there are 128; "),
        (["--gin.TOPOLOGY='v5p:4x4x8'"], "there are 128; "),
        (["--gin.TOPOLOGY='v5q:4x4x4'"], "unknown generation 'v5q'"),
    ],
)
def test_a_dry_run_counts_the_devices_of_the_topology(words, message, capsys):
    machine = ["--gin_file=gin/models/palm/tiny.gin", "--gin_file=gin/hardware/v5p_64.gin"]
    assert main(["precompile", "--dry_run", *machine, *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


PIPELINE = ["--gin_file=gin/sharding/pipeline.gin", "--gin.MeshConfig.stage=4", "--gin.MeshConfig.fsdp=16"]
CONTEXT = ["--gin_file=gin/sharding/context.gin", "--gin.MeshConfig.context=4", "--gin.MeshConfig.fsdp=16"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*PIPELINE, "--gin.PipelineConfig.repeats=3"], "over stage=4 x repeats=3 = 12 groups; repeats=1 would do"),
        ([*PIPELINE, "--gin.PipelineConfig.micro_batches=7"], "does not divide into 7 micro-batches; 4 or 8 would do"),
        ([*PIPELINE, "--gin.PipelineConfig.micro_batches=1024"], "micro-batches of 2 rows do not divide over fsdp=16"),
        (["--gin.Attention.implementation='splosh'"], "unknown implementation 'splosh' (did you mean 'splash'?)"),
        (["--gin.Attention.implementation='cudnn'"], "cuDNN is for GPUs, and the platform is tpu; 'auto' does"),
        ([*CONTEXT, "--gin.Attention.implementation='splash'"], "'splash' does not cover this: the length is stored"),
        (["--gin.precompile.precompile.log_every_steps=0"], "log_every_steps is 0; it must be"),
        (["--gin.ModelConfig.embed_dim=100"], "decoder/final_norm/scale: dimension 0 ('embed', size 100) does not"),
    ],
)
def test_a_dry_run_refuses_what_the_compiler_would_not_see(words, message, capsys, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    machine = ["--gin_file=gin/models/palm/tiny.gin", "--gin_file=gin/hardware/v5p_64.gin"]
    assert main(["precompile", "--dry_run", *machine, *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


TRAIN = ["--gin_file=gin/models/palm/tiny.gin", "--gin_file=gin/runs/pretrain.gin", *COMMON, "--gin.BATCH_SIZE=64"]
POD = [*TRAIN, "--gin_file=gin/hardware/v5p_64.gin"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*PIPELINE, "--gin.PipelineConfig.micro_batches=7"], "does not divide into 7 micro-batches; 4 or 8 would do"),
        (["--gin.Attention.implementation='cudnn'"], "cuDNN is for GPUs, and the platform is tpu; 'auto' does"),
        (["--gin.train.train.log_every_steps=0"], "log_every_steps is 0; it must be"),
        (["--gin.BATCH_SIZE=((0, 64), (9, 100))"], "('batch', size 100) does not divide over fsdp=64"),
    ],
)
def test_a_dry_run_of_train_refuses_what_the_pod_would(words, message, capsys):
    assert main(["train", "--dry_run", *POD, *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_dry_run_of_train_chooses_kernels_for_the_machine_of_the_hardware_file(capsys):
    words = ["train", "--dry_run", *TRAIN, "--gin_file=gin/hardware/h200_1.gin"]
    assert main([*words, "--gin.Attention.implementation='cudnn'"]) == 0
    assert main([*words, "--gin_file=gin/hardware/cpu_1.gin", "--gin.Attention.implementation='cudnn'"]) == 1
    assert "the platform is cpu" in capsys.readouterr().err


def test_train_refuses_later_batches_before_the_first(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(run_files, "load_vocabulary", lambda name: types.SimpleNamespace(size=2))
    words = [*TRAIN, "--gin_file=gin/hardware/cpu_8.gin", "--gin.BATCH_SIZE=((0, 16), (10, 24))"]
    words += ["--gin_file=gin/sharding/pipeline.gin", "--gin.MeshConfig.stage=2", "--gin.MeshConfig.data=1"]
    run = tmp_path / "run"
    assert main(["train", *words, "--gin.PipelineConfig.micro_batches=8", f"--gin.MODEL_DIR='{run}'"]) == 1
    assert "pipeline: micro-batches of 3 rows do not divide over fsdp=2" in capsys.readouterr().err
    assert not run.exists()


def test_a_dry_run_says_where_the_state_alone_is_too_large(capsys):
    words = ["precompile", "--dry_run", "--gin_file=gin/models/palm/8b.gin"]
    assert main([*words, "--gin_file=gin/hardware/v5e_16.gin"]) == 0
    assert "it does not fit" not in capsys.readouterr().out
    small = ["--gin_file=gin/hardware/v5e_16.gin", "--gin.TOPOLOGY='v5e:2x2'", "--gin.MeshConfig.fsdp=2"]
    assert main([*words, *small, "--gin.MeshConfig.data=2"]) == 0
    assert capsys.readouterr().out.endswith(
        "it does not fit: a device of v5e:2x2 has 15.750 GiB\nwhat would help:\n"
        "  parameters and optimiser alone take 48.24 GiB a device: use more devices\n"
        "  split the state over the devices that hold copies: --gin.MeshConfig.data=1 --gin.MeshConfig.fsdp=-1\n"
    )


def test_a_dry_run_chooses_kernels_for_the_machine_of_the_hardware_file(capsys):
    words = ["precompile", "--dry_run", "--gin_file=gin/models/palm/tiny.gin", "--gin_file=gin/hardware/h200_1.gin"]
    assert main([*words, "--gin.Attention.implementation='cudnn'"]) == 0
    assert main([*words, "--gin.Attention.implementation='splash'"]) == 1
    assert "'splash' does not cover this: splash is a kernel for TPUs" in capsys.readouterr().err
    # A slice that is named is what it is, whatever a file before it said.
    words += ["--gin_file=gin/hardware/v5p_64.gin", "--gin.MeshConfig.fsdp=64"]
    assert main([*words, "--gin.Attention.implementation='cudnn'"]) == 1
    assert "cuDNN is for GPUs, and the platform is tpu" in capsys.readouterr().err


def test_what_a_dry_run_refuses_is_refused_in_the_same_words_before_anything_is_compiled(capsys, monkeypatch):
    words = [*ALONE, "--gin.BATCH_SIZE=((0, 16), (10, 24))", "--gin_file=gin/sharding/pipeline.gin"]
    words += ["--gin.MeshConfig.stage=2", "--gin.MeshConfig.data=1", "--gin.PipelineConfig.micro_batches=8"]
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    assert [main([*words, *more]) for more in ((), ("--dry_run",), ("--search",))] == [1, 1, 1]
    first, *others = capsys.readouterr().err.splitlines()
    assert "pipeline: micro-batches of 3 rows do not divide over fsdp=2" in first
    assert others == [first, first]


def test_ul2r_of_palm_540b_on_two_pods_in_a_dry_run(capsys):
    words = ["--gin_file=gin/models/palm/540b.gin", *COMMON[:-1], "--gin_file=gin/runs/ul2r.gin"]
    words += ["--gin_file=gin/hardware/v4_512.gin", "--gin.INITIAL_CHECKPOINT_PATH='palm'"]
    words += ["--gin.MeshConfig.fsdp=32", "--gin.MeshConfig.model=16"]
    assert main(["precompile", "--dry_run", *words]) == 0
    text = capsys.readouterr().out
    assert "540,356,474,880 parameters" in text
    assert "fsdp=32 x model=16" in text
    with pytest.raises(UserError, match="a \\(micro-\\)batch: dimension 0"):
        raise_errors(["precompile", "--dry_run", *words[:-2]])


def raise_errors(words):
    """`main` prints errors; here they are wanted."""
    from t5x_scale import main as module

    return module._main(words, module.COMMANDS, module.FLAGS, module.SUMMARIES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", r"unknown generation 'v9'"),
        ("v5p", r"expected a generation and a shape"),
        ("v5:4x4x4", r"unknown generation 'v5' \(did you mean"),
        (None, "TOPOLOGY is None"),
        ("v5p:0x4x4", r"expected a generation and a shape"),
        ("v5p:8x8", r"a slice of v5p is a 3D torus, of 3 sizes; 64 chips are v5p:4x4x4$"),
        ("tpu7x:128", r"3D torus, of 3 sizes; 128 chips are tpu7x:4x4x8$"),
        ("v5e:4x4x4", r"a slice of v5e is a 2D torus, of 2 sizes; 64 chips are v5e:8x8$"),
        ("v6e:2x4x4", r"2D torus, of 2 sizes; 32 chips are v6e:4x8$"),
        ("v5p:3x5x7", r"a slice is made up of hosts of 2 x 2 chips; the nearest is v5p:4x6x7$"),
        ("v6e:1x2", r"hosts of 2 x 2 chips; the nearest is v6e:2x2$"),
        ("v4:99999x99999", r"9999800001 chips, and no slice has more than 9216$"),
        ("v5p:99999x99999x99999", r"no slice has more than 9216$"),
        (" V5P:4X4X4", r"expected a generation and a shape, did you mean 'v5p:4x4x4'\?$"),
    ],
)
def test_a_topology_that_is_none(name, message):
    for read in (topology_devices, count_devices):
        with pytest.raises(UserError, match=message):
            read(name)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package libtpu"):
        topology_devices("v5p:4x4x4")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "is not defined: add a file of gin/models/, such as --gin_file=gin/models/palm/8b.gin"),
        (["--gin_file=gin/hardware/v5p_64.gin"], "such as --gin_file=gin/models/palm/8b.gin"),
        (
            ["--gin_file=gin/hardware/v5p_63.gin"],
            "no gin file 'gin/hardware/v5p_63.gin' (did you mean 'gin/hardware/v5p_64.gin'?)",
        ),
        ([*ALONE[1:3], *PIPELINE, "--gin.MICRO_BATCHES=4"], "bind pipeline.PipelineConfig.micro_batches instead"),
    ],
)
def test_what_is_missing_is_named_with_an_example(words, message, capsys):
    assert main(["precompile", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_same_words_with_train_say_that_a_run_file_is_missing(capsys):
    words = ["--gin_file=gin/models/palm/tiny.gin", "--gin_file=gin/hardware/cpu_8.gin"]
    assert main(["train", *words]) == 1
    assert "none of the gin files says what train is to do" in (said := capsys.readouterr().err)
    assert said.strip().endswith("add a run file, one of gin/runs/")
