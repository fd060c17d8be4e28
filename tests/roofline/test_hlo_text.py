"""The text of a program is read: shapes, operands, called computations, and what newer compilers put between lines."""

import pytest

from t5x_scale.roofline.hlo import HOST, parse, parse_instruction, parse_shape

PROGRAM = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[2,4]{1,0})->f32[2,4]{1,0}}

%add.1 (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(%x, %y)
}

ENTRY %main.5_spmd (param: f32[2,4]) -> (f32[2,4], f32[]) {
  %param = f32[2,4]{1,0:T(8,128)} parameter(0), sharding={devices=[2,1]<=[2]}, metadata={op_name="x[\\'a\\']"}
  %kernel.1 = f32[2,4]{1,0:T(8,128)} custom-call(%param), custom_call_target="k", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="a/b (c)/d" stack_frame_id=3}, backend_config={"estimated_cycles":"12"}
  %all-reduce.1 = f32[2,4]{1,0} all-reduce(%kernel.1), replica_groups={{0,1}}, to_apply=%add.1
  %constant.2 = f32[]{:T(128)} constant(-3)
  ROOT %tuple.3 = (f32[2,4]{1,0:T(8,128)}, /*index=1*/f32[]{:T(128)}) tuple(%all-reduce.1, /*index=1*/%constant.2)
}
"""


def test_a_program_is_read():
    module = parse(PROGRAM)
    assert module.entry == "main.5_spmd"
    assert [i.opcode for i in module.main.instructions] == [
        "parameter",
        "custom-call",
        "all-reduce",
        "constant",
        "tuple",
    ]
    root = module.main.root
    assert root.is_root
    assert root.operands == ("all-reduce.1", "constant.2")
    assert root.bytes == 36
    reduction = module.main.find("all-reduce.1")
    assert module.called(reduction, "to_apply").root.opcode == "add"
    assert module.main.operand_bytes(reduction) == 32


def test_what_stands_on_lines_of_its_own_belongs_to_its_instruction():
    kernel = parse(PROGRAM).main.find("kernel.1")
    assert kernel.op_name == "a/b (c)/d"
    assert kernel.estimated_cycles == 12
    assert kernel.find(r"block_q\W+(\d+)") == "512"


@pytest.mark.parametrize(
    ("text", "dims", "size"),
    [
        ("bf16[4,4096,128]{2,1,0:T(8,128)(2,1)}", (4, 4096, 128), 4 * 4096 * 128 * 2),
        ("f32[]", (), 4),
        ("pred[3]{0}", (3,), 3),
        ("s4[3]{0:E(4)}", (3,), 2),
        ("f8e4m3fn[2,2]", (2, 2), 4),
        ("f32[<=8,2]", (8, 2), 64),
        ("token[]", (), 0),
    ],
)
def test_shapes(text, dims, size):
    (array,) = parse_shape(text)
    assert array.dims == dims
    assert array.bytes == size


def test_memory_spaces():
    arrays = parse_shape("(f32[8]{0:T(256)S(5)}, f32[8]{0:T(256)S(1)}, f32[8]{0:T(256)})")
    assert [array.space for array in arrays] == [HOST, 1, 0]


def test_names_without_a_percent_sign_and_operands_with_shapes():
    line = "  ROOT dot.3 = f32[2,3]{1,0} dot(f32[2,4]{1,0} a.1, f32[4,3]{1,0} b), lhs_contracting_dims={1}"
    instruction = parse_instruction(line)
    assert (instruction.name, instruction.operands) == ("dot.3", ("a.1", "b"))


def test_branches_are_called():
    line = "  %c = f32[] conditional(%i, %a, %b), branch_computations={%one, %two}"
    assert set(parse_instruction(line).called.values()) == {"one", "two"}


def test_a_line_that_is_no_instruction_is_left_out():
    assert parse_instruction("  // a comment") is None
    assert parse_instruction("  %x = something") is None


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no entry computation"):
        parse("nothing here")
