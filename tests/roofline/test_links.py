"""Where groups lie on a torus, and how long bytes take: against sums done by hand."""

import math

import numpy as np
import pytest

from t5x_scale.core.errors import UserError
from t5x_scale.roofline.chips import CHIPS, find_chip
from t5x_scale.roofline.links import Constants, Machine, find_route, transfer_seconds

IDEAL = Constants(link_efficiency=1.0, dcn_efficiency=1.0, hop_seconds=0.0, launch_seconds=0.0)


def machine(torus, axes, shape, chip="v5p", slices=1):
    """Devices in the order of their coordinates, slice by slice."""
    one = np.array(list(np.ndindex(*torus)))
    return Machine(
        chip=CHIPS[chip],
        axes=axes,
        shape=shape,
        coords=np.concatenate([one] * slices),
        slices=np.repeat(np.arange(slices), len(one)),
        torus=torus,
    )


def test_a_whole_torus_has_two_directions_of_three_links():
    cube = machine((4, 4, 4), ("fsdp",), (64,))
    route = find_route(cube, range(64))
    assert (route.lanes, route.dims, route.extents, route.hops) == (6.0, (0, 1, 2), (4, 4, 4), 6)
    # A reduction moves every byte twice, (n - 1) / n of them: 2 * 63 / 64 * 6e9 / (6 * 100e9).
    assert transfer_seconds(cube, route, "all-reduce", 6e9, IDEAL) == pytest.approx(2 * 63 / 64 * 0.01)
    assert transfer_seconds(cube, route, "all-gather", 6e9, IDEAL) == pytest.approx(63 / 64 * 0.01)
    assert transfer_seconds(cube, route, "reduce-scatter", 6e9, IDEAL) == pytest.approx(63 / 64 * 0.01)


def test_one_axis_of_a_mesh_is_one_ring():
    cube = machine((4, 4, 4), ("fsdp", "model"), (16, 4))
    route = find_route(cube, [0, 1, 2, 3])
    assert (route.lanes, route.dims) == (2.0, (2,))
    assert cube.axes_of([0, 1, 2, 3]) == ("model",)
    assert cube.axes_of([0, 4, 8, 60]) == ("fsdp",)
    assert find_route(cube, range(0, 64, 4)).lanes == 4.0


def test_a_dimension_that_does_not_close_is_half_a_ring():
    plane = machine((4, 8), ("fsdp",), (32,), chip="v5e")
    assert find_route(plane, range(32)).lanes == 2.0
    pod = machine((16, 16), ("fsdp",), (256,), chip="v6e")
    assert find_route(pod, range(256)).lanes == 4.0
    small = machine((2, 2, 4), ("fsdp",), (16,))
    assert find_route(small, range(16)).lanes == 3.0


def test_two_devices_of_a_chip_share_its_links():
    one = np.repeat(np.array(list(np.ndindex(4, 4, 4))), 2, axis=0)
    cube = Machine(CHIPS["tpu7x"], ("fsdp", "model"), (64, 2), one, np.zeros(128, int), (4, 4, 4))
    assert (cube.num_devices, cube.num_chips) == (128, 64)
    assert find_route(cube, range(128)).lanes == 6.0
    assert find_route(cube, range(0, 128, 2)).lanes == 3.0
    assert transfer_seconds(cube, find_route(cube, [0, 1]), "all-reduce", 1e9, IDEAL) == 0


def test_groups_that_interleave_share_their_links():
    ring = machine((4, 4, 8), ("data", "model"), (16, 8))
    assert find_route(ring, [0, 2, 4, 6]).lanes == 1.0


def test_more_slices_exchange_what_is_left_over_the_network():
    pods = machine((4, 4, 4), ("data", "fsdp"), (2, 64), slices=2)
    route = find_route(pods, [5, 64 + 5])
    assert (route.slices, route.within, route.dims) == (2, 1, ())
    chip = CHIPS["v5p"]
    assert transfer_seconds(pods, route, "all-reduce", 1e9, IDEAL) == pytest.approx(1e9 / chip.dcn_bandwidth)
    both = find_route(pods, range(128))
    inside = transfer_seconds(machine((4, 4, 4), ("f",), (64,)), find_route(pods, range(64)), "all-reduce", 1e9, IDEAL)
    across = 1e9 / 64 / chip.dcn_bandwidth
    assert transfer_seconds(pods, both, "all-reduce", 1e9, IDEAL) == pytest.approx(inside + across)


def test_exchanges_are_bound_by_the_longest_dimension():
    ring = machine((4, 4, 8), ("data", "model"), (16, 8))
    route = find_route(ring, range(8))
    # On a ring of 8 a byte travels 2 links on average; a device sends 8e9 * 7 / 8, half of it each way.
    assert transfer_seconds(ring, route, "all-to-all", 8e9, IDEAL) == pytest.approx(8e9 * 8 / 8 / 100e9)


def test_nothing_is_sent_to_oneself():
    cube = machine((4, 4, 4), ("fsdp",), (64,))
    assert transfer_seconds(cube, find_route(cube, [7]), "all-reduce", 1e9, IDEAL) == 0


def test_latency_counts_hops():
    cube = machine((4, 4, 4), ("fsdp",), (64,))
    slow = Constants(1.0, 1.0, hop_seconds=1.0, launch_seconds=10.0)
    assert transfer_seconds(cube, find_route(cube, range(64)), "all-gather", 1e-30, slow) == pytest.approx(16.0)


@pytest.mark.parametrize("name", ["v5p", "v5p:8x8x8", "TPU v5"])
def test_a_chip_is_found_by_any_of_its_names(name):
    assert find_chip(name) is CHIPS["v5p"]


def test_an_unknown_chip_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'v5p'"):
        find_chip("v5pp:4x4x4")


def test_every_chip_says_what_is_assumed_of_it():
    for chip in CHIPS.values():
        assert all(hasattr(chip, name) for name in chip.assumed)
        assert chip.peak_flops > 0
        assert chip.hbm_bandwidth > 0
        if chip.torus:
            assert math.isclose(chip.clock, round(chip.clock / 1e7) * 1e7, rel_tol=5e-3)
