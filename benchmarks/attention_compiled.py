"""Attention as compiled for GPUs, next to JAX's own kernel, with no GPU at hand.

    JAX_PLATFORMS=cpu .venv-compile/bin/python -m benchmarks.attention_compiled [--output FILE]

3 minutes on 2 cores. FILE is benchmarks/results/attention_compiled.md for the committed result.

Reads what the compilers make of a kernel; says nothing of its time, which needs a GPU.
"""

import argparse
import datetime
import functools
import itertools
import pathlib
import platform
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as jax_attention
from tqdm import tqdm

from mosaicbert_jax.planning.compile_only import Kernel, Program
from pallas_kernels.alibi_attention.launch import Launch, default_launch
from pallas_kernels.backends import Target
from tests.kernels import compiled_cases
from tests.kernels.compiled_cases import (
    CARDS,
    HEADS,
    KERNELS,
    ROWS,
    TARGETS,
    compile_all_kernels,
    compile_kernels,
)

LENGTH = 2048
EQUAL_BLOCKS = jax_attention.BlockSizes(*[64] * 6)
DEFAULT_BLOCKS = jax_attention.BlockSizes.get_default()
ROTATED = ({"rope_theta": 160_000.0}, {"rope_theta": 10_000.0, "window": 64})
OURS = [name for name in CARDS if name != "t4"]
MATRIX = [
    (dtype, head_size, length)
    for dtype in (jnp.bfloat16, jnp.float32)
    for head_size in (32, 64, 128)
    for length in (512, 1000)
    if dtype != jnp.float32 or length == 512  # these take long to compile
]


def jax_mha(block_sizes: jax_attention.BlockSizes):
    """JAX's own attention in the form of `compiled_cases.attend`; it takes q, k and v apart."""

    def attend(qkv_BL3HD, segment_ids_BL, d_out_BLHD):
        def forward(*operands):
            return jax_attention.mha(
                *operands, segment_ids_BL, sm_scale=0.125, block_sizes=block_sizes
            )

        out_BLHD, backward = jax.vjp(forward, *(qkv_BL3HD[:, :, part] for part in range(3)))
        return out_BLHD, *backward(d_out_BLHD)

    return attend


def by_pass(program: Program) -> dict[str, Kernel]:
    """The forward and the backward kernel, without JAX's third, which is XLA's work in ours."""
    return {
        direction: kernel
        for direction in ("forward", "backward")
        for kernel in program.kernels
        if direction in kernel.name and "preprocess" not in kernel.name
    }


def launched(gpu: str, head_size: int, dtype, direction: str, *, rotates: bool = False) -> Launch:
    """How ours is launched there."""
    card = Target("gpu", CARDS[gpu].name, CARDS[gpu].compute_capability)
    return getattr(default_launch(card, head_size, dtype, rotates=rotates), direction)


def cells(kernel: Kernel, gpu: str, block: int, inner_block: int) -> list[object]:
    """The columns that both tables have."""
    tiles = block * inner_block / 64**2
    warps = kernel.threads // 32
    instructions = {"mma": kernel.mma, "wgmma": kernel.wgmma, "tcgen05": kernel.tcgen05}
    return [
        f"{block}x{inner_block}",
        warps,
        kernel.registers,
        f"{kernel.spilled_bytes:,}",
        f"{kernel.shared_memory:,}",
        kernel.resident_warps(CARDS[gpu]),
        f"{kernel.looped_instructions * warps / tiles:,.0f}",
        ", ".join(f"{count} {name}" for name, count in instructions.items() if count) or "none",
        "yes" if kernel.serialized else "no",
    ]


EVERY_COLUMNS = [
    "GPU",
    "compute capability",
    "kernel",
    "warps",
    "registers a thread",
    "spilled bytes",
    "shared memory",
]
COLUMNS = [
    "blocks",
    "warps",
    "registers a thread",
    "spilled bytes",
    "shared memory",
    "warps a core holds",
    "instructions a 64x64 tile",
    "matrix instructions",
    "serialized",
]


def comparison(progress: tqdm) -> list[list[object]]:
    """Ours next to JAX's, bfloat16."""
    rows = []
    for head_size in (64, 128):
        for gpu in TARGETS:
            found = {}
            for name, function, blocks in (
                ("ours", None, EQUAL_BLOCKS),
                ("JAX's mha", jax_mha(EQUAL_BLOCKS), EQUAL_BLOCKS),
                ("JAX's mha, its default blocks", jax_mha(DEFAULT_BLOCKS), DEFAULT_BLOCKS),
            ):
                options = {"function": function, "kernels": "mha"} if function else {}
                program = compile_kernels(gpu, LENGTH, head_size, **options)
                found[name] = by_pass(program), blocks
                progress.update()
            for direction in ("forward", "backward"):
                for name, (kernels, blocks) in found.items():
                    if name == "ours":
                        launch = launched(gpu, head_size, jnp.bfloat16, direction)
                        sizes = launch.block, launch.inner_block
                    else:
                        sizes = (
                            blocks.block_q if direction == "forward" else blocks.block_q_dq,
                        ) * 2
                    columns = cells(kernels[direction], gpu, *sizes)
                    rows.append([head_size, gpu, direction, name, *columns])
    return rows


def matrix(progress: tqdm) -> list[list[object]]:
    """Ours in every type and head size, and with a last block that is not full."""

    def rows_of(gpu, dtype, head_size, length) -> list[list[object]]:
        program = compile_kernels(gpu, length, head_size, dtype)
        progress.update()
        quadratic = ROWS * HEADS * length**2 * dtype.dtype.itemsize
        share = f"{100 * program.temporary_bytes / quadratic:.2f}%"
        rows = []
        for direction, kernel in by_pass(program).items():
            launch = launched(gpu, head_size, dtype, direction)
            columns = cells(kernel, gpu, launch.block, launch.inner_block)
            rows.append([dtype.dtype.name, head_size, length, gpu, direction, *columns, share])
        return rows

    with ThreadPoolExecutor(2) as pool:
        work = [pool.submit(rows_of, gpu, *shape) for gpu in OURS for shape in MATRIX]
        return [row for rows in work for row in rows.result()]


