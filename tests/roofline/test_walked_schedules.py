"""What overlaps, what is exposed, what loops multiply: exact sums for a machine of round numbers."""

import dataclasses

import numpy as np
import pytest

from t5x_scale.roofline.chips import CHIPS
from t5x_scale.roofline.hlo import parse
from t5x_scale.roofline.kernels import KernelModel
from t5x_scale.roofline.links import Constants, Machine
from t5x_scale.roofline.schedule import Scheduler

# A cycle is a microsecond, a link carries a megabyte a second, nothing is lost.
CHIP = dataclasses.replace(
    CHIPS["v5p"], clock=1e6, link_bandwidth=1e6, host_bandwidth=1e6, dcn_bandwidth=1e6, peak_flops=1e12
)
IDEAL = Constants(1.0, 1.0, 0.0, 0.0, product_efficiency=1.0, vector_stretch=1.0)


def walk(text, torus=(4, 4, 4), slices=1, constants=IDEAL):
    one = np.array(list(np.ndindex(*torus)))
    machine = Machine(
        CHIP,
        ("data", "fsdp"),
        (slices, len(one)),
        np.concatenate([one] * slices),
        np.repeat(np.arange(slices), len(one)),
        torus,
    )
    module = parse(text)
    return Scheduler(module, machine, constants, KernelModel()).walk(module.main)


def work(name, cycles, operand="x"):
    return (
        f"  %{name} = f32[750000]{{0}} fusion(%{operand}), kind=kLoop, calls=%f, "
        f'backend_config={{"estimated_cycles":"{cycles}"}}\n'
    )


HEAD = """HloModule m, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%f (p: f32[750000]) -> f32[750000] {
  ROOT %p = f32[750000]{0} parameter(0)
}

"""
ENTRY = "ENTRY %main (x: f32[750000]) -> f32[750000] {\n  %x = f32[750000]{0} parameter(0)\n"
# 3 MB over the 6 directions of a cube: 2 * 63 / 64 * 0.5 s.
REDUCED = 2 * 63 / 64 * 0.5


def test_a_collective_that_is_no_pair_is_exposed():
    text = HEAD + ENTRY + work("a", 1_000_000)
    text += "  ROOT %r = f32[750000]{0} all-reduce(%a), replica_groups=[1,64]<=[64], to_apply=%add\n}\n"
    result = walk(text)
    assert result.seconds == pytest.approx(1.0 + REDUCED)
    assert result.uses["r"].exposed == pytest.approx(REDUCED)
    assert result.uses["r"].collective.axes == ("fsdp",)
    assert result.uses["r"].collective.links == "ICI xyz"
    assert dict(result.busy) == pytest.approx({"other": 1.0})


@pytest.mark.parametrize(("cycles", "exposed"), [(2_000_000, 0.0), (500_000, REDUCED - 0.5), (0, REDUCED)])
def test_a_pair_is_exposed_as_far_as_work_does_not_hide_it(cycles, exposed):
    text = HEAD + ENTRY
    text += "  %s = f32[750000]{0} all-reduce-start(%x), replica_groups=[1,64]<=[64], to_apply=%add\n"
    text += work("a", cycles)
    text += "  ROOT %r = f32[750000]{0} all-reduce-done(%s)\n}\n"
    result = walk(text)
    assert result.uses["s"].exposed == pytest.approx(exposed)
    assert result.seconds == pytest.approx(cycles / 1e6 + exposed)


