"""The Mosaic GPU kernels compiled for H100, as JSON: run by test_compiled_mosaic.

.venv-compile-3.12/bin/python -m tests.kernels.compiled_mosaic
"""

import dataclasses
import functools
import json
import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mosaicbert_jax.planning.compile_only import (
    Kernel,
    compile_for,
    make_mesh,
    mosaic_kernels,
)
from mosaicbert_jax.planning.gpus import GPUS
from pallas_kernels import alibi_attention, alibi_attention_qkv, alibi_slopes
from tests.kernels.compiled_cases import HEADS, ROWS, array

TARGET = "h100"
# Length, head size, dtype, whether q, k and v are one array.
CASES = ((512, 64, "bfloat16", True), (1000, 32, "float16", False), (2048, 128, "bfloat16", True))


def attend(packed, qkv_BL3HD, bias_3HD, segment_ids_BL, d_out_BLHD):
    """The output and the gradients of the projection and of its bias."""

    def forward(qkv_BL3HD, bias_3HD):
        if packed:
            return alibi_attention_qkv(
                qkv_BL3HD, segment_ids_BL, bias_3HD=bias_3HD, backend="mosaic"
            )
        q, k, v = (qkv_BL3HD[:, :, part] for part in range(3))
        return alibi_attention(q, k, v, segment_ids_BL, backend="mosaic")

    out_BLHD, backward = jax.vjp(forward, qkv_BL3HD, bias_3HD)
    return out_BLHD, *backward(d_out_BLHD)


def compile_kernels(length: int, head_size: int, dtype: str, packed: bool) -> tuple[Kernel, ...]:
    """Both kernels, on one GPU."""
    mesh = make_mesh(GPUS[TARGET])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MOSAIC_GPU_DUMP_TO"] = folder
        compile_for(
            GPUS[TARGET],
            functools.partial(attend, packed),
            array(mesh, dtype, ROWS, length, 3, HEADS, head_size),
            array(mesh, jnp.float32, 3, HEADS, head_size),
            array(mesh, jnp.int32, ROWS, length),
            array(mesh, dtype, ROWS, length, HEADS, head_size),
        )
        del os.environ["MOSAIC_GPU_DUMP_TO"]
        return mosaic_kernels(pathlib.Path(folder))


def compile_sharded() -> dict:
    """On eight GPUs, each with its own rows and heads, without a bias."""
    mesh = make_mesh(GPUS[TARGET], data=4, tensor=2)
    packed, rows = PartitionSpec("data", None, None, "tensor"), PartitionSpec("data")
    unpacked = PartitionSpec("data", None, "tensor")

    def attend_here(qkv_BL3HD, segment_ids_BL, slopes_H):
        return alibi_attention_qkv(qkv_BL3HD, segment_ids_BL, slopes_H=slopes_H, backend="mosaic")

    def step(qkv_BL3HD, segment_ids_BL, d_out_BLHD):
        attend_sharded = jax.shard_map(
            attend_here,
            mesh=mesh,
            in_specs=(packed, rows, PartitionSpec("tensor")),
            out_specs=unpacked,
            check_vma=False,
        )
        slopes_H = jnp.asarray(alibi_slopes(HEADS))
        out_BLHD, backward = jax.vjp(
            lambda qkv_BL3HD: attend_sharded(qkv_BL3HD, segment_ids_BL, slopes_H), qkv_BL3HD
        )
        return out_BLHD, *backward(d_out_BLHD)

    shape = (8 * ROWS, 512, 3, HEADS, 64)
    program = compile_for(
        GPUS[TARGET],
        step,
        array(mesh, jnp.bfloat16, *shape, spec=packed),
        array(mesh, jnp.int32, *shape[:2], spec=rows),
        array(mesh, jnp.bfloat16, *shape[:2], *shape[3:], spec=unpacked),
    )
    calls = [line for line in program.entry().values() if "mosaic_gpu" in line.opcode]
    return {
        "collectives": program.collectives(),
        "calls": [call.result for call in calls],
        "temporary_bytes": program.temporary_bytes,
    }


def main() -> None:
    found = {
        " ".join(map(str, case)): [dataclasses.asdict(kernel) for kernel in compile_kernels(*case)]
        for case in CASES
    }
    print(json.dumps({"kernels": found, "sharded": compile_sharded()}))


if __name__ == "__main__":
    main()
