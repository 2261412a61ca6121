"""Cross-entropy and its gradient as one Pallas kernel for NVIDIA GPUs, through Triton.

A program has one row of logits. It goes over them twice, first for their maximum and the sum of
their exponentials, then for the gradient. The second time they are in the second-level cache: the
rows that a GPU works on at once, two a core, are 13 of an A100's 40 MB at 30,528 words in bfloat16.

Shape letters besides those of `api`: W words of a row worked on at once.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Int

_WORDS_AT_ONCE = 4096
_LAUNCH = plgpu.CompilerParams(num_warps=32, num_stages=1)  # two programs fill a core


def cross_entropy_and_gradient(
    logits_NV: Float[Array, "N V"],
    labels_N: Int[Array, "N"],
    weights_N: Float[Array, "N"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "N"], Bool[Array, "N"], Float[Array, "N V"]]:
    """See `api.cross_entropy_and_gradient`."""
    rows, words = logits_NV.shape
    a_row = jax.ShapeDtypeStruct((rows,), jnp.float32)
    loss_N, excess_N, d_logits_NV = pl.pallas_call(
        functools.partial(_kernel, words),
        grid=(rows,),
        out_shape=[a_row, a_row, jax.ShapeDtypeStruct((rows, words), logits_NV.dtype)],
        compiler_params=_LAUNCH,
        interpret=interpret,
        name="cross_entropy_and_gradient",
    )(logits_NV, labels_N, weights_N)
    return loss_N, excess_N <= 0, d_logits_NV


def _kernel(words, logits_ref, label_ref, weight_ref, loss_ref, excess_ref, d_logits_ref):
    row = pl.program_id(0)
    label, weight = label_ref[row], weight_ref[row]

    def load(step):
        """A part of the row in float32, -inf where there is nothing, and its columns."""
        column_W = step * _WORDS_AT_ONCE + jnp.arange(_WORDS_AT_ONCE)
        there_W = column_W < words
        logits_W = plgpu.load(logits_ref.at[row, column_W], mask=there_W, other=-jnp.inf)
        return logits_W.astype(jnp.float32), column_W

    def meet(step, seen):
        highest, total = seen
        logits_W, _ = load(step)
        higher = jnp.maximum(highest, jnp.max(logits_W))
        return higher, total * jnp.exp(highest - higher) + jnp.sum(jnp.exp(logits_W - higher))

    def write(step, _):
        logits_W, column_W = load(step)
        d_logits_W = jnp.exp(logits_W - highest) * (weight / total)
        d_logits_W -= jnp.where(column_W == label, weight, 0.0)
        place = d_logits_ref.at[row, column_W]
        plgpu.store(place, d_logits_W.astype(d_logits_ref.dtype), mask=column_W < words)

    steps = pl.cdiv(words, _WORDS_AT_ONCE)
    # The first step finds a row's highest so far, which is finite: no exponential of inf - inf.
    lowest = jnp.float32(jnp.finfo(jnp.float32).min)
    highest, total = jax.lax.fori_loop(0, steps, meet, (lowest, jnp.float32(0)))
    jax.lax.fori_loop(0, steps, write, None)
    known = (label >= 0) & (label < words)
    label_logit = plgpu.load(logits_ref.at[row, label], mask=known, other=jnp.nan)
    # A GPU's maximum ignores NaN, but the total is NaN if a logit is, and makes the excess NaN.
    excess = highest - label_logit.astype(jnp.float32) + 0.0 * total
    loss_ref[row] = jnp.log(total) + excess
    excess_ref[row] = excess