def test_estimates_beyond_the_time_of_a_product_are_stretched():
    fused = """%g (a: bf16[1000,1000], b: bf16[1000,1000]) -> bf16[1000,1000] {
  %a = bf16[1000,1000]{1,0} parameter(0)
  %b = bf16[1000,1000]{1,0} parameter(1)
  ROOT %c = bf16[1000,1000]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

"""
    text = HEAD + fused + ENTRY.replace("f32[750000]{0}", "bf16[1000,1000]{1,0}")
    text += "  ROOT %p = bf16[1000,1000]{1,0} fusion(%x, %x), kind=kOutput, calls=%g, "
    text += 'backend_config={"estimated_cycles":"4000"}\n}\n'
    # 2e9 FLOPs at 1e12 a second are 2 ms; the compiler says 4, of which the rest is what is fused with the product.
    assert walk(text).seconds == pytest.approx(0.004)
    assert walk(text, constants=dataclasses.replace(IDEAL, vector_stretch=0.5)).seconds == pytest.approx(0.003)
    assert walk(text, constants=dataclasses.replace(IDEAL, product_efficiency=0.8)).seconds == pytest.approx(0.0045)
    # Nothing is faster than the peak.
    text = text.replace("4000", "1000")
    assert walk(text).seconds == pytest.approx(0.002)


def test_two_transfers_over_the_same_links_follow_each_other():
    text = HEAD + ENTRY
    for name in ("s", "t"):
        text += f"  %{name} = f32[750000]{{0}} all-reduce-start(%x), replica_groups=[1,64]<=[64], to_apply=%add\n"
    text += "  %q = f32[750000]{0} all-reduce-done(%s)\n  ROOT %r = f32[750000]{0} all-reduce-done(%t)\n}\n"
    assert walk(text).seconds == pytest.approx(2 * REDUCED)


def test_loops_multiply():
    body = (
        "%body (p: (s32[], f32[750000])) -> (s32[], f32[750000]) {\n"
        "  %p = (s32[], f32[750000]{0}) parameter(0)\n"
        "  %i = s32[] get-tuple-element(%p), index=0\n"
        "  %x = f32[750000]{0} get-tuple-element(%p), index=1\n"
        + work("a", 1_000_000)
        + "  %r = f32[750000]{0} all-reduce(%a), replica_groups=[1,64]<=[64], to_apply=%add\n"
        "  ROOT %t = (s32[], f32[750000]{0}) tuple(%i, %r)\n}\n\n"
        "%cond (p: (s32[], f32[750000])) -> pred[] {\n"
        "  %p = (s32[], f32[750000]{0}) parameter(0)\n"
        "  ROOT %never = pred[] constant(false)\n}\n\n"
    )
    loop = (
        "  %zero = s32[] constant(0)\n  %state = (s32[], f32[750000]{0}) tuple(%zero, %x)\n"
        "  %w = (s32[], f32[750000]{0}) while(%state), condition=%cond, body=%body"
    )
    end = "\n  ROOT %y = f32[750000]{0} get-tuple-element(%w), index=1\n}\n"
    known = walk(HEAD + body + ENTRY + loop + ', backend_config={"known_trip_count":{"n":"5"}}' + end)
    assert known.seconds == pytest.approx(5 * (1 + REDUCED))
    assert known.uses["r"].count == 5
    assert known.work["a"].seconds == pytest.approx(5.0)
    assert known.unknown_loops == []
    unknown = walk(HEAD + body + ENTRY + loop + end)
    assert unknown.seconds == pytest.approx(1 + REDUCED)
    assert unknown.unknown_loops == ["w"]
    usual = walk(HEAD + body + ENTRY + loop + ', metadata={op_name="experts/about_3_turns/while"}' + end)
    assert usual.seconds == pytest.approx(3 * (1 + REDUCED))
    assert (usual.unknown_loops, usual.usual_loops) == ([], ["experts/about_3_turns/while"])


def test_of_the_branches_of_a_condition_the_dearest_counts():
    branches = "".join(
        f"%{name} (x: f32[750000]) -> f32[750000] {{\n  %x = f32[750000]{{0}} parameter(0)\n"
        + work(f"work_{name}", cycles).replace("  %work", "  ROOT %work")
        + "}\n\n"
        for name, cycles in (("cheap", 1_000_000), ("dear", 3_000_000))
    )
    text = HEAD + branches + ENTRY + "  %i = s32[] constant(0)\n"
    text += "  ROOT %c = f32[750000]{0} conditional(%i, %x, %x), branch_computations={%cheap, %dear}\n}\n"
    assert walk(text).seconds == pytest.approx(3.0)


