"""Attention on a GPU: correct against the reference, then its time beside other implementations.

    python -m benchmarks.attention [--lengths 128 512 2048 8192] [--output benchmarks/attention.md]
        [--store]

For each row length, 131,072 tokens of 12 heads of 64 in bfloat16, forward and backward, once as
full rows (one segment each) and once packed with documents of real lengths (log-normal, 110 tokens
on average, at most 128 or the row). TFLOP/s count the scores that are needed: 12 · D FLOPs a pair
of tokens of one segment and head for forward and backward. Others get the same rows; what can't
serve says why. `--store` keeps the block size that was fastest on packed rows of each length as the
default for GPUs of this kind, in pallas_kernels. On a machine without a GPU it runs the kernels
with JAX's interpreter, at sizes that end (`--rows 1 --lengths 64`): that shows that the script
works and says nothing of speed.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import alibi_attention_qkv, alibi_slopes, block_ranges
from pallas_kernels.alibi_attention.block_ranges import MEASURED_BLOCK_SIZES
from pallas_kernels.backends import target_platform

HEADS, HEAD_SIZE = 12, 64
TOKENS = 131_072
OURS = {size: f"ours, blocks of {size}" for size in (32, 64, 128)}
REPEATS = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 2048, 8192])
    parser.add_argument("--rows", type=int, help="a row count; the default makes 131,072 tokens")
    parser.add_argument("--output", type=pathlib.Path, help="a Markdown file for the results")
    parser.add_argument("--store", action="store_true", help="keep the fastest block sizes")
    arguments = parser.parse_args()
    kernels = "triton" if target_platform() == "gpu" else "interpret"
    if arguments.store and kernels != "triton":
        parser.error("--store is for a GPU: the interpreter's times say nothing")
    device = jax.devices()[0].device_kind
    lines = [
        "# Attention on a GPU",
        "",
        f"{device}, jax {jax.__version__}, `python -m benchmarks.attention`, ours by {kernels}; "
        f"forward and backward, median of {REPEATS}, {HEADS} heads of {HEAD_SIZE}, bfloat16",
        "",
        "| rows | segments | implementation | largest error | ms | TFLOP/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    fastest = {}
    for length in arguments.lengths:
        rows = arguments.rows or max(1, TOKENS // length)
        for kind in ("full", "packed"):
            seconds_of = {}
            for line in measure(rows, length, kind, kernels, seconds_of):
                lines.append(line)
                print(line, flush=True)
        if ours := {size: seconds_of[name] for size, name in OURS.items() if name in seconds_of}:
            fastest[length] = min(ours, key=ours.get)
    if arguments.store:
        store(device, fastest)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def store(device: str, fastest: dict[int, int]) -> None:
    """Keeps {row length: tokens a block} among the defaults of this kind of device."""
    measured = json.loads(MEASURED_BLOCK_SIZES.read_text(encoding="utf-8"))
    measured.setdefault(device, {}).update({str(k): v for k, v in fastest.items()})
    text = json.dumps(measured, indent=2, sort_keys=True) + "\n"
    MEASURED_BLOCK_SIZES.write_text(text, encoding="utf-8")


def measure(
    rows: int, length: int, kind: str, kernels: str, seconds_of: dict[str, float]
) -> Iterator[str]:
    """The table's lines for one row length and kind of segments; fills in the medians."""
    random = np.random.default_rng(0)
    segment_ids_BL = segment_ids(random, rows, length, kind)
    shape = (rows, length, 3, HEADS, HEAD_SIZE)
    qkv_BL3HD = jnp.asarray(random.normal(size=shape), jnp.bfloat16)
    d_out_BLHD = jnp.asarray(random.normal(size=(*shape[:2], *shape[3:])), jnp.bfloat16)
    flops = 12 * HEAD_SIZE * HEADS * needed_pairs(np.asarray(segment_ids_BL))
    few = slice(0, max(1, min(rows, 2**22 // length**2)))  # the reference is dense
    true = jax.jit(functools.partial(forward_and_backward, attend("reference")))(
        qkv_BL3HD[few], segment_ids_BL[few], d_out_BLHD[few]
    )
    for name, function in implementations(kernels, length):
        start = f"| {rows} x {length} | {kind} | {name} |"
        try:
            step = jax.jit(functools.partial(forward_and_backward, function))
            found = step(qkv_BL3HD, segment_ids_BL, d_out_BLHD)
            without_bias = "no ALiBi" in name
            error = "–" if without_bias else f"{largest_error(found, true, few):.1e}"
            seconds = seconds_of[name] = median_seconds(step, qkv_BL3HD, segment_ids_BL, d_out_BLHD)
        except Exception as reason:  # another library's limits, whatever it raises
            yield f"{start} can't serve: {str(reason).splitlines()[0][:80]} | | |"
        else:
            yield f"{start} {error} | {1e3 * seconds:.3f} | {flops / seconds / 1e12:.1f} |"


def implementations(kernels: str, length: int) -> Iterator[tuple[str, Callable]]:
    """Names, and functions of (qkv_BL3HD, segment_ids_BL)."""
    for size, name in OURS.items():
        yield name, attend(kernels, size)
    yield "ours, xla", attend("xla")
    if length <= 2048:  # beyond, the dense bias alone takes gigabytes
        yield "jax.nn.dot_product_attention, xla, dense bias", dense_attention("xla")
        yield "jax.nn.dot_product_attention, cudnn, dense bias", dense_attention("cudnn")
        yield "tokamax, triton, dense bias", dense_attention("tokamax")
    yield "jax's Pallas mha, no ALiBi", pallas_mha


def attend(backend: str, block_size: int | None = None) -> Callable:
    def function(qkv_BL3HD, segment_ids_BL):
        ranges = block_ranges(segment_ids_BL, block_size=block_size)
        return alibi_attention_qkv(qkv_BL3HD, segment_ids_BL, block_ranges=ranges, backend=backend)

    return function


def dense_attention(implementation: str) -> Callable:
    """By functions that take bias and mask as arrays: jax.nn's "xla" and "cudnn", and "tokamax"."""

    def function(qkv_BL3HD, segment_ids_BL):
        attention = jax.nn.dot_product_attention
        if implementation == "tokamax":
            from tokamax import dot_product_attention as attention  # if it is installed

        q, k, v = (qkv_BL3HD[:, :, part] for part in range(3))
        column_L = jnp.arange(q.shape[1])
        distance_LL = jnp.abs(column_L[:, None] - column_L)
        bias_HLL = -alibi_slopes(HEADS)[:, None, None] * distance_LL
        same_BLL = segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :]
        out_BLHD = attention(
            q,
            k,
            v,
            bias=bias_HLL[None].astype(q.dtype),
            mask=same_BLL[:, None],
            implementation="triton" if implementation == "tokamax" else implementation,
        )
        return jnp.where((segment_ids_BL != 0)[:, :, None, None], out_BLHD, 0)

    return function


def pallas_mha(qkv_BL3HD, segment_ids_BL):
    from jax.experimental.pallas.ops.gpu import attention

    q, k, v = (qkv_BL3HD[:, :, part] for part in range(3))
    sizes = attention.BlockSizes(
        block_q=64, block_k=64, block_q_dkv=64, block_kv_dkv=64, block_q_dq=64, block_kv_dq=64
    )
    return attention.mha(q, k, v, segment_ids_BL, sm_scale=HEAD_SIZE**-0.5, block_sizes=sizes)


def forward_and_backward(function, qkv_BL3HD, segment_ids_BL, d_out_BLHD):
    """The output and the gradient of qkv."""
    out_BLHD, pull_back = jax.vjp(lambda qkv: function(qkv, segment_ids_BL), qkv_BL3HD)
    return out_BLHD, pull_back(d_out_BLHD.astype(out_BLHD.dtype))[0]


def segment_ids(random, rows: int, length: int, kind: str) -> jax.Array:
    """int32[rows, length]: one segment a row, or documents one after another, cut at the row."""
    if kind == "full":
        return jnp.ones((rows, length), jnp.int32)
    ids_BL = np.zeros((rows, length), np.int32)
    for ids_L in ids_BL:
        lengths = np.clip(random.lognormal(4.5, 0.6, length), 2, min(128, length)).astype(int)
        ends = np.cumsum(lengths)
        ends = ends[ends <= length]
        ids_L[: ends[-1]] = np.repeat(np.arange(1, len(ends) + 1), lengths[: len(ends)])
    return jnp.asarray(ids_BL)


def needed_pairs(ids_BL: np.ndarray) -> int:
    """Pairs of tokens that share a segment."""
    pairs = 0
    for ids_L in ids_BL:
        pairs += int((np.bincount(ids_L)[1:].astype(np.int64) ** 2).sum())
    return pairs


def largest_error(found, true, few: slice) -> float:
    """Of outputs and gradients, as a share of the largest true value."""
    errors = []
    for ours, expected in zip(found, true, strict=True):
        ours, expected = (np.asarray(x, np.float32) for x in (ours[few], expected))
        errors.append(np.abs(ours - expected).max() / np.abs(expected).max())
    return float(max(errors))


def median_seconds(step: Callable, *arguments) -> float:
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
