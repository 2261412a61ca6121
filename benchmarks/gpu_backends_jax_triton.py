"""The trial of jax-triton: attention's forward pass as a Triton kernel, compiled and interpreted.

    JAX_PLATFORMS=cpu PYTHON -m benchmarks.gpu_backends_jax_triton compile h100 64 2048
    TRITON_INTERPRET=1 JAX_PLATFORMS=cpu PYTHON -m benchmarks.gpu_backends_jax_triton interpret

PYTHON is of an environment for compiling for GPUs (`make .venv-compile/installed`) that also has
jax-triton and, for `interpret`, PyTorch. benchmarks/results/gpu_backends.md says what it showed.
"""

import math
import os
import pathlib
import sys
import tempfile

DUMPS = tempfile.mkdtemp()
os.environ["JAX_TRITON_DUMP_DIR"] = DUMPS  # read by jax_triton as it is imported

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from mosaicbert_jax.planning.compile_only import (  # noqa: E402
    _entries,
    _kernel,
    _ptxas_reports,
    compile_for,
    make_mesh,
)
from mosaicbert_jax.planning.gpus import GPUS  # noqa: E402
from pallas_kernels import alibi_attention_qkv, alibi_slopes, block_ranges  # noqa: E402
from tests.kernels.attention_cases import normal, packed_ids  # noqa: E402
from tests.kernels.compiled_cases import HEADS, ROWS, array  # noqa: E402

BLOCK, WARPS, STAGES = 64, 4, 2


@triton.jit
def forward_kernel(
    qkv,
    ids,
    slopes,
    lower,
    upper,
    out,
    lse,
    scale: tl.constexpr,  # in base 2, as the slopes are
    L: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    Q: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    base = qkv + b.to(tl.int64) * (L * 3 * H * D) + h * D
    token, column = tl.arange(0, BLOCK), tl.arange(0, D)
    here = i * BLOCK + token
    within = here[:, None] < L
    q = tl.load(base + here[:, None] * (3 * H * D) + column[None, :], mask=within, other=0.0)
    ids_i = tl.load(ids + b * L + here, mask=here < L, other=0)
    ids_i = tl.where(ids_i == 0, -1, ids_i)
    slope = tl.load(slopes + h)
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    sums = tl.zeros((BLOCK, D), tl.float32)
    for j in range(tl.load(lower + b * Q + i), tl.load(upper + b * Q + i)):
        there = j * BLOCK + token
        key = base + H * D + there[None, :] * (3 * H * D) + column[:, None]
        k = tl.load(key, mask=there[None, :] < L, other=0.0)
        ids_j = tl.load(ids + b * L + there, mask=there < L, other=0)
        scores = tl.dot(q, k) * scale
        scores -= slope * tl.abs((here[:, None] - there[None, :]).to(tl.float32))
        scores = tl.where(ids_i[:, None] == ids_j[None, :], scores, float("-inf"))
        new = tl.maximum(highest, tl.max(scores, 1))
        shift = tl.where(new == float("-inf"), 0.0, new)
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(highest - shift)
        total = total * decay + tl.sum(weights, 1)
        value = base + 2 * H * D + there[:, None] * (3 * H * D) + column[None, :]
        v = tl.load(value, mask=there[:, None] < L, other=0.0)
        sums = tl.dot(weights.to(v.dtype), v, sums * decay[:, None])
        highest = new
    safe = tl.where(total == 0.0, 1.0, total)
    target = out + b.to(tl.int64) * (L * H * D) + here[:, None] * (H * D) + h * D + column[None, :]
    tl.store(target, (sums / safe[:, None]).to(out.dtype.element_ty), mask=within)
    logsumexp = tl.where(total == 0.0, float("inf"), highest + tl.log2(safe))
    tl.store(lse + (b * H + h) * L + here, logsumexp, mask=here < L)


def forward(qkv_BL3HD, ids_BL, slopes_H, lower_BQ, upper_BQ):
    """The output and the logsumexp."""
    import jax_triton

    rows, length, _, heads, head_size = qkv_BL3HD.shape
    blocks = lower_BQ.shape[1]
    return jax_triton.triton_call(
        *(qkv_BL3HD, ids_BL, slopes_H, lower_BQ, upper_BQ),
        kernel=forward_kernel,
        out_shape=[
            jax.ShapeDtypeStruct((rows, length, heads, head_size), qkv_BL3HD.dtype),
            jax.ShapeDtypeStruct((rows, heads, length), jnp.float32),
        ],
        grid=(blocks, heads, rows),
        num_warps=WARPS,
        num_stages=STAGES,
        scale=head_size**-0.5 * math.log2(math.e),
        L=length,
        H=heads,
        D=head_size,
        Q=blocks,
        BLOCK=BLOCK,
    )


def compile_kernel(gpu_name: str, head_size: int, length: int) -> None:
    """Prints what came out, as `compile_only.Kernel` has it."""
    gpu = GPUS[gpu_name]
    mesh, blocks = make_mesh(gpu), -(-length // BLOCK)
    compile_for(
        gpu,
        forward,
        array(mesh, jnp.bfloat16, ROWS, length, 3, HEADS, head_size),
        array(mesh, jnp.int32, ROWS, length),
        array(mesh, jnp.float32, HEADS),
        array(mesh, jnp.int32, ROWS, blocks),
        array(mesh, jnp.int32, ROWS, blocks),
    )
    for path in pathlib.Path(DUMPS).glob("*/*.ptx"):
        [(name, body)] = _entries(path.read_text())
        info = path.with_suffix(".compile_info").read_text()
        shared = int(info.partition("shared_mem_bytes:")[2])
        print(_kernel(name, body, _ptxas_reports(path, gpu)[name], 32 * WARPS, shared))


def interpret(head_size: int = 64, length: int = 130) -> None:
    """Prints the largest difference from the reference, by type."""
    import torch

    rng, heads = np.random.default_rng(0), 2
    ids_BL = packed_ids(rng, 2, length, 90)
    ranges = block_ranges(ids_BL, block_size=BLOCK)
    slopes_H = np.asarray(alibi_slopes(heads), np.float32) * math.log2(math.e)
    for dtype in ("float32", "float16", "bfloat16"):
        qkv_BL3HD = normal(rng, 2, length, 3, heads, head_size, dtype=dtype)
        out_BLHD = torch.zeros(2, length, heads, head_size, dtype=getattr(torch, dtype))
        blocks = ranges.lower_BQ.shape[1]
        given = (qkv_BL3HD.astype(jnp.float32), ids_BL, slopes_H, ranges.lower_BQ, ranges.upper_BQ)
        qkv, *context = (torch.from_numpy(np.array(x)) for x in given)
        forward_kernel[(blocks, heads, 2)](
            *(qkv.to(out_BLHD.dtype), *context, out_BLHD, torch.zeros(2, heads, length)),
            head_size**-0.5 * math.log2(math.e),
            *(length, heads, head_size, blocks, BLOCK),
        )
        true_BLHD = alibi_attention_qkv(qkv_BL3HD.astype(jnp.float32), ids_BL, backend="reference")
        print(dtype, np.abs(out_BLHD.float().numpy() - np.asarray(true_BLHD)).max())


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        compile_kernel(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        interpret()