def test_a_reduction_of_which_each_keeps_its_part():
    fused = (
        "%all-reduce-scatter (p: f32[750000]) -> f32[11719] {\n"
        "  %p = f32[750000]{0} parameter(0)\n"
        "  %r = f32[750000]{0} all-reduce(%p), replica_groups=[1,64]<=[64], to_apply=%add\n"
        "  %zero = s32[] constant(0)\n"
        "  ROOT %part = f32[11719]{0} dynamic-slice(%r, %zero), dynamic_slice_sizes={11719}\n}\n\n"
    )
    text = HEAD + fused + ENTRY
    text += "  ROOT %s = f32[11719]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter\n}\n"
    result = walk(text)
    assert result.uses["s"].collective.kind == "reduce-scatter"
    assert result.seconds == pytest.approx(REDUCED / 2)


STEPS = """%start (p: f32[750000]) -> (f32[750000], f32[48000000], u32[]) {
  %p = f32[750000]{0} parameter(0)
  %g = f32[48000000]{0} all-gather(%p), channel_id=9, replica_groups=[1,64]<=[64], dimensions={0}, frontend_attributes={chain_id="1"}
  ROOT %c = (f32[750000]{0}, f32[48000000]{0}, u32[]{:S(2)}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: f32[750000], q: f32[750000]) -> (f32[750000], f32[48000000]) {
  %p = f32[750000]{0} parameter(0)
  %q = f32[750000]{0} parameter(1)
  %g = f32[48000000]{0} all-gather(%p), channel_id=9, replica_groups=[1,64]<=[64], dimensions={0}, frontend_attributes={chain_id="1"}
  ROOT %t = (f32[750000]{0}, f32[48000000]{0}) tuple(%q, %g)
}

%done (p: f32[750000]) -> f32[48000000] {
  %p = f32[750000]{0} parameter(0)
  %g = f32[48000000]{0} all-gather(%p), channel_id=9, replica_groups=[1,64]<=[64], dimensions={0}, frontend_attributes={chain_id="1"}
  ROOT %c = f32[48000000]{0} custom-call(%p, %g), custom_call_target="AsyncCollectiveDone"
}

"""  # noqa: E501


@pytest.mark.parametrize(("cycles", "exposed"), [(10_000_000, 63 / 64 * 32 - 10), (40_000_000, 0.0)])
def test_a_collective_in_steps_counts_once_and_runs_beside_the_work_between(cycles, exposed):
    text = HEAD + STEPS + ENTRY
    text += "  %s = (f32[750000]{0}, f32[48000000]{0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%start\n"
    text += "  %p = f32[750000]{0} get-tuple-element(%s), index=0\n"
    text += "  %w = (f32[750000]{0}, f32[48000000]{0}) fusion(%p, %x), kind=kOutput, calls=%async_collective_fusion.1, "
    text += f'backend_config={{"estimated_cycles":"{cycles}"}}\n'
    text += "  %d = f32[48000000]{0} fusion(%p), kind=kCustom, calls=%done\n"
    text += "  ROOT %y = f32[750000]{0} get-tuple-element(%w), index=0\n}\n"
    result = walk(text)
    assert list(result.uses) == ["s"]
    assert result.uses["s"].collective.payload == 48e6 * 4
    assert result.uses["s"].exposed == pytest.approx(exposed)
    assert result.seconds == pytest.approx(cycles / 1e6 + exposed)


def permute(name, shift):
    pairs = ",".join(f"{{{16 * i},{16 * ((i + shift) % 4)}}}" for i in range(4))
    return f"  %{name} = f32[750000]{{0}} collective-permute-start(%x), source_target_pairs={{{pairs}}}\n"


