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


def test_products_and_work_on_scores_follow_each_other():
    computation = kernel("splash_mha_fwd_no_residuals", ROWS)
    cost = kernel_cost(computation, computation.root, CHIP, KernelModel(active_share=1.0, vector_operations=10.0))
    scores = 16 * 2048 * 2048
    expected = 2 * SQUARE / CHIP.peak_flops + scores * 10.0 / (2 * 4096 * CHIP.clock)
    assert cost.seconds == pytest.approx(expected)


def test_a_narrow_head_leaves_part_of_a_wide_matrix_unit_idle():
    computation = kernel("splash_mha_fwd_no_residuals", ROWS)
    model = KernelModel(active_share=1.0, vector_operations=0.0)
    cost = kernel_cost(computation, computation.root, CHIPS["v6e"], model)
    assert cost.seconds == pytest.approx(2 * 2 * SQUARE / CHIPS["v6e"].peak_flops)


def test_other_custom_calls_are_no_kernels():
    computation = kernel("splash", ROWS)
    assert is_kernel(computation.root)
    assert not is_kernel(computation.instructions[0])
