"""Attention as compiled for H100 by each of Pallas' two backends, with no GPU at hand.

    JAX_PLATFORMS=cpu .venv-compile-3.12/bin/python -m benchmarks.gpu_backends

One minute on 2 cores; prints the first table of benchmarks/results/gpu_backends.md. Needs jax
0.11 or higher.
"""

import jax.numpy as jnp

from benchmarks.attention_compiled import COLUMNS, LENGTH, by_pass, cells, launched, table
from pallas_kernels.alibi_attention.mosaic_kernels import BLOCK
from tests.kernels import compiled_mosaic
from tests.kernels.compiled_cases import compile_kernels

GPU = compiled_mosaic.TARGET


def rows_of(head_size: int) -> list[list[object]]:
    """Both passes by both backends, bfloat16."""
    triton = by_pass(compile_kernels(GPU, LENGTH, head_size))
    mosaic = compiled_mosaic.compile_kernels(LENGTH, head_size, "bfloat16", packed=True)
    rows = []
    for direction in ("forward", "backward"):
        launch = launched(GPU, head_size, jnp.bfloat16, direction)
        columns = cells(triton[direction], GPU, launch.block, launch.inner_block)
        rows.append([head_size, direction, "triton", *columns])
        (kernel,) = (kernel for kernel in mosaic if direction in kernel.name)
        rows.append([head_size, direction, "mosaic", *cells(kernel, GPU, BLOCK, BLOCK)])
    return rows


if __name__ == "__main__":
    rows = [row for head_size in (32, 64, 128) for row in rows_of(head_size)]
    print(table(["head size", "pass", "backend", *COLUMNS], rows))