@pytest.mark.parametrize(("shifts", "seconds"), [((1,), 3.0), ((1, 1), 6.0), ((1, 3), 3.0), ((2,), 6.0)])
def test_permutations_share_links_of_the_same_direction(shifts, seconds):
    text = HEAD + ENTRY + "".join(permute(f"s{i}", shift) for i, shift in enumerate(shifts))
    text += "".join(f"  %d{i} = f32[750000]{{0}} collective-permute-done(%s{i})\n" for i in range(len(shifts)))
    result = walk(text + "  ROOT %r = f32[750000]{0} copy(%d0)\n}\n")
    assert sum(use.exposed for use in result.uses.values()) == pytest.approx(seconds)


def test_a_small_transfer_does_not_wait_for_a_large_one():
    text = HEAD + ENTRY
    text += "  %s = f32[750000]{0} all-reduce-start(%x), replica_groups=[1,64]<=[64], to_apply=%add\n"
    text += "  %few = f32[8]{0} slice(%x), slice={[0:8]}\n"
    text += "  ROOT %r = f32[8]{0} all-reduce(%few), replica_groups=[1,64]<=[64], to_apply=%add\n}\n"
    assert walk(text).uses["r"].exposed < 1e-4


def test_links_limit_how_fast_turns_of_a_loop_follow_each_other():
    text = HEAD + ENTRY
    text += "  %s = f32[750000]{0} all-reduce-start(%x), replica_groups=[1,64]<=[64], to_apply=%add\n"
    text += '  ROOT %r = f32[750000]{0} copy(%x), backend_config={"estimated_cycles":"1000"}\n}\n'
    result = walk(text)
    assert result.seconds == pytest.approx(REDUCED)
    assert result.uses["s"].exposed == pytest.approx(REDUCED - 0.001)


def test_copies_to_the_host_run_beside_work():
    text = HEAD + ENTRY
    text += "  %s = (f32[750000]{0:S(5)}, f32[750000]{0}, u32[]{:S(2)}) copy-start(%x)\n"
    text += work("a", 1_000_000)
    text += "  ROOT %r = f32[750000]{0:S(5)} copy-done(%s)\n}\n"
    result = walk(text)
    assert result.seconds == pytest.approx(3.0)
    assert result.host_exposed == pytest.approx(2.0)


def test_what_goes_to_the_host_does_not_wait_for_what_comes():
    """3 MB at 1 MB/s each way beside 1 s of work: both ways take as long as one, twice the same way twice as long."""
    left = "(f32[750000]{0:S(5)}, f32[750000]{0}, u32[]{:S(2)}) copy-start(%x)"
    came = "(f32[750000]{0}, f32[750000]{0:S(5)}, u32[]{:S(2)}) copy-start(%y)"
    for second, seconds in ((came, 3.0), (left, 6.0)):
        text = HEAD + ENTRY + f"  %s = {left}\n  %t = {second}\n" + work("a", 1_000_000)
        text += "  %d = f32[750000]{0:S(5)} copy-done(%s)\n  ROOT %r = f32[750000]{0} copy-done(%t)\n}\n"
        assert walk(text).seconds == pytest.approx(seconds)


def test_of_a_stack_on_the_host_only_the_layer_is_copied():
    stack, layer, index = "f32[32,750000]{1,0:S(5)}", "f32[1,750000]{1,0}", "s32[]{:T(128)}"
    kept = f"(({stack}, {layer}, {index}, {index}), {stack}, u32[]{{:S(2)}}) dynamic-update-slice-start(%x)"
    fetched = f"(({stack}, {index}, {index}), {layer}, u32[]{{:S(2)}}) dynamic-slice-start(%x)"
    for begin, moved in ((kept, stack), (fetched, layer)):
        end = "dynamic-update-slice-done" if begin == kept else "dynamic-slice-done"
        text = HEAD + ENTRY + f"  %s = {begin}\n" + work("a", 1_000_000)
        result = walk(text + f"  ROOT %r = {moved} {end}(%s)\n}}\n")
        assert result.seconds == pytest.approx(3.0)
        assert result.host_exposed == pytest.approx(2.0)


