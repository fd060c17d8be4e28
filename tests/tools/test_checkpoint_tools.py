"""The tools that look at, compare and merge checkpoints, on small ones."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest

TESTS = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "surgery"))

from toy import FAMILIES, make_weights, read  # noqa: E402

from t5x_scale.conversion.output import write_checkpoint  # noqa: E402
from t5x_scale.conversion.sources import open_source  # noqa: E402
from t5x_scale.core import lazy  # noqa: E402


def tool(name):
    path = TESTS.parent / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tools_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(monkeypatch, capsys):
    def call(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        code = tool(name).main()
        return code, capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three checkpoints of one model: `a`, `b` with one tensor a tenth larger, `c` with other values."""
    root = tmp_path_factory.mktemp("checkpoints")
    a = make_weights(FAMILIES["llama"], moments=("opt_state/0/mu",))
    path = "decoder/layers/mlp/wo/kernel"
    b = a.replace(leaves={**a.leaves, path: a.leaves[path].changed(lazy.scale(a.leaves[path].array, 1.1), "scaled")})
    for name, weights in (("a", a), ("b", b), ("c", make_weights(FAMILIES["llama"], seed=3))):
        write_checkpoint(root / name, weights.replace(recipe=({"read": name},)), source=name)
    return root


def test_inspect_shows_tensors_model_and_recipe(call, three, tmp_path):
    code, streams = call("inspect_checkpoint", three / "a", "--norms", f"--output={tmp_path / 'facts.json'}")
    assert code == 0
    assert '"num_layers": 4' in streams.out
    assert '{"read": "a"}' in streams.out
    facts = json.loads((tmp_path / "facts.json").read_text())
    values = read(open_source(str(three / "a")).weights.leaves)
    assert facts["tensors"].keys() == values.keys()
    for path, array in values.items():
        assert facts["tensors"][path]["rms"] == pytest.approx(np.sqrt(np.mean(array.astype(np.float64) ** 2)))
    document = json.loads((three / "a" / "checkpoints" / "0" / "metadata" / "metadata").read_text())["content"]
    recorded = document["leaves"]["params/logits/kernel"]["fingerprint"]
    assert facts["tensors"]["logits/kernel"]["fingerprint"] == recorded


def test_inspect_by_layer_and_with_the_optimiser(call, three):
    code, streams = call("inspect_checkpoint", three / "a", "--layers", "--state", "--only=.*/mlp/wo/kernel.*")
    lines = [line.split()[0] for line in streams.out.splitlines() if "wo/kernel[" in line]
    assert code == 0
    assert lines == [
        f"{prefix}decoder/layers/mlp/wo/kernel[{layer}]" for prefix in ("", "opt_state/0/mu/") for layer in range(4)
    ]
    code, streams = call("inspect_checkpoint", three / "a", "--only=nothing")
    assert (code, streams.err.count("\n")) == (1, 1)
    assert "no tensor" in streams.err


def test_diff_names_what_differs_most_first(call, three):
    code, streams = call("diff_checkpoint", three / "a", three / "b")
    assert code == 1
    first = streams.out.splitlines()[2]
    assert first.split()[-1] == "decoder/layers/mlp/wo/kernel"
    assert float(first.split()[0]) == pytest.approx(0.1, rel=1e-3)
    assert "1 beyond the tolerance, 0 without a counterpart" in streams.out
    assert call("diff_checkpoint", three / "a", three / "b", "--tolerance=0.11")[0] == 0
    assert call("diff_checkpoint", three / "a", three / "a")[0] == 0
    code, streams = call("diff_checkpoint", three / "a", three / "nothing")
    assert (code, "does not exist" in streams.err) == (1, True)


def test_merge_by_name(call, three, tmp_path):
    words = ["linear", three / "a", three / "c", f"--output={tmp_path / 'mean'}", "--set", "weights=(3, 1)"]
    assert call("merge_checkpoints", *words)[0] == 0
    merged = open_source(str(tmp_path / "mean")).weights
    left, right = (read(open_source(str(three / name)).weights.leaves) for name in "ac")
    for path, values in read(merged.leaves).items():
        np.testing.assert_allclose(values, 0.75 * left[path] + 0.25 * right[path], rtol=1e-6, atol=1e-7)
    assert merged.recipe[-1]["merge"] == "Linear"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["linea", "a", "c"], "did you mean 'linear'"),
        (["linear", "a", "c"], "linear needs --set weights=…"),
        (["ties", "a", "c", "--set", "densty=0.1"], "did you mean 'density'"),
        (["ties", "a", "c", "--set", "density=much"], "neither a number nor a tuple"),
        (["average", "a"], "two checkpoints or more"),
    ],
)
def test_mistakes_are_one_line(call, three, tmp_path, words, message):
    words = [three / word if word in ("a", "c") else word for word in words]
    code, streams = call("merge_checkpoints", *words, f"--output={tmp_path / 'new'}")
    assert (code, streams.err.count("\n")) == (1, 1)
    assert message in streams.err
    assert not (tmp_path / "new").exists()
