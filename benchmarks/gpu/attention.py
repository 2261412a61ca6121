"""Attention forward and backward, each alone: ours by its launch parameters, and others.

131,072 tokens of 12 heads of 64 in bfloat16, packed with documents of real lengths; block ranges
and masks are computed outside of the clock, 20 calls are enqueued and waited for once. TFLOP/s
count as the FlashAttention papers do, on pairs of tokens that share a segment: forward 4 · pairs ·
head size · heads, backward 2.5 times that.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.inputs import packed_ids
from benchmarks.gpu.tables import attempt, header
from pallas_kernels import alibi_attention_qkv, alibi_slopes, block_ranges
from pallas_kernels.alibi_attention.launch import AttentionLaunch, Launch, default_launch
from pallas_kernels.backends import target
from pallas_kernels.timing import seconds_per_call

HEADS, HEAD_SIZE, TOKENS = 12, 64, 131_072
# Next to the default: larger blocks, more warps, more loads under way. The autotuner tries all.
LAUNCHES = (
    AttentionLaunch(Launch(64, 64, 4, 3), Launch(64, 64, 4, 2)),
    AttentionLaunch(Launch(128, 64, 8, 2), Launch(64, 64, 8, 1)),
    AttentionLaunch(Launch(128, 64, 4, 2), Launch(64, 32, 4, 1)),
    AttentionLaunch(Launch(32, 32, 2, 2), Launch(32, 32, 2, 1)),
    AttentionLaunch(Launch(128, 128, 8, 2), Launch(128, 64, 8, 1)),
)


def needed_pairs(ids_BL: np.ndarray) -> int:
    """Pairs of tokens that share a segment."""
    counts = (np.bincount(ids_L)[1:].astype(np.int64) for ids_L in ids_BL)
    return sum(int((count**2).sum()) for count in counts)


def main(rehearse: bool) -> None:
    print(__doc__)
    header("rows", "implementation", "forward ms", "TFLOP/s", "backward ms", "TFLOP/s")
    for length in (32,) if rehearse else (128, 512, 2048):
        rows = 1 if rehearse else TOKENS // length
        _Case(rows, length, rehearse).measure()


class _Case:
    def __init__(self, rows: int, length: int, rehearse: bool):
        rng = np.random.default_rng(0)
        self.rehearse = rehearse
        self.heads, self.head_size = (1, 32) if rehearse else (HEADS, HEAD_SIZE)
        ids_BL = packed_ids(rng, rows, length)
        self.name, self.ids_BL = f"{rows}x{length}", jnp.asarray(ids_BL)
        shape = (rows, length, 3, self.heads, self.head_size)
        self.qkv = jnp.asarray(rng.standard_normal(shape, np.float32), jnp.bfloat16)
        self.d_out = self.qkv[:, :, 0]
        self.flops = 4 * needed_pairs(ids_BL) * self.head_size * self.heads

    def measure(self) -> None:
        ranges = block_ranges(self.ids_BL, block_size=32)
        default = default_launch(target(), self.head_size, jnp.bfloat16)
        for launch in (default, *LAUNCHES[: 1 if self.rehearse else None]):
            names = (
                f"{one.block}x{one.inner_block}, {one.num_warps} warps, {one.num_stages} stages"
                for one in (launch.forward, launch.backward)
            )
            ours = functools.partial(
                alibi_attention_qkv,
                segment_ids_BL=self.ids_BL,
                block_ranges=ranges,
                launch=launch,
                backend="interpret" if self.rehearse else "triton",
            )
            self.line(f"ours, {' / '.join(names)}", ours)
        plain = functools.partial(ours, launch=None)
        self.line("ours, xla", functools.partial(plain, backend="xla"))
        if not self.rehearse:  # for Hopper, with jax 0.11 or higher
            self.line("ours, mosaic", functools.partial(plain, backend="mosaic"), ours=False)
        if self.ids_BL.shape[1] <= 2048:  # beyond, the dense bias alone takes gigabytes
            for implementation in ("xla",) if self.rehearse else ("xla", "cudnn"):
                function = dense_attention(self.ids_BL, self.heads, implementation)
                name = f"jax.nn.dot_product_attention, {implementation}, dense bias"
                self.line(name, function, ours=False)
        from benchmarks.gpu import torch_attention

        torch_attention.measure(self.name, self.ids_BL, self.heads, self.head_size, self.flops)

    def line(self, name: str, function, *, ours: bool = True) -> None:
        """Forward and backward of function(qkv)."""

        def cells():
            repeats = {"calls": 1, "repeats": 1} if self.rehearse else {}
            forward = seconds_per_call(jax.jit(function), self.qkv, **repeats)
            _, pull_back = jax.vjp(function, self.qkv)
            backward_of = jax.jit(lambda pull_back, d_out: pull_back(d_out))
            backward = seconds_per_call(backward_of, pull_back, self.d_out, **repeats)
            return (name, *milliseconds(self.flops, forward, backward))

        attempt(self.name, cells, ours=ours)


def milliseconds(flops: float, forward: float, backward: float) -> tuple[str, str, str, str]:
    """The cells of two times in seconds, with the TFLOP/s that they make."""
    return (
        f"{1e3 * forward:.3f}",
        f"{flops / forward / 1e12:.1f}",
        f"{1e3 * backward:.3f}",
        f"{2.5 * flops / backward / 1e12:.1f}",
    )


def dense_attention(ids_BL: jax.Array, heads: int, implementation: str):
    """JAX's, which takes bias and mask as arrays; made here, once."""
    column_L = jnp.arange(ids_BL.shape[1])
    distance_LL = jnp.abs(column_L[:, None] - column_L)
    bias_1HLL = (-alibi_slopes(heads)[:, None, None] * distance_LL)[None].astype(jnp.bfloat16)
    mask_B1LL = (ids_BL[:, :, None] == ids_BL[:, None, :])[:, None]

    def function(qkv):
        q, k, v = (qkv[:, :, part] for part in range(3))
        return jax.nn.dot_product_attention(
            q, k, v, bias=bias_1HLL, mask=mask_B1LL, implementation=implementation
        )

    return function
