"""Measures attention's launch parameters on this machine's GPU and keeps the fastest.

    python -m pallas_kernels.alibi_attention.autotune --length 512 --head-size 64

What it finds is stored in the user's cache folder (`launch.cache_path`) and taken from then on for
rows of about that length. Another launch adds in another order: results change by rounding, so a
run that is to be resumed bit for bit should not be tuned halfway.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.alibi_attention import launch as launches
from pallas_kernels.alibi_attention.api import alibi_attention_qkv
from pallas_kernels.alibi_attention.block_ranges import block_ranges
from pallas_kernels.alibi_attention.launch import AttentionLaunch, Launch
from pallas_kernels.backends import DTYPES, target
from pallas_kernels.timing import seconds_per_call

_TOKENS = 131_072


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is measured: rows of documents of at most `longest` tokens, one after another.

    With `rope_theta`, queries and keys are rotated; see `alibi_attention`.
    """

    rows: int
    length: int
    heads: int
    head_size: int
    dtype: str
    longest: int
    rope_theta: float | None = None

    def operands(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """qkv_BL3HD, segment_ids_BL and the output's gradient, drawn at random."""
        rng = np.random.default_rng(0)
        ends_BS = np.cumsum(rng.integers(1, self.longest + 1, (self.rows, self.length)), axis=1)
        columns_L = np.arange(self.length)
        ids_BL = 1 + np.stack([np.searchsorted(ends_S, columns_L, "right") for ends_S in ends_BS])
        shape = (self.rows, self.length, 3, self.heads, self.head_size)
        qkv_BL3HD = jnp.asarray(rng.normal(size=shape), self.dtype)
        d_out_BLHD = jnp.asarray(rng.normal(size=(*shape[:2], *shape[3:])), self.dtype)
        return qkv_BL3HD, jnp.asarray(ids_BL, jnp.int32), d_out_BLHD


def autotune(
    problem: Problem,
    candidates: Callable[[bool], list[Launch]],
    *,
    backend: str = "triton",
    say: Callable[[str], None] = print,
) -> AttentionLaunch:
    """The fastest launch of each direction, each measured alone.

    Args:
      candidates: those of the backward kernel, or of the forward one.
      backend: "triton", or "interpret" to see that it works.
      say: takes a line for each launch: its milliseconds, or why the card can't run it.
    """
    qkv_BL3HD, ids_BL, d_out_BLHD = problem.operands()
    ranges = block_ranges(ids_BL, block_size=launches.RANGE_BLOCK)
    rotates = problem.rope_theta is not None
    default = launches.default_launch(target(), problem.head_size, problem.dtype, rotates=rotates)
    repeats = {} if backend == "triton" else {"calls": 1, "repeats": 1}

    def attend(launch: AttentionLaunch):
        return lambda qkv_BL3HD: alibi_attention_qkv(
            qkv_BL3HD,
            ids_BL,
            rope_theta=problem.rope_theta,
            block_ranges=ranges,
            launch=launch,
            backend=backend,
        )

    def forward(launch: Launch) -> float:
        function = jax.jit(attend(AttentionLaunch(launch, default.backward)))
        return seconds_per_call(function, qkv_BL3HD, **repeats)

    def backward(launch: Launch) -> float:
        function = attend(AttentionLaunch(default.forward, launch))
        _, pull_back = jax.vjp(function, qkv_BL3HD)
        return seconds_per_call(jax.jit(lambda p, d: p(d)), pull_back, d_out_BLHD, **repeats)

    return AttentionLaunch(
        fastest("forward", candidates(False), forward, say),
        fastest("backward", candidates(True), backward, say),
    )


def fastest(
    direction: str,
    candidates: list[Launch],
    measure: Callable[[Launch], float],
    say: Callable[[str], None],
) -> Launch:
    """The candidate that `measure` finds the fastest; one that can't run is skipped.

    Raises:
      RuntimeError: none runs.
    """
    seconds, begun = {}, time.perf_counter()
    for count, launch in enumerate(candidates, 1):
        try:
            seconds[launch] = measure(launch)
            found = f"{1e3 * seconds[launch]:.3f} ms"
        except jax.errors.JaxRuntimeError as error:  # too much shared memory, say
            found = f"can't run: {str(error).splitlines()[0][:70]}"
        left = (time.perf_counter() - begun) / count * (len(candidates) - count)
        say(
            f"{direction} {count}/{len(candidates)}, {left:.0f} s left: {launch.block}x"
            f"{launch.inner_block}, {launch.num_warps} warps, {launch.num_stages} stages: {found}"
        )
    if not seconds:
        raise RuntimeError(f"no launch of the {direction} kernel runs on this card")
    best = min(seconds, key=seconds.get)
    say(f"{direction}: the fastest is {best}")
    return best


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--longest", type=int, default=128, help="tokens of a document, at most")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-size", type=int, default=64, choices=(32, 64, 128))
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--rope-theta", type=float, help="base of rotary embeddings, if any")
    options = parser.parse_args()
    device = target()
    if device.why_not_triton:
        sys.exit(f"error: {device.why_not_triton}")
    rows = max(1, _TOKENS // options.length)
    problem = Problem(
        rows,
        options.length,
        options.heads,
        options.head_size,
        options.dtype,
        options.longest,
        options.rope_theta,
    )
    found = autotune(
        problem,
        lambda backward: launches.candidates(options.head_size, options.dtype, backward=backward),
    )
    key = launches.cache_key(
        device.device_kind,
        options.length,
        options.head_size,
        options.dtype,
        rotates=options.rope_theta is not None,
    )
    launches.store(launches.cache_path(), {key: found})
    print(f"Stored in {launches.cache_path()} for {key}.")


if __name__ == "__main__":
    main()
