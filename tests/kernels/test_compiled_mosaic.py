"""The Mosaic GPU kernels as compiled for H100, wherever the tests run: no GPU is needed."""

import json

import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.planning.compile_only import run_there
from mosaicbert_jax.planning.gpus import GPUS
from tests.kernels import compiled_mosaic as cases

pytestmark = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="backend mosaic needs jax 0.11 or higher"
)


@pytest.fixture(scope="module")
def compiled() -> dict:
    try:
        return json.loads(run_there("tests.kernels.compiled_mosaic"))
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("case", cases.CASES)
def test_kernels_use_tensor_cores_and_fit(compiled, case):
    kernels = compiled["kernels"][" ".join(map(str, case))]
    assert [kernel["name"] for kernel in kernels] == [
        "alibi_attention_backward_mosaic_gpu_kernel",
        "alibi_attention_forward_mosaic_gpu_kernel",
    ]
    for kernel in kernels:
        assert kernel["wgmma"] > 0
        assert kernel["spilled_bytes"] == 0
        assert kernel["exact_exponentials"] == 0
        assert not kernel["serialized"]
        # Two programs a core, at least.
        assert kernel["shared_memory"] < GPUS[cases.TARGET].shared_memory_per_core / 2
        assert kernel["registers"] * kernel["threads"] * 2 <= 65_536


def test_sharded_attention_speaks_with_no_other_device(compiled):
    program = compiled["sharded"]
    assert program["collectives"] == []
    assert len(program["calls"]) == 2
    rows, heads = 2 * cases.ROWS, cases.HEADS // 2
    assert f"bf16[{rows},512,{heads * 64}]" in program["calls"][0]
    assert f"bf16[{rows},512,{3 * heads * 64}]" in program["calls"][1]
    # The logsumexp and delta, float32 a query and head; block ranges besides. No copy of qkv.
    held = 2 * 4 * rows * heads * 512
    assert held <= program["temporary_bytes"] <= held + 64 * 1024