def test_a_transfer_between_slices_ends_with_its_receipt():
    met = 'frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    met += '_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_transfer_type="ALL_REDUCE"}'
    text = HEAD + ENTRY + "  %t = token[] after-all()\n"
    text += f"  %s = (f32[750000]{{0}}, u32[], token[]) send(%x, %t), channel_id=2, is_host_transfer=true, {met}\n"
    text += f"  %v = (f32[750000]{{0}}, u32[], token[]) recv(%t), channel_id=1, is_host_transfer=true, {met}\n"
    text += work("a", 1_000_000)
    text += "  %sd = token[] send-done(%s), channel_id=2\n"
    text += "  %vd = (f32[750000]{0}, token[]) recv-done(%v), channel_id=1\n"
    text += "  ROOT %r = f32[750000]{0} get-tuple-element(%vd), index=0\n}\n"
    result = walk(text, slices=2)
    (use,) = result.uses.values()
    assert (use.collective.kind, use.collective.axes, use.collective.links) == ("all-reduce", ("dcn",), "DCN")
    assert use.exposed == pytest.approx(3.0 - 1.0)


# What TPU7x gives to its sparse cores: one call around a collective, one around another call of a plain copy.
SPARSE = """%gathers (p: f32[750000], t: token[]) -> f32[48000000] {
  %t = token[] parameter(1)
  %p = f32[750000]{0} parameter(0)
  ROOT %g = f32[48000000]{0} all-gather(%p), replica_groups=[1,64]<=[64], dimensions={0}
}, execution_thread="sparsecore"

%copies (p: f32[750000]) -> f32[750000] {
  %p = f32[750000]{0} parameter(0)
  ROOT %c = f32[750000]{0} copy(%p)
}, execution_thread="sparsecore"

%calls (p: f32[750000], t: token[]) -> f32[750000] {
  %p = f32[750000]{0} parameter(0)
  %t = token[] parameter(1)
  %s = ((f32[750000]{0}), f32[750000]{0}, u32[]) call-start(%p), async_execution_thread="sparsecore", to_apply=%copies
  ROOT %d = f32[750000]{0} call-done(%s)
}, execution_thread="sparsecore"

"""
# 192 MB over the 6 directions of a cube.
GATHERED = 63 / 64 * 192 / 6


@pytest.mark.parametrize(("cycles", "exposed"), [(40_000_000, 0.0), (5_000_000, GATHERED - 5.0)])
def test_collectives_of_another_core_run_beside_the_stream(cycles, exposed):
    text = HEAD + SPARSE + ENTRY
    text += "  %s = ((f32[750000]{0}, token[]), f32[48000000]{0}) call-start(%x), to_apply=%gathers\n"
    text += work("a", cycles)
    text += "  ROOT %r = f32[48000000]{0} call-done(%s)\n}\n"
    result = walk(text)
    use = result.uses["s"]
    assert (use.collective.kind, use.collective.payload, use.collective.is_async) == ("all-gather", 192e6, True)
    assert use.exposed == pytest.approx(exposed)
    assert result.seconds == pytest.approx(cycles / 1e6 + exposed)


@pytest.mark.parametrize("cycles", [0, 10])
def test_copies_of_another_core_take_the_time_of_the_memory(cycles):
    text = HEAD + SPARSE + ENTRY
    text += "  %s = ((f32[750000]{0}, token[]), f32[750000]{0}) call-start(%x), to_apply=%calls\n"
    text += work("a", cycles)
    text += "  ROOT %r = f32[750000]{0} call-done(%s)\n}\n"
    copied = 2 * 3e6 / CHIP.hbm_bandwidth
    result = walk(text)
    assert result.seconds == pytest.approx(max(copied, cycles / 1e6))
    assert dict(result.busy) == pytest.approx({"other": result.seconds})
    assert result.host_exposed == 0


def test_a_part_that_is_fetched_beforehand_takes_no_time_of_the_stream():
    text = HEAD + ENTRY
    text += "  %s = ((f32[750000]{0}), f32[1000]{0:S(1)}, s32[]) slice-start(%x), slice={[0:1000]}\n"
    text += "  ROOT %r = f32[1000]{0:S(1)} slice-done(%s)\n}\n"
    assert walk(text).seconds == 0
