"""Whatever is asked for, there is a plan without nonsense or one line that says why not."""

import math

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5x_scale.commands.plan import plan
from t5x_scale.core.errors import UserError
from t5x_scale.laws import LAWS
from t5x_scale.planner import gin_files, record, table
from t5x_scale.planner.allocations import FRONTIERS
from t5x_scale.planner.budgets import make_budget
from t5x_scale.planner.continuing import make_continuation
from t5x_scale.planner.known_models import find_base
from t5x_scale.planner.plans import make_plan


def amounts(low, high):
    """Mostly nothing: of three amounts one is too many."""
    return st.one_of(st.none(), st.none(), st.floats(low, high).map(lambda exponent: 10.0**exponent))


MACHINES = st.sampled_from([None, "v5p", "v5e", "h100", "cpu", "v5p-4", "v5p-512", "v4_2x3072", "tpu7x-64", "v6e-256"])
REQUESTS = st.fixed_dictionaries(
    {
        "flops": amounts(9, 30),
        "params": amounts(3, 14),
        "tokens": amounts(2, 16),
        "unique_tokens": amounts(3, 15),
        "chips": MACHINES,
        "days": amounts(-4, 5),
        "mfu": st.sampled_from([None, 0.01, 0.5, 1.0]),
        "vocab_size": st.sampled_from([None, 2, 320, 32000, 256000, 10**7]),
        "length": st.sampled_from([None, 2, 100, 2048, 2**20]),
        "family": st.sampled_from(["llama", "palm"]),
    }
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(request=REQUESTS, law=st.sampled_from([None, *FRONTIERS]))
def test_a_plan_or_a_line(request, law):
    try:
        made = make_plan(make_budget(**request), LAWS, law)
    except UserError:
        return
    config, mesh = made.shape.config, made.site.mesh
    assert config.embed_dim % mesh.fsdp == 0
    assert config.num_heads % mesh.model == 0
    assert all(rows % (mesh.row_shares * made.cost.micro_batches) == 0 for _, rows in made.batch.pieces)
    assert made.batch.tokens >= made.batch.batch_tokens
    numbers = (made["learning rate"].value, made["expected loss"].value, made.cost.days, made.cost.memory.total)
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    texts = (table.to_text(made.choices, made.warnings, "any", explain=True), gin_files.run_text(made, "any", "there"))
    assert all("nan" not in text.split() for text in texts)
    assert "curve" in record.to_json(made, "any")


EXTREMES = st.sampled_from(["5e-324", "1e-308", "1e-9", "1", "1e9", "1e45", "1e308", "1e999", "nan", "inf", "-1", "0"])
AMOUNTS = ("flops", "days", "mfu", "params", "tokens", "unique_tokens", "vocab_size", "length", "tokens_seen",
           "domain_tokens", "general_tokens")  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(words=st.dictionaries(st.sampled_from(AMOUNTS), EXTREMES, min_size=1, max_size=3), chips=MACHINES)
def test_amounts_as_extreme_as_floats_are(words, chips):
    try:
        assert plan(**words, chips=chips) == 0
    except UserError as error:
        line = str(error)
    else:
        return
    assert "\n" not in line
    assert not any("e-324" in value or "308" in value for value in words.values()) or "--" in line


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    params=st.floats(4, 13).map(lambda e: 10.0**e),
    seen=amounts(3, 16),
    domain=st.floats(1, 14).map(lambda e: 10.0**e),
    general=amounts(1, 15),
    chips=MACHINES,
    shift=st.sampled_from(["weak", "strong"]),
)
def test_a_continuation_or_a_line(params, seen, domain, general, chips, shift):
    try:
        base = find_base(None, params, seen, None, "llama")
        made = make_continuation(base, make_budget(params=params, chips=chips), LAWS, domain, general, shift)
    except UserError:
        return
    assert 0.5 < made.share <= 1
    assert made.batch.tokens >= made.batch.batch_tokens
    assert "MIXTURE_RATES" in gin_files.continuation_text(made, "any", "there")
    assert "choices" in record.to_json(made, "any")
