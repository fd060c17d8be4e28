import dataclasses
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.core.errors import UserError
from t5x_scale.data.catalog import Catalog
from t5x_scale.data.mixtures import named_mixture
from t5x_scale.data.mixtures.rate_functions import SourceCounts
from t5x_scale.data.mixtures.rates import Proportional, RateSchedule, describe_shares, list_sources, resolve_mixture
from t5x_scale.data.vocabulary import load_vocabulary

# Documents of each source, and the bytes of one; a separator follows each.
SIZES = {"long": (10, 299), "short": (10, 99), "new": (40, 49)}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root = tmp_path_factory.mktemp("rates")
    for name, (documents, size) in SIZES.items():
        (root / name).mkdir()
        for index in range(documents):
            (root / name / f"{index}.txt").write_text(name[0] * size)
    return Catalog(str(root / "stores"), load_vocabulary("bytes"))


@pytest.fixture
def resolve(catalog, monkeypatch):
    """Resolves names such as "long" and "old", a registered mixture, into shares by such names."""
    root = os.path.dirname(catalog.store_dir)
    full = {name: f"text:{root}/{name}/*.txt" for name in SIZES}
    short = {text: name for name, text in full.items()}
    mixtures = {"old": {full["long"]: 0.25, full["short"]: 0.75}}

    def look_up(name, catalog):
        if name in mixtures:
            found = dataclasses.replace(original(full["long"], catalog), name=name, is_registered=True)
            object.__setattr__(found, "sources", tuple(mixtures[name]))
            object.__setattr__(found, "example_shares", lambda counts: mixtures[name])
            return found
        return original(full.get(name, name), catalog)

    original = named_mixture.look_up
    monkeypatch.setattr("t5x_scale.data.mixtures.rates.look_up", look_up)

    def resolve(given, rate_unit=None):
        resolved = resolve_mixture(given, rate_unit=rate_unit, catalog=catalog, split="all")
        assert set(resolved.stores) == set(resolved.plan.names) <= set(list_sources(given, catalog))
        pieces = [
            (step, {short[name]: share for name, share in shares.items()}) for step, shares in resolved.plan.pieces
        ]
        for _, shares in pieces:
            assert sum(shares.values()) == pytest.approx(1)
        return pieces if isinstance(given, RateSchedule) else pieces[0][1]

    return resolve


def test_rates_of_a_configuration_are_token_shares(resolve):
    assert resolve({"long": 3, "short": 1}) == {"long": 0.75, "short": 0.25}
    assert resolve("long") == {"long": 1.0}


def test_rates_can_count_examples(resolve):
    # One long document of 300 tokens to three short ones of 100.
    assert resolve({"long": 1, "short": 3}, "examples") == pytest.approx({"long": 0.5, "short": 0.5})


@pytest.mark.parametrize(
    ("unit", "expected"), [(None, 0.5), ("examples", 0.5), ("tokens", 0.25)], ids=["its own", "examples", "tokens"]
)
def test_a_registered_mixture_counts_examples_unless_told_otherwise(resolve, unit, expected):
    assert resolve("old", unit)["long"] == pytest.approx(expected)


def test_an_older_mixture_is_replayed_as_a_share(resolve):
    shares = resolve({"new": 0.7, "old": 0.3})
    assert shares == pytest.approx({"new": 0.7, "long": 0.15, "short": 0.15})
    # A source of its own that the mixture holds too has both shares.
    assert resolve({"long": 0.5, "old": 0.5})["long"] == pytest.approx(0.75)
    # By examples: 30 of the mixture's to 70 of 50 tokens.
    by_examples = resolve({"new": 0.7, "old": 0.3}, "examples")
    assert by_examples["new"] == pytest.approx(70 * 50 / (70 * 50 + 7.5 * 300 + 22.5 * 100))


def test_proportional_to_size(resolve):
    sized = {name: Proportional() for name in SIZES}
    tokens = {"long": 3000, "short": 1000, "new": 2000}
    assert resolve(sized) == pytest.approx({name: count / 6000 for name, count in tokens.items()})
    # By examples without a limit every source is gone through in the same time: the same as by tokens.
    assert resolve(sized, "examples") == pytest.approx(resolve(sized))
    capped = {name: Proportional(maximum=20, temperature=2.0) for name in SIZES}
    examples = {"long": 10**0.5, "short": 10**0.5, "new": 20**0.5}
    means = {"long": 300, "short": 100, "new": 50}
    weights = {name: examples[name] * means[name] for name in SIZES}
    expected = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    assert resolve(capped, "examples") == pytest.approx(expected)


