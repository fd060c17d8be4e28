"""What watching costs the compiled step: the norm of the gradients, and one select a leaf of the state. Nothing else.

The optimised program of a default step is compared, by kinds of instructions, with one of the same step without the
select, and with one that has no norm either: no more products, loops, gathers, copies between devices. `pytest -s`
shows the difference.
"""

import collections
import re

import jax
import jax.numpy as jnp
import pytest

from t5x_scale.optim import guards

# Of every element for itself, and what surrounds such work. A scalar decides, so that a select and the norm's scaling
# are done where the elements are made anyway, in fusions that are there already.
ELEMENTWISE = {"add", "and", "broadcast", "compare", "constant", "convert", "divide", "is-finite", "maximum", "minimum"}
ELEMENTWISE |= {"multiply", "select", "sqrt", "subtract"}
STRUCTURE = {"bitcast", "copy", "fusion", "get-tuple-element", "parameter", "tuple", "reduce", "reduce-window"}


def count_kinds(numerics, mesh):
    """{kind of instruction: how many} of the optimised program of a step."""
    runtime = numerics.make_runtime("parallel", "palm_adafactor", mesh)
    batch = runtime.abstract_batch(numerics.ROWS, numerics.LENGTH, tuple(numerics.BATCHES[0]))
    lowered = runtime.train_step.lower(runtime.abstract_state, batch, runtime.make_record(4))
    text = lowered.compile(numerics.FAST).as_text()
    leaves = jax.tree.leaves((runtime.abstract_state.params, runtime.abstract_state.opt_state))
    kinds = collections.Counter(re.findall(r" = .*?[\]})] ([a-z][a-z\-]*)\(", text))
    return kinds, len(leaves), len(jax.tree.leaves(runtime.abstract_params))


@pytest.mark.parametrize("mesh", ["one", "fsdp=8"])
def test_a_step_gains_a_norm_and_a_select(numerics, monkeypatch, mesh):
    whole, leaves, parameters = count_kinds(numerics, mesh)
    monkeypatch.setattr(guards, "select_finite", lambda ok, new, old: new)
    unguarded, *_ = count_kinds(numerics, mesh)
    monkeypatch.setattr(guards, "global_norm", lambda tree: jnp.float32(1))
    bare, *_ = count_kinds(numerics, mesh)
    rows = [(kind, bare[kind], unguarded[kind], whole[kind]) for kind in sorted(whole | unguarded | bare)]
    print(f"\n{mesh}\n{'kind':<20}{'bare':>8}{'+ norm':>8}{'+ select':>8}")
    for kind, *counts in rows:
        if len(set(counts)) > 1:
            print(f"{kind:<20}" + "".join(f"{count:>8}" for count in counts))

    assert whole["dot"] > 0
    norm_is_summed = int(mesh != "one")  # Of shards, by one more sum over devices of a number.
    for kind, *counts in rows:
        gained = [norm_is_summed, 0] if kind == "all-reduce" else [0, 0]
        if kind not in ELEMENTWISE | STRUCTURE:
            assert [counts[1] - counts[0], counts[2] - counts[1]] == gained, f"{kind}: {counts}"
    # One sum of squares for each parameter; one select for each leaf, which a fusion may do twice, and no other walk
    # over the state.
    assert unguarded["reduce"] - bare["reduce"] == parameters
    assert whole["reduce"] == unguarded["reduce"]
    assert leaves <= whole["select"] - unguarded["select"] <= leaves + 2
