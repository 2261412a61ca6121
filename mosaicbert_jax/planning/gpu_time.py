"""A model of how long an instruction of a compiled program takes on a GPU: fast and slow ends.

A matrix product is cut into tiles, which the GPU's cores take in waves; a last wave that is not
full takes as long as a full one. Attention's kernels take the time that their machine instructions
need to be issued. Nothing is faster than the transfer of its bytes through device memory, and all
else takes exactly that long. Before each kernel the GPU waits for its launch. The numbers that the
model can't derive are in TIMINGS, ISSUED and LAUNCH_GAP, for a measurement to replace.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Self

from mosaicbert_jax.planning.gpus import Gpu
from mosaicbert_jax.planning.traffic import Work
from pallas_kernels.alibi_attention.triton import WINDOW_MARK


@dataclasses.dataclass(frozen=True)
class Range:
    """A figure if all goes well, and if it doesn't."""

    fast: float = 0.0
    slow: float = 0.0

    def __add__(self, other: Self) -> Self:
        return type(self)(self.fast + other.fast, self.slow + other.slow)

    def __mul__(self, factor: float) -> Self:
        return type(self)(self.fast * factor, self.slow * factor)

    @property
    def middle(self) -> float:
        """Of the two."""
        return (self.fast + self.slow) / 2


@dataclasses.dataclass(frozen=True)
class Timing:
    """What a generation of GPUs achieves.

    Attributes:
      tiles: of a matrix product, rows and columns; each also the other way round.
      matmul: share of the peak in the main loop of a matrix product.
      memory: share of the memory's bandwidth.
      attention: instructions of all warps for 64 queries meeting 64 keys, forward and backward, at
        head size 64.
    """

    tiles: tuple[tuple[int, int], ...]
    matmul: Range
    memory: Range
    attention: tuple[int, int]


_AMPERE_TILES = ((128, 128), (256, 128))  # of cuBLAS's kernels for Ampere and Ada
_HOPPER_TILES = ((128, 256),)  # of its kernels for Hopper and Blackwell
# Read off the compiled kernels with nvdisasm: benchmarks/results/attention_compiled.md.
_A100_ATTENTION, _H100_ATTENTION = (2_120, 4_600), (1_970, 3_320)

TIMINGS = {  # by compute capability
    # A100. Products: chosen so that published training speeds of MPT lie in the range
    # (tests/planning/test_gpu_time.py). Memory: assumed.
    (8, 0): Timing(_AMPERE_TILES, Range(0.80, 0.68), Range(0.85, 0.75), _A100_ATTENTION),
    # A10 and its like: all assumed. Its 150 W don't sustain the clock of the data sheet's peak.
    (8, 6): Timing(_AMPERE_TILES, Range(0.70, 0.50), Range(0.85, 0.75), _A100_ATTENTION),
    # L4: all assumed. The same with its 72 W.
    (8, 9): Timing(_AMPERE_TILES, Range(0.65, 0.45), Range(0.85, 0.75), _A100_ATTENTION),
    # H100 and H200. Products: assumed; some 700 and 500 TFLOP/s of 8192x8192x8192, of which 800 are
    # published, and two published speeds of MPT lie in the range. Memory: copies measured
    # elsewhere, 3.0 of 3.35 TB/s; slow assumed.
    (9, 0): Timing(_HOPPER_TILES, Range(0.75, 0.55), Range(0.90, 0.75), _H100_ATTENTION),
    # B200: all assumed, as H100.
    (10, 0): Timing(_HOPPER_TILES, Range(0.75, 0.55), Range(0.90, 0.75), _H100_ATTENTION),
}
ISSUED = Range(0.75, 0.50)  # share of a core's issue slots that attention fills; assumed
_ISSUE_SLOTS = 4  # warp instructions a core issues a cycle, in all these generations
LAUNCH_GAP = Range(1e-6, 3e-6)  # seconds, in a CUDA graph and without; assumed
# Of a tile, in steps of _DEPTH: its first loads and its store, for which no other work makes up.
# Assumed.
_TILE_OVERHEAD = 1.5
_DEPTH = 64
# How much of the instructions grows with the head size, roughly, from the counts at 64 and 128.
_HEAD_SIZE_SHARE = (0.2, 0.65)
_KERNELS = ("alibi_attention_forward", "alibi_attention_backward")
# Products of (tokens, keys, hidden) in these kernels, which matrix products do not count.
ATTENTION_PRODUCTS = dict(zip(_KERNELS, (2, 7), strict=True))


def timing_of(gpu: Gpu) -> Timing:
    """The generation's."""
    return TIMINGS[gpu.compute_capability]


def seconds(gpu: Gpu, work: Work, sequence_length: int) -> Range:
    """Of an instruction, all its times together, without the gaps before them.

    Args:
      sequence_length: tokens of the sequences that rows hold, which attention's time depends on.
    """
    bytes_each = work.bytes / work.times
    if work.instruction.is_matmul:
        once = product_seconds(gpu, *product_shape(work), moved=bytes_each)
    elif pass_ := attention_pass(work):
        rows, length, _, heads, head_size = work.operands[0].dimensions
        tiles = attention_tiles(length, sequence_length, _window(work)) * (rows * heads)
        once = attention_seconds(gpu, pass_, tiles, head_size, moved=bytes_each)
    else:
        once = memory_seconds(gpu, bytes_each)
    return once * work.times


