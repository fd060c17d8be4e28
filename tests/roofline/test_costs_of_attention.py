"""Kernels of which the compiler knows nothing: recognised, counted from shapes, or believed."""

import pytest

from t5x_scale.roofline.chips import CHIPS
from t5x_scale.roofline.hlo import parse
from t5x_scale.roofline.kernels import KernelModel, is_kernel, kernel_cost

CHIP = CHIPS["v5p"]
BLOCKS = '"xprof_metadata":"{\\"block_q\\": 512, \\"block_kv\\": 512, \\"block_q_dkv\\": 256, \\"block_kv_dkv\\": 512}"'


def kernel(name, operands, extra=""):
    """A program of one Pallas call: {operand: shape}."""
    parameters = "".join(f"  %{key} = {shape} parameter({i})\n" for i, (key, shape) in enumerate(operands.items()))
    call = (
        f"  ROOT %k = bf16[16,2048,128]{{2,1,0}} custom-call({', '.join('%' + key for key in operands)}), "
        f'custom_call_target="tpu_custom_call", {extra}metadata={{op_name="jit(f)/layer/{name}/pallas_call"}}\n'
    )
    return parse("HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {\n" + parameters + call + "}\n").main


def flops_of(computation, model=None):
    return kernel_cost(computation, computation.root, CHIP, model or KernelModel()).flops


ROWS = {"q": "bf16[16,2048,128]{2,1,0}", "k": "bf16[16,2048,128]{2,1,0}", "v": "bf16[16,2048,128]{2,1,0}"}
SQUARE = 2 * 16 * 2048 * 2048 * 128