@given(
    size=st.integers(1, 10**9),
    maximum=st.none() | st.integers(1, 10**7),
    temperature=st.floats(1, 10),
    scale=st.floats(1e-3, 10),
)
def test_the_formula_of_t5(size, maximum, temperature, scale):
    rate = Proportional(maximum, temperature, scale, unit="examples")(SourceCounts("x", 7, size))
    expected = size * scale
    expected = min(expected, maximum) if maximum else expected
    assert rate == pytest.approx(expected ** (1 / temperature))
    assert Proportional(unit="tokens")(SourceCounts("x", 7, size, "examples")) == 7


def test_functions_see_sources_and_mixtures(resolve):
    seen = []

    def rate(counts):
        seen.append((counts.num_tokens, counts.num_documents, counts.unit))
        return np.float32(2)

    resolve({"long": rate, "old": rate})
    assert seen == [(3000, 10, "tokens"), (4000, 20, "tokens")]


def test_a_schedule(resolve):
    schedule = RateSchedule(((0, "old"), (100, {"new": 1, "old": 1}), (200, {"new": Proportional(), "short": 0})))
    assert resolve(schedule) == [
        (0, pytest.approx({"long": 0.5, "short": 0.5})),
        (100, pytest.approx({"long": 0.25, "short": 0.25, "new": 0.5})),
        (200, {"new": 1.0}),
    ]


def test_zero_is_a_source_left_out(resolve):
    assert resolve({"long": 1, "text:nowhere/*.txt": 0}) == {"long": 1.0}


@pytest.mark.parametrize(
    ("given_rates", "message"),
    [
        ({}, "names no source"),
        ({"long": -1}, "rate of 'long' is -1"),
        ({"long": float("nan")}, "rate of 'long' is nan"),
        ({"long": "1"}, "rate of 'long' is '1'"),
        ({"long": True}, "rate of 'long' is True"),
        ({"long": 0, "short": 0}, "all rates are zero"),
        ({"long": lambda counts: 0}, r"all rates of \['text:.*'\] are zero"),
        ({"long": lambda counts: -3}, "is -3 for SourceCounts"),
        ({5: 1}, "by strings, not by 5"),
        ({"long": RateSchedule(((0, "long"),))}, "in place of the whole mapping"),
        (("long", "short"), r"name or \{name: rate\}, not \('long'"),
        ({"lnog": 1}, "no task or mixture 'lnog'"),
    ],
)
def test_what_is_no_mixture(resolve, given_rates, message):
    with pytest.raises(UserError, match=message) as caught:
        resolve(given_rates)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):
        resolve(RateSchedule(((0, "long"), (10, given_rates))))


def test_an_unknown_unit(resolve):
    with pytest.raises(UserError, match=r"rate_unit is 'token' \(did you mean 'tokens'\?\)"):
        resolve("long", "token")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pieces": ()}, "increase from 0"),
        ({"pieces": ((5, "a"),)}, r"increase from 0, not \[5\]"),
        ({"pieces": ((0, "a"), (9, "b"), (9, "c"))}, "increase from 0"),
        ({"pieces": ((0, "a"), (1.5, "b"))}, "whole numbers"),
        ({"pieces": {"a": 1}}, "are pairs"),
        ({"pieces": ((0, "a"),), "kind": "linaer"}, r"'linaer' \(did you mean 'linear'\?\)"),
        ({"pieces": ((0, "a"),), "ramp_pieces": 0}, "ramp_pieces is 0"),
    ],
)
def test_what_is_no_schedule(options, message):
    with pytest.raises(UserError, match=message):
        RateSchedule(**options)


@pytest.mark.parametrize("options", [{"maximum": 0}, {"temperature": 0}, {"scale": -1}, {"unit": "example"}])
def test_what_is_not_proportional(options):
    with pytest.raises(UserError, match=rf"Proportional\.{next(iter(options))} is"):
        Proportional(**options)


def test_a_number_is_checked_before_a_store_is_built(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 100)
    catalog = Catalog(str(tmp_path / "stores"), load_vocabulary("bytes"))
    schedule = RateSchedule(((0, f"text:{tmp_path}/a.txt"), (5, {"b": -1})))
    with pytest.raises(UserError, match="rate of 'b'"):
        resolve_mixture(schedule, rate_unit=None, catalog=catalog, split="all")
    assert not (tmp_path / "stores").exists()


def test_both_shares_are_shown(catalog):
    root = os.path.dirname(catalog.store_dir)
    rates = {f"text:{root}/long/*.txt": 0.5, f"text:{root}/short/*.txt": 0.5}
    found = resolve_mixture(rates, rate_unit=None, catalog=catalog, split="all")
    text = describe_shares(found.plan, found.stores)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:3] == ["from", "step", "0"]
    assert [line[1:] for line in lines[1:]] == [["0.5000", "0.2500", "300.0"], ["0.5000", "0.7500", "100.0"]]
