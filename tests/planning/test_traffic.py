"""Bytes and FLOPs counted in small programs, as XLA prints them."""

from mosaicbert_jax.planning.traffic import Shape, Work, parse

MIB = 2**20


def work_of(text: str) -> dict[str, Work]:
    return {work.instruction.name: work for work in parse(text).work()}


def test_shapes():
    assert Shape("bf16", (256, 128)).bytes == 65_536
    assert Shape("pred", (3,)).bytes == 3
    assert Shape("f32", ()).bytes == 4
    assert Shape("f8e4m3fn", (10,)).bytes == 10
    assert Shape("s4", (3,)).bytes == 2
    assert Shape("token", ()).bytes == 0
    assert str(Shape("f32", (2, 3))) == "f32[2,3]"


def test_a_fusion_reads_its_operands_and_writes_its_results_once():
    work = work_of("""
%fused (a: f32[1024,256], b: f32[256]) -> (f32[1024,256], bf16[1024,256]) {
  %a = f32[1024,256]{1,0} parameter(0)
  %b = f32[256]{0} parameter(1)
  %wide = f32[1024,256]{1,0} broadcast(%b), dimensions={1}
  %sum = f32[1024,256]{1,0} add(%a, %wide), metadata={op_name="jit(f)/add" stack_frame_id=2}
  %narrow = bf16[1024,256]{1,0} convert(%sum)
  ROOT %both = (f32[1024,256]{1,0}, bf16[1024,256]{1,0}) tuple(%sum, /*index=1*/%narrow)
}

ENTRY %main (x: f32[1024,256], y: f32[256]) -> bf16[1024,256] {
  %x = f32[1024,256]{1,0} parameter(0)
  %y = f32[256]{0} parameter(1)
  %add = (f32[1024,256]{1,0}, bf16[1024,256]{1,0}) fusion(%x, %y), kind=kLoop, calls=%fused
  ROOT %second = bf16[1024,256]{1,0} get-tuple-element(%add), index=1
}
""")
    assert list(work) == ["add"]
    assert work["add"].read == MIB + 1024
    assert work["add"].written == MIB + MIB // 2
    assert work["add"].root_opcodes == ("add",)
    assert work["add"].fused[3].op_name == "jit(f)/add"


def test_of_an_operand_that_is_sliced_only_the_slice_is_read():
    work = work_of("""
%taking (table: f32[4096,64], rows: s32[8,1]) -> f32[8,64] {
  %table = f32[4096,64]{1,0} parameter(0)
  %rows = s32[8,1]{1,0} parameter(1)
  %narrow = bf16[4096,64]{1,0} convert(%table)
  %taken = bf16[8,64]{1,0} gather(%narrow, %rows), offset_dims={1}
  ROOT %wide = f32[8,64]{1,0} convert(%taken)
}

%slicing (x: f32[4096,64]) -> f32[4096,64] {
  %x.1 = f32[4096,64]{1,0} parameter(0)
  %first = f32[1,64]{1,0} slice(%x.1), slice={[0:1], [0:64]}
  %all = f32[4096,64]{1,0} broadcast(%first), dimensions={0,1}
  ROOT %difference = f32[4096,64]{1,0} subtract(%x.1, %all)
}

ENTRY %main (x: f32[4096,64], rows: s32[8,1]) -> f32[8,64] {
  %x = f32[4096,64]{1,0} parameter(0)
  %r = s32[8,1]{1,0} parameter(1)
  %lookup = f32[8,64]{1,0} fusion(%x, %r), kind=kLoop, calls=%taking
  ROOT %minus = f32[4096,64]{1,0} fusion(%x), kind=kLoop, calls=%slicing
}
""")
    assert work["lookup"].read == 8 * 64 * 4 + 8 * 4
    assert work["lookup"].root_opcodes == ("gather",)
    assert work["minus"].read == MIB  # sliced, but read whole as well