@pytest.mark.parametrize(("phase", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_an_attention_kernel_is_counted_from_its_shapes(phase, products):
    computation = kernel(f"splash_mha_{phase}_no_residuals", ROWS)
    assert flops_of(computation, KernelModel(active_share=1.0)) == products * SQUARE
    assert flops_of(computation, KernelModel(active_share=0.5)) == products * SQUARE / 2


def test_keys_shared_by_all_heads_count_for_each():
    shared = ROWS | {"k": "bf16[2048,128]{1,0}", "v": "bf16[2048,128]{1,0}"}
    assert flops_of(kernel("splash_mqa_fwd_no_residuals", shared), KernelModel(active_share=1.0)) == 2 * SQUARE


def test_rows_behind_one_another_visit_few_blocks():
    # 24 rows of 2048 in one: each of 96 query blocks visits the 4 blocks of its own row, of which 10 of 16 are causal.
    rows = {"table": "s32[1,96,4]{2,1,0}"} | dict.fromkeys("qkv", "bf16[16,49152,128]{2,1,0}")
    metadata = "frontend_attributes={kernel_metadata={" + BLOCKS + "}}, "
    computation = kernel("splash_mha_fwd_residuals", rows, metadata)
    assert flops_of(computation) == 24 * 2 * SQUARE * 10 / 16
    backward = kernel("splash_mha_dkv_no_residuals", rows | {"table": "s32[1,4,192]{2,1,0}"}, metadata)
    assert flops_of(backward) == 24 * 4 * SQUARE * 10 / 16


def test_a_stated_cost_is_believed_of_other_kernels():
    stated = 'backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000","bytes_accessed":"10"}}}, '
    assert flops_of(kernel("anything", ROWS, stated)) == 1000
    assert flops_of(kernel("splash_mha_fwd", ROWS, stated), KernelModel(active_share=1.0)) == 2 * SQUARE


def test_a_kernel_that_is_not_known_costs_its_bytes():
    computation = kernel("mystery", ROWS)
    cost = kernel_cost(computation, computation.root, CHIP, KernelModel())
    assert cost.name == "mystery"
    assert cost.flops == 0
    assert cost.seconds == pytest.approx(4 * 16 * 2048 * 128 * 2 / CHIP.hbm_bandwidth)


def seconds_of(computation, chip=CHIP, **model):
    return kernel_cost(computation, computation.root, chip, KernelModel(**model)).seconds


def test_work_on_scores_goes_on_beside_a_share_of_the_products():
    computation = kernel("splash_mha_fwd_no_residuals", ROWS)
    products = 2 * SQUARE / CHIP.peak_flops
    vector = 16 * 2048 * 2048 * 10.0 / (2 * 4096 * CHIP.clock)
    model = {"active_share": 1.0, "vector_operations": 10.0}
    assert seconds_of(computation, **model, hidden_share=0.0) == pytest.approx(products + vector)
    assert seconds_of(computation, **model, hidden_share=0.25) == pytest.approx(0.75 * products + vector)
    assert seconds_of(computation, **model, hidden_share=9.0) == pytest.approx(products)


def test_every_visit_of_a_block_takes_time_whether_it_is_computed_or_not():
    rows = {"table": "s32[1,4,4]{2,1,0}"} | ROWS
    metadata = "frontend_attributes={kernel_metadata={" + BLOCKS + "}}, "
    with_table = kernel("splash_mha_fwd_residuals", rows, metadata)
    more = seconds_of(with_table, visit_cycles=1000.0) - seconds_of(with_table, visit_cycles=0.0)
    # 16 heads of 4 x 4 blocks on two cores.
    assert more == pytest.approx(16 * 16 * 1000 / (2 * CHIP.clock))


# Cycles of a core for a block of 512 x 512 with heads of 128: bundles of what libtpu 0.0.42 makes of splash, without
# what runs once a visit. Products at the peak, where bundles are fewer.
SCHEDULED = {
    ("v5p", "fwd"): 1164, ("v5p", "dq"): 1536, ("v5p", "dkv"): 2048,
    ("v6e", "fwd"): 899, ("v6e", "dq"): 1016, ("v6e", "dkv"): 1284,
}  # fmt: skip


@pytest.mark.parametrize(("name", "phase"), SCHEDULED)
def test_a_block_takes_about_what_the_compiler_schedules(name, phase):
    chip = CHIPS[name]
    computation = kernel(f"splash_mha_{phase}_no_residuals", ROWS)
    seconds = seconds_of(computation, chip, active_share=1.0)
    cycles = seconds * chip.clock * chip.cores / (16 * 4 * 4)
    assert cycles == pytest.approx(SCHEDULED[name, phase], rel=0.02 if name == "v5p" else 0.12)


@pytest.mark.parametrize(("gradients", "products"), [(2, 4), (3, 5)])
def test_a_kernel_of_all_gradients_makes_one_product_more(gradients, products):
    results = ["f32[512,128]{1,0}"] * 2 + ["bf16[16,2048,128]{2,1,0}"] * gradients
    operands = "".join(f"  %{key} = {shape} parameter({i})\n" for i, (key, shape) in enumerate(ROWS.items()))
    text = (
        "HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {\n"
        + operands
        + f"  ROOT %call = ({', '.join(results)}) custom-call(%q, %k, %v), "
        + 'custom_call_target="tpu_custom_call", '
        + 'metadata={op_name="jit(f)/splash_mha_dkv_no_residuals/pallas_call"}\n}\n'
    )
    assert flops_of(parse(text).main, KernelModel(active_share=1.0)) == products * SQUARE


def test_a_narrow_head_leaves_part_of_a_wide_matrix_unit_idle():
    computation = kernel("splash_mha_fwd_no_residuals", ROWS)
    seconds = seconds_of(computation, CHIPS["v6e"], active_share=1.0, vector_operations=0.0)
    assert seconds == pytest.approx(2 * 2 * SQUARE / CHIPS["v6e"].peak_flops)


def test_other_custom_calls_are_no_kernels():
    computation = kernel("splash", ROWS)
    assert is_kernel(computation.root)
    assert not is_kernel(computation.instructions[0])
