"""The nearest sizes that divide."""

import math

from hypothesis import given
from hypothesis import strategies as st

from t5x_scale.partitioning.proposals import divisors, nearest_mesh, nearest_multiples, nearest_parts


def test_palm_on_pods_of_another_size():
    assert nearest_mesh({"data": 1, "fsdp": 250, "model": 12}, 3072) == {"data": 1, "fsdp": 256, "model": 12}
    assert nearest_mesh({"data": 1, "fsdp": 256, "model": 12}, 4096) == {"data": 1, "fsdp": 256, "model": 16}
    assert nearest_mesh({"data": 1, "fsdp": -1, "model": 12}, 4096) == {"data": 1, "fsdp": 256, "model": 16}
    assert nearest_mesh({"data": 1, "fsdp": 1}, 6) == {"data": 6, "fsdp": 1}
    # All axes in use: there are 26,208 ways, and 12 million products of divisors.
    sizes = {"data": 2, "fsdp": 48, "stage": 2, "expert": 2, "context": 2, "model": 12}
    assert nearest_mesh(sizes, 6144) == {"data": 2, "fsdp": 48, "stage": 2, "expert": 2, "context": 2, "model": 8}


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=1), st.integers(1, 64))
def test_a_mesh_that_is_proposed_fits(sizes, num_devices):
    near = nearest_mesh(sizes, num_devices)
    assert near.keys() == sizes.keys()
    assert math.prod(near.values()) == num_devices
    if math.prod(sizes.values()) == num_devices:
        assert near == sizes


def test_parts():
    # A vocabulary of 256,000 over 12 of 3,072 devices.
    assert nearest_parts(256000, 12, 3072) == [8, 16]
    assert nearest_parts(5, 2, 8) == [1]
    assert nearest_parts(7, 1, 8) == []


def test_multiples():
    assert nearest_multiples(6, 4) == [4, 8]
    assert nearest_multiples(3, 8) == [8]


@given(st.integers(1, 500))
def test_divisors(number):
    found = divisors(number)
    assert found == sorted(set(found))
    assert found[0] == 1
    assert found[-1] == number
    assert found == [n for n in range(1, number + 1) if number % n == 0]


def test_divisors_of_a_large_number():
    assert divisors(10**12)[-2:] == [5 * 10**11, 10**12]