def test_an_update_in_place_moves_the_update():
    """In a loop of 7 rounds, which also slices what it goes over."""
    work = work_of("""
%put (into: f32[7,1024], x: f32[1024], i: s32[]) -> f32[7,1024] {
  %into = f32[7,1024]{1,0} parameter(0)
  %x = f32[1024]{0} parameter(1)
  %i = s32[] parameter(2)
  %row = f32[1,1024]{1,0} bitcast(%x)
  %zero = s32[] constant(0)
  ROOT %done = f32[7,1024]{1,0} dynamic-update-slice(%into, %row, %i, %zero)
}

%body (state: (s32[], f32[7,1024], f32[7,1024])) -> (s32[], f32[7,1024], f32[7,1024]) {
  %state = (s32[], f32[7,1024]{1,0}, f32[7,1024]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state), index=0
  %from = f32[7,1024]{1,0} get-tuple-element(%state), index=1
  %to = f32[7,1024]{1,0} get-tuple-element(%state), index=2
  %none = s32[] constant(0)
  %one = f32[1,1024]{1,0} dynamic-slice(%from, %i.1, %none), dynamic_slice_sizes={1,1024}
  %line = f32[1024]{0} bitcast(%one)
  %next = f32[7,1024]{1,0} fusion(%to, %line, %i.1), kind=kLoop, calls=%put
  ROOT %out = (s32[], f32[7,1024]{1,0}, f32[7,1024]{1,0}) tuple(%i.1, %from, %next)
}

ENTRY %main (s: (s32[], f32[7,1024], f32[7,1024])) -> (s32[], f32[7,1024], f32[7,1024]) {
  %s = (s32[], f32[7,1024]{1,0}, f32[7,1024]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[7,1024]{1,0}, f32[7,1024]{1,0}) while(%s), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"7"}}
}
""")
    assert {name: one.times for name, one in work.items()} == {"one": 7, "next": 7}
    assert (work["one"].read, work["one"].written) == (7 * (4096 + 4 + 4), 7 * 4096)
    assert (work["next"].read, work["next"].written) == (7 * (4096 + 4), 7 * 4096)


def test_of_a_conditional_the_heaviest_branch_counts():
    work = work_of("""
%nothing (x: f32[1024]) -> f32[1024] {
  ROOT %x.1 = f32[1024]{0} parameter(0)
}

%something (x: f32[1024]) -> f32[1024] {
  %x.2 = f32[1024]{0} parameter(0)
  ROOT %minus = f32[1024]{0} negate(%x.2)
}

ENTRY %main (p: s32[], x: f32[1024]) -> f32[1024] {
  %p = s32[] parameter(0)
  %x = f32[1024]{0} parameter(1)
  ROOT %y = f32[1024]{0} conditional(%p, %x, %x), branch_computations={%nothing, %something}
}
""")
    assert list(work) == ["minus"]
    assert work["minus"].bytes == 2 * 4096


def test_a_matrix_product_has_flops_and_its_workspace_moves_nothing():
    work = work_of("""
ENTRY %main (x: bf16[64,32], w: bf16[32,16]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[32,16]{1,0} parameter(1)
  %product = (bf16[64,16]{1,0}, s8[4194304]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":\
{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %y = bf16[64,16]{1,0} get-tuple-element(%product), index=0
}
""")
    product = work["product"]
    assert product.instruction.is_matmul
    assert product.flops == 2 * 64 * 32 * 16
    assert product.read == 2 * (64 * 32 + 32 * 16)
    assert product.written == 2 * 64 * 16


def test_a_kernel_reads_an_operand_given_twice_once():
    work = work_of("""
ENTRY %main (qkv: bf16[1024,3]) -> bf16[1024] {
  %qkv = bf16[1024,3]{1,0} parameter(0)
  ROOT %out = bf16[1024]{0} custom-call(%qkv, %qkv, %qkv), custom_call_target="__gpu$xla.gpu.triton"
}
""")
    assert work["out"].instruction.is_kernel
    assert work["out"].bytes == 2 * (3 * 1024 + 1024)


def test_an_asynchronous_pair_counts_once():
    work = work_of("""
ENTRY %main (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  %start = (f32[1024]{0}, f32[1024]{0}) all-reduce-start(%x), to_apply=%add
  ROOT %done = f32[1024]{0} all-reduce-done(%start)
}
""")
    assert sum(one.bytes for one in work.values()) == 2 * 4096


def test_the_functions_that_an_instruction_was_written_in():
    module = parse("""HloModule jit_f

FileNames
1 "/model.py"

FunctionNames
1 "<module>"
2 "Model.__call__"
3 "dropout"

FileLocations
1 {file_name_id=1 function_name_id=1 line=9 end_line=9 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=5 end_line=5 column=1 end_column=2}
3 {file_name_id=1 function_name_id=3 line=1 end_line=1 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %y = f32[4]{0} negate(%x), metadata={op_name="jit(f)/neg" stack_frame_id=3}
}
""")
    (work,) = module.work()
    assert module.functions(work.instruction) == ("dropout", "Model.__call__", "<module>")
