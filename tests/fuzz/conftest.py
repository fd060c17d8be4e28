"""How readers are tried: many inputs, each with a bound of time and memory, and nothing but one line of refusal."""

import pathlib
import random
import resource
import signal
import tempfile

import pytest
from mutations import INPUTS

MEMORY, SECONDS = 1 << 29, 10


@pytest.fixture
def try_inputs():
    """Calls `read(make(generator))` for many seeds: it returns, or raises one of `refusals` with one printable line.

    What the process may allocate beyond what it has is bounded, and so is the time of an input.
    """
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, _too_long)

    def run(make, read, refusals, inputs=INPUTS, at_least=0.02):
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, limits[1]))
        accepted = 0
        for seed in range(inputs):
            given = make(random.Random(seed))
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                read(given)
                accepted += 1
            except refusals as error:
                line = str(error)
                assert line, seed
                assert line.isprintable(), (seed, line)
                assert len(line) <= 5000, seed
            except BaseException as error:
                raise AssertionError(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}") from error
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        # Inputs of which all or none are refused try only the first check of a reader.
        assert at_least * inputs < accepted
        assert accepted < inputs or not refusals, accepted

    yield run
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def directory():
    """A directory in memory where there is one: a file is written ten thousand times."""
    memory = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield pathlib.Path(name)


def _too_long(*_):
    raise TimeoutError(f"more than {SECONDS} seconds")
