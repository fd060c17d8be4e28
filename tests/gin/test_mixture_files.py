"""Every file in gin/mixtures holds the published shares and is read strictly behind a run file."""

import pathlib
import re
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from gin_files import PRETRAIN, load_files, names

from t5x_scale.config.load import make_arguments
from t5x_scale.data.mixtures.mixture import PERIOD, Mixture

# Per cent of the tokens, in the order of the papers' tables.
PUBLISHED = {
    "palm": [50, 27, 13, 5, 4, 1],
    "gopher": [48, 27, 10, 10, 3, 2],
    "chinchilla": [45, 30, 10, 10, 4, 1],
}
FILES = names("mixtures")


def load_data(name):
    files = ("gin/models/palm/tiny.gin", "gin/optim/adamw.gin", PRETRAIN, name, "gin/hardware/cpu_1.gin")
    return make_arguments(load_files("train", files))["data"]


def test_there_is_a_file_for_every_published_mixture():
    assert {pathlib.Path(name).stem for name in FILES} == PUBLISHED.keys()


@pytest.mark.parametrize("name", FILES)
def test_shares(name):
    data = load_data(name)
    published = PUBLISHED[pathlib.Path(name).stem]
    assert data.mixture == data.mixture_rates
    assert sorted(data.mixture_rates.values(), reverse=True) == published
    assert sum(published) == 100
    # What SeqIO takes for the name of a task.
    assert all(re.fullmatch(r"\w+", source) for source in data.mixture_rates)
    # No unit is said: rates in gin count tokens.
    assert data.rate_unit is None
    mixture = Mixture(data.mixture_rates)
    assert mixture.shares * 100 == pytest.approx(list(data.mixture_rates.values()), abs=100 / PERIOD)


def test_gopher_and_chinchilla_name_the_same_corpora():
    assert (
        load_data("gin/mixtures/gopher.gin").mixture.keys() == load_data("gin/mixtures/chinchilla.gin").mixture.keys()
    )


def test_palm_saw_everything_once():
    assert load_data("gin/mixtures/palm.gin").max_epochs == 1.0
