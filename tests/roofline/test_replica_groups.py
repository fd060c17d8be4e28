"""The three ways of writing groups mean the same, checked against groups made with numpy from a mesh."""

import itertools

import numpy as np
import pytest

from t5x_scale.roofline.groups import parse_groups, parse_pairs


def reference(shape, used):
    """Groups of a mesh: positions that differ along the used axes only."""
    ids = np.arange(np.prod(shape)).reshape(shape)
    groups = {}
    for place in itertools.product(*map(range, shape)):
        key = tuple(place[axis] for axis in range(len(shape)) if axis not in used)
        groups.setdefault(key, []).append(int(ids[place]))
    return {frozenset(group) for group in groups.values()}


def as_sets(groups):
    return {frozenset(group.tolist()) for group in groups}


def random_meshes(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        shape = tuple(int(size) for size in rng.choice([1, 2, 3, 4], size=rng.integers(1, 5)))
        axes = [axis for axis in range(len(shape)) if rng.random() < 0.5] or [0]
        yield shape, axes


@pytest.mark.parametrize(("shape", "used"), list(random_meshes(60)))
def test_all_forms_agree_with_the_mesh(shape, used):
    expected = reference(shape, used)
    axes = ",".join(f"'a{i}'={size}" for i, size in enumerate(shape))
    names = ",".join(f"'a{i}'" for i in used)
    named = f"mesh[{axes}] {{{names}}}, use_global_device_ids=true"
    assert as_sets(parse_groups(named, int(np.prod(shape)))) == expected

    members = int(np.prod([shape[axis] for axis in used]))
    order = [axis for axis in range(len(shape)) if axis not in used] + list(used)
    total = int(np.prod(shape))
    iota = f"[{total // members},{members}]<=[{','.join(map(str, shape))}]T({','.join(map(str, order))})"
    assert as_sets(parse_groups(iota, total)) == expected

    listed = "{" + ",".join("{" + ",".join(map(str, sorted(group))) + "}" for group in sorted(expected, key=min)) + "}"
    assert as_sets(parse_groups(listed + ", to_apply=%add", total)) == expected


def test_a_range_without_transposition():
    assert parse_groups("[4,2]<=[8]", 8).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert parse_groups("[4,2]<=[2,4]T(1,0)", 8).tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_a_part_of_an_axis():
    # b = 8 is 2 x 4; the factor of size 2 behind one of size 2 strides by 2.
    groups = parse_groups("mesh['a'=2,'b'=8] {'b':(2)2}", 16)
    assert as_sets(groups) == {frozenset({base + low, base + low + 2}) for base in (0, 4, 8, 12) for low in (0, 1)}


def test_devices_in_another_order():
    assert parse_groups("mesh['x'=2,'y'=2], device_ids=(0,2,1,3) {'y'}", 4).tolist() == [[0, 2], [1, 3]]
    assert parse_groups("mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}", 4).tolist() == [[0, 2], [1, 3]]


def test_no_groups_are_one_of_all():
    assert parse_groups("{}", 4).tolist() == [[0, 1, 2, 3]]


def test_unequal_groups_are_cut():
    assert parse_groups("{{0,1,2},{3,4}}", 5).shape == (2, 2)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="unknown way"):
        parse_groups("flattened<3>", 4)


def test_pairs():
    assert parse_pairs("{{0,1},{1,2},{2,0}}").tolist() == [[0, 1], [1, 2], [2, 0]]
    assert parse_pairs("").shape == (0, 2)
