"""The kernels as compiled for GPUs, wherever the tests run: no GPU is needed."""

import fcntl
import json
import os

import pytest

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.planning.compile_only import run_there
from mosaicbert_jax.planning.gpus import GPUS
from tests.kernels import compiled_cases as cases

MATMUL, KERNEL = "__cublas$lt$matmul", "__gpu$xla.gpu.triton"
FREE = ("bitcast", "get-tuple-element")  # what names a value anew, and moves nothing
each_target = pytest.mark.parametrize("target", cases.TARGETS)
each_kernel = pytest.mark.parametrize(
    ("target", "length", "head_size"),
    [(target, *shape) for target in cases.TARGETS for shape in cases.SHAPES],
)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> dict:
    """What compiled_cases prints, made once for all workers of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of this run; without workers it would be that of all runs
    path = folder / "compiled_kernels.json"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            try:
                path.write_text(run_there("tests.kernels.compiled_cases"))
            except UserError as error:
                pytest.skip(str(error))
    return json.loads(path.read_text())


@each_kernel
def test_kernels_use_tensor_cores_and_fit(compiled, target, length, head_size):
    kernels = compiled[f"{target} {length} {head_size}"]["kernels"]
    assert [k["name"] for k in kernels] == ["alibi_attention_backward", "alibi_attention_forward"]
    for kernel in kernels:
        assert kernel["mma"] + kernel["wgmma"] > 0
        assert kernel["spilled_bytes"] == 0
        assert kernel["exact_exponentials"] == 0
        assert not kernel["serialized"]
        assert kernel["shared_memory"] <= GPUS[target].shared_memory_per_block
        assert target != "a100-80gb" or not kernel["wgmma"]  # else it is no A100's program


@pytest.mark.parametrize("target", [name for name in cases.CARDS if name != "t4"])
def test_auto_takes_the_kernels_from_ampere_on(compiled, target):
    program = compiled[f"{target} all"]
    assert [kernel["name"] for kernel in program["kernels"]] == list(cases.KERNELS)
    assert program["calls"] == len(cases.KERNELS)
    assert program["atomics"] == []
    for kernel in program["kernels"]:
        assert kernel["spilled_bytes"] == 0
        assert kernel["shared_memory"] <= cases.CARDS[target].shared_memory_per_block
        tensor_cores = kernel["mma"] + kernel["wgmma"] + kernel["tcgen05"]
        assert (tensor_cores > 0) == kernel["name"].startswith("alibi_attention")


def test_auto_takes_xla_before_ampere(compiled):
    program = compiled["t4 all"]
    assert program["calls"] == 0
    assert program["kernels"] == []


@pytest.mark.parametrize("target", ["l4", "h100"])
def test_float32_of_the_largest_heads_fits_every_card(compiled, target):
    assert len(compiled[f"{target} float32"]["kernels"]) == 2
    for kernel in compiled[f"{target} float32"]["kernels"]:
        assert kernel["shared_memory"] <= cases.CARDS["l4"].shared_memory_per_block


@each_target
def test_query_key_and_value_apart_cost_no_spill(compiled, target):
    kernels = compiled[f"{target} unpacked"]["kernels"]
    assert [kernel["spilled_bytes"] for kernel in kernels] == [0, 0]


@each_kernel
def test_memory_holds_nothing_of_length_by_length(compiled, target, length, head_size):
    # The logsumexp and delta, float32 a query and head; block ranges besides.
    held = 2 * 4 * cases.ROWS * cases.HEADS * length
    temporary = compiled[f"{target} {length} {head_size}"]["temporary_bytes"]
    assert held <= temporary <= held + 64 * 1024


@each_target
def test_memory_grows_as_the_row(compiled, target):
    short, long = (compiled[f"{target} {length} 64"]["temporary_bytes"] for length in (2048, 8192))
    assert 3.9 < long / short < 4.1
    assert long < 0.01 * cases.ROWS * cases.HEADS * 8192**2


@each_target
def test_nothing_stands_between_projections_and_kernels(compiled, target):
    entry = {line["name"]: line for line in compiled[f"{target} projected"]["entry"]}
    size = cases.ROWS * cases.PROJECTED_LENGTH * cases.HEADS * cases.PROJECTED_HEAD_SIZE
    allowed = {"parameter", "tuple", *FREE, MATMUL, KERNEL}
    assert {line["opcode"] for line in entry.values() if line["largest"] >= size} <= allowed

    def origin(name: str) -> str:
        while entry[name]["opcode"] in FREE:
            [name] = entry[name]["operands"]
        return name

    def large(line) -> set[str]:
        found = {origin(name) for name in line["operands"] if entry[name]["largest"] >= size}
        return {entry[name]["opcode"] for name in found}

    forward, backward = (line for line in entry.values() if line["opcode"] == KERNEL)
    assert large(forward) == large(backward) == {MATMUL}
    for kernel in (forward, backward):
        receivers = [
            line["opcode"]
            for line in entry.values()
            if line["opcode"] not in FREE and kernel["name"] in map(origin, line["operands"])
        ]
        assert MATMUL in receivers
        assert set(receivers) <= {MATMUL, KERNEL, "fusion"}  # the fusion: delta, from the output


@each_target
def test_the_projections_bias_costs_no_spill(compiled, target):
    forward, backward = compiled[f"{target} projected"]["kernels"]
    assert forward["spilled_bytes"] == backward["spilled_bytes"] == 0


@each_target
def test_rotation_is_in_place(compiled, target):
    program = compiled[f"{target} rotated"]
    names = [kernel["name"] for kernel in program["kernels"]]
    assert names == [
        "alibi_attention_backward_window_64", "alibi_attention_forward_window_64",
        "rotate_in_place",
    ]  # fmt: skip
    for kernel in program["kernels"]:
        assert kernel["spilled_bytes"] <= 16  # four registers, of an A100's backward with jax 0.12
        assert not kernel["serialized"]
    size = cases.ROWS * cases.PROJECTED_LENGTH * cases.HEADS * cases.PROJECTED_HEAD_SIZE
    large = {line["opcode"] for line in program["entry"] if line["largest"] >= size}
    assert large <= {"parameter", "tuple", *FREE, MATMUL, KERNEL}  # no copy


@each_target
def test_pre_norm_is_one_kernel_each_way(compiled, target):
    program = compiled[f"{target} pre-norm"]
    assert [kernel["spilled_bytes"] for kernel in program["kernels"]] == [0, 0]
    assert {*program["large"]} <= {"parameter", "tuple", *FREE, KERNEL}
    assert program["large"].count(KERNEL) == 2


@each_target
@pytest.mark.parametrize("sharding", cases.SHARDINGS)
def test_sharded_attention_speaks_with_no_other_device(compiled, target, sharding):
    program = compiled[f"{target} {sharding}"]
    assert program["collectives"] == []
    heads = cases.HEADS // (2 if "heads" in sharding else 1)
    rows = cases.ROWS * (2 if "heads" in sharding else 1)
    assert len(program["calls"]) == 2
    assert all(f"bf16[{rows},512," in call and f",{heads},64]" in call for call in program["calls"])


@each_target
@pytest.mark.parametrize("width", cases.NORM_WIDTHS)
def test_norm_passes_over_memory_once_a_direction(compiled, target, width):
    program = compiled[f"{target} norm {width} 1"]
    names = [kernel["name"] for kernel in program["kernels"]]
    assert names == ["residual_norm_backward", "residual_norm_forward"]
    assert all(kernel["spilled_bytes"] == 0 for kernel in program["kernels"])
    assert [
        opcode for opcode in program["large"] if opcode not in ("parameter", "tuple", *FREE)
    ] == [KERNEL] * 2


@each_target
@pytest.mark.parametrize("width", cases.NORM_WIDTHS)
def test_sharded_norm_adds_up_small_gradients_only(compiled, target, width):
    program = compiled[f"{target} norm {width} {cases.DEVICES}"]
    assert program["large"].count(KERNEL) == 2
    assert set(program["collectives"]) <= {"all-reduce", "all-reduce-start"}
    assert 1 <= len(program["collectives"]) <= 3


@each_target
@pytest.mark.parametrize("devices", [1, cases.DEVICES])
def test_cross_entropy_reads_logits_once_and_writes_a_gradient(compiled, target, devices):
    program = compiled[f"{target} cross-entropy {devices}"]
    (kernel,) = program["kernels"]
    assert kernel["name"] == "cross_entropy_and_gradient"
    assert kernel["spilled_bytes"] == 0
    working = [opcode for opcode in program["large"] if opcode not in ("parameter", "tuple", *FREE)]
    assert working == [KERNEL]
    assert not program["collectives"]


@each_target
@pytest.mark.parametrize("width", cases.GEGLU_WIDTHS)
def test_geglu_passes_over_memory_once_a_direction(compiled, target, width):
    program = compiled[f"{target} geglu {width} 1"]
    names = [kernel["name"] for kernel in program["kernels"]]
    assert names == ["geglu_backward", "geglu_forward"]
    assert all(kernel["spilled_bytes"] == 0 for kernel in program["kernels"])
    assert program["large"].count(KERNEL) == 2
    assert set(program["large"]) <= {"parameter", "tuple", *FREE, MATMUL, KERNEL}


@each_target
def test_sharded_geglu_adds_up_the_gradients_of_weights_only(compiled, target):
    program = compiled[f"{target} geglu {cases.GEGLU_WIDTHS[0]} {cases.DEVICES}"]
    assert program["large"].count(KERNEL) == 2
    assert set(program["large"]) <= {"parameter", "tuple", *FREE, MATMUL, KERNEL}
    assert set(program["collectives"]) <= {"all-reduce", "all-reduce-start"}
    assert 1 <= len(program["collectives"]) <= 2