def rotated(progress: tqdm) -> list[list[object]]:
    """Ours with rotary embeddings, and with those and a window; bfloat16."""
    rows = []
    for gpu, head_size, options in itertools.product(OURS, (32, 64, 128), ROTATED):
        attend = functools.partial(compiled_cases.attend, **options)
        kernels = by_pass(compile_kernels(gpu, LENGTH, head_size, function=attend))
        progress.update()
        for direction, kernel in kernels.items():
            launch = launched(gpu, head_size, jnp.bfloat16, direction, rotates=True)
            columns = cells(kernel, gpu, launch.block, launch.inner_block)
            rows.append([head_size, gpu, options.get("window", ""), direction, *columns])
    return rows


def every_kernel(progress: tqdm) -> list[list[object]]:
    """All kernels on all cards, as "auto" chooses them there; bfloat16."""
    rows = []
    for gpu, card in CARDS.items():
        capability = ".".join(map(str, card.compute_capability))
        kernels = [k for k in compile_all_kernels(gpu).kernels if k.name in KERNELS]
        progress.update()
        if not kernels:
            rows.append([gpu, capability, "none: auto takes plain JAX", *[""] * 4])
        for k in kernels:
            warps = k.threads // 32
            spilled, shared = f"{k.spilled_bytes:,}", f"{k.shared_memory:,}"
            rows.append([gpu, capability, k.name, warps, k.registers, spilled, shared])
    return rows


def table(header: list[str], rows: list[list[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def report() -> str:
    with tqdm(
        total=12 + len(OURS) * (len(MATRIX) + 3 * len(ROTATED)) + len(CARDS),
        unit="program",
        disable=None,
    ) as progress:
        beside = table(["head size", "GPU", "pass", "kernel", *COLUMNS], comparison(progress))
        all_of_ours = table(
            ["type", "head size", "length", "GPU", "pass", *COLUMNS, "temporary / L×L"],
            matrix(progress),
        )
        of_rotated = table(["head size", "GPU", "window", "pass", *COLUMNS], rotated(progress))
        of_every_kernel = table(EVERY_COLUMNS, every_kernel(progress))
    return TEXT.format(
        date=datetime.date.today(),
        python=platform.python_version(),
        plugin=version("jax-cuda12-plugin"),
        ptxas=version("nvidia-cuda-nvcc-cu12"),
        rows=ROWS,
        heads=HEADS,
        length=LENGTH,
        beside=beside,
        all_of_ours=all_of_ours,
        of_rotated=of_rotated,
        of_every_kernel=of_every_kernel,
    )


TEXT = """\
# Attention as compiled for GPUs

{date}, Python {python}, jax and jax-cuda12-plugin {plugin}, nvidia-cuda-nvcc-cu12 {ptxas}; no GPU
`JAX_PLATFORMS=cpu .venv-compile/bin/python -m benchmarks.attention_compiled`

Instructions a 64x64 tile: those of PTX in the innermost loops (both of backward's), times the
warps that run them, for 64 queries meeting 64 keys. Matrix instructions: of the whole kernel, a
warp. Warps a core holds: by registers, shared memory and threads, of 64. Serialized: whether ptxas
says that warp groups' matrix instructions wait for one another (C7515). All of it is read from the
program; nothing ran. On an older card, such as a T4 (compute capability 7.5), attention takes XLA.

## Ours next to JAX's own, {rows} rows of {length}, {heads} heads, bfloat16

JAX's is `jax.experimental.pallas.ops.gpu.attention.mha` with segment ids. Ours has ALiBi's bias on
top, reads the packed projection, and skips the blocks that share no segment; JAX's visits all.

{beside}
ALiBi's bias costs ours a subtraction, an absolute value, a conversion and a multiply-add a score.
Exponentials that flush denormal numbers to zero, and products contracted with the sums that follow,
save about a fifth of the machine instructions: on an A100, from 2,632 to 2,120 forward and from
5,748 to 4,588 backward (head size 64, 64x64 with two stages, 512 tokens; counted with nvdisasm). On
an H100, backward with one stage is not serialized, which takes it from 3,756 to 3,320. Larger
blocks have fewer instructions a tile forward (1,898 at 128x128 on an A100), but rows are short and
documents shorter: more of a larger block is masked. The autotuner decides by time:
`python -m pallas_kernels.alibi_attention.autotune`.

## Ours: every type and head size; rows of 512, and of 1,000, whose last block is not full

Temporary / L×L: the program's temporary memory, compared with one matrix of all scores.

Float32 is multiplied in full, without tensor cores: it is there to check by, and backward spills at
head size 128.

{all_of_ours}
## Ours with rotary embeddings, and with a window of 64 tokens on each side; rows of {length}

Queries and keys are rotated in place before, by one pass; the gradients back in registers. In its
first form the kernels rotated what they loaded: on an A100, at head size 64 and with a window, that
took forward from 2,244 to 5,236 instructions a tile, and backward spilled 28,876 bytes. As jax 0.12
compiles it, that backward kernel spills 16 bytes, four registers.

{of_rotated}
## Every kernel, on every kind of card

Rows of 512 tokens, 12 heads of 64, feed-forward of 3,072, 30,528 words, bfloat16, without dropout.

{of_every_kernel}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=pathlib.Path, help="write it there, too")
    options = parser.parse_args()
    text = report()
    print(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