def launch_gaps(work: Iterable[Work]) -> Range:
    """Seconds that the GPU waits for kernels; the second half of an asynchronous pair is none."""
    return LAUNCH_GAP * sum(
        one.times for one in work if not one.instruction.opcode.endswith(("-done", "-update"))
    )


def memory_seconds(gpu: Gpu, moved: float) -> Range:
    """Of bytes through device memory."""
    share = timing_of(gpu).memory
    return Range(*(moved / (one * gpu.memory_bandwidth) for one in (share.fast, share.slow)))


def product_shape(work: Work) -> tuple[int, int, int, int, str]:
    """A product's batch, rows, columns, depth and type of operands."""
    left, right = (shape.dimensions for shape in work.operands[:2])
    size = math.prod(work.instruction.results[0].dimensions)
    depth = work.flops // (2 * work.times * size)
    listed = work.instruction.attribute(r'"lhs_batch_dimensions":\[([\d",]*)\]')
    batch = math.prod(left[int(axis)] for axis in listed.replace('"', "").split(",") if axis)
    m, n = (math.prod(side) // (batch * depth) for side in (left, right))
    return batch, m, n, depth, work.operands[0].dtype


def product_seconds(
    gpu: Gpu, batch: int, m: int, n: int, k: int, dtype: str = "bf16", *, moved: float
) -> Range:
    """Of a matrix product (m, k) x (k, n), `batch` times, that moves so many bytes altogether.

    One of fewer tiles than cores may divide its depth among them, which costs it a write and a read
    of each part in float32.
    """
    timing = timing_of(gpu)
    # Without tensor cores: XLA multiplies float32 in full.
    peak = gpu.peak_flops if dtype != "f32" else 2e9 * gpu.cores * gpu.fpus_per_core * gpu.clock_ghz
    steps = -(-k // _DEPTH)

    def at(rate: float, bandwidth: float) -> float:
        step = 2 * _DEPTH * gpu.cores / (rate * peak)  # seconds, for each element of a tile
        found = math.inf
        for rows, columns in {*timing.tiles, *(tile[::-1] for tile in timing.tiles)}:
            tiles = batch * -(-m // rows) * -(-n // columns)
            for parts in range(1, max(1, min(gpu.cores // tiles, steps)) + 1):
                waves = -(-tiles * parts // gpu.cores)
                loop = waves * (-(-steps // parts) + _TILE_OVERHEAD) * rows * columns * step
                sums = 2 * parts * batch * m * n * 4 if parts > 1 else 0
                found = min(found, max(loop, (moved + sums) / (bandwidth * gpu.memory_bandwidth)))
        return found

    return Range(
        at(timing.matmul.fast, timing.memory.fast), at(timing.matmul.slow, timing.memory.slow)
    )


def attention_pass(work: Work) -> str:
    """The name of the attention kernel that an instruction is, or an empty string."""
    name = work.instruction.op_name if work.instruction.is_kernel else ""
    return next((kernel for kernel in _KERNELS if kernel in name), "")


def _window(work: Work) -> int | None:
    """Tokens on each side that attention's kernel sees, which its name says; None: all."""
    found = re.search(rf"{WINDOW_MARK}(\d+)", work.instruction.op_name)
    return int(found[1]) if found else None


def attention_flops(work: Work, sequence_length: int) -> int:
    """Of attention's kernels, all times together, were all sequences so long; 0 of all else."""
    if not (kernel := attention_pass(work)):
        return 0
    rows, length, _, heads, head_size = work.operands[0].dimensions
    window = _window(work)
    keys = min(length, sequence_length)
    if window is not None:
        keys = min(keys, 2 * window + 1)
    product = 2 * rows * length * keys * heads * head_size
    return work.times * ATTENTION_PRODUCTS[kernel] * product


def attention_tiles(length: int, sequence_length: int, window: int | None = None) -> Range:
    """Of a row and head: blocks of 64 queries times those of 64 keys that they visit.

    Fast: sequences begin at blocks. Slow: they begin anywhere.

    Args:
      window: tokens on each side that a token sees; None: its whole sequence.
    """
    blocks = -(-length // 64)
    sequence = min(length, sequence_length)
    visited = -(-sequence // 64), (sequence + 126) / 64
    most = blocks if window is None else min(blocks, 2 * -(-window // 64) + 1)
    return Range(*(blocks * min(most, keys) for keys in visited))


def attention_seconds(
    gpu: Gpu, kernel: str, tiles: Range, head_size: int, *, moved: float
) -> Range:
    """Of one of attention's kernels that visits so many tiles and moves so many bytes."""
    direction = _KERNELS.index(kernel)
    growth = 1 + _HEAD_SIZE_SHARE[direction] * (head_size / 64 - 1)
    instructions = timing_of(gpu).attention[direction] * growth
    slots = _ISSUE_SLOTS * gpu.cores * gpu.clock_ghz * 1e9
    memory = memory_seconds(gpu, moved)
    return Range(
        max(tiles.fast * instructions / (ISSUED.fast * slots), memory.fast),
        max(tiles.slow * instructions / (ISSUED.slow * slots), memory.slow),
    )
