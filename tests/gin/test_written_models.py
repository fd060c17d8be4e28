"""Gin files written for architectures, read back as strictly as those written by hand."""

import pathlib
import sys

import pytest
from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "fakes"))

from architectures import architectures
from gin_files import is_family, load_program, names

from t5x_scale.models.architecture import Architecture
from t5x_scale.models.assembly import from_description, to_gin, to_model
from t5x_scale.models.config import ModelConfig

# One size of every family says all that the family says.
ONE_OF_EACH = {pathlib.Path(name).parent: name for name in names("models") if not is_family(name)}

# A machine that sets no dtype.
BARE = "gin/hardware/v4_64.gin"


def read(text, folder):
    """The model that `t5x_scale train` would make of this text."""
    file = folder / "written.gin"
    file.write_text(text)
    return load_program(str(file), hardware=BARE).model


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(architecture=architectures())
def test_a_written_file_says_the_same(architecture, tmp_path):
    assert read(to_gin(architecture), tmp_path).architecture() == to_model(architecture).architecture()


@pytest.mark.parametrize("name", ONE_OF_EACH.values())
def test_shipped_files_can_be_written_again(name, tmp_path):
    architecture = from_description(load_program(name, hardware=BARE).model.architecture())
    assert from_description(read(to_gin(architecture), tmp_path).architecture()) == architecture


def test_reads_as_if_written_by_hand():
    config = ModelConfig(4, 256, 704, 8, 2, 32, 8192)
    written = to_gin(Architecture(config, norm_epsilon=1e-5), "A Llama for tests.")
    assert written.startswith("# A Llama for tests.\nfrom __gin__ import dynamic_registration\n")
    assert lines_of(written) == lines_of("".join(shipped(name) for name in ("llama.gin", "tiny.gin")))


def shipped(name):
    return (pathlib.Path(__file__).parents[2] / "gin/models/llama" / name).read_text()


def lines_of(text):
    """The statements of a file whatever their order, each with the name that it belongs to."""
    found, owner = set(), ""
    for line in text.splitlines():
        if line.startswith("    "):
            found.add(f"{owner}.{line.strip()}")
        elif line.endswith(":"):
            owner = line.removesuffix(":")
        elif line and not line.startswith(("#", "include", "REMAT")):
            found.add(line)
    return found
