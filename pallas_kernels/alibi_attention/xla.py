"""Blockwise attention in plain JAX, for CPUs and as the portable path.

The algorithm of FlashAttention (Dao, 2023, arXiv:2307.08691): a block of queries meets one block
of keys at a time, with a running maximum and sum; the backward pass recomputes the weights from
the saved logsumexp. Only blocks inside `BlockRanges` are met, so that time follows the segments
and memory is linear in the row length. A row of one block runs without any loop.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from pallas_kernels.alibi_attention.block_ranges import BlockRanges, pad_to_blocks
from pallas_kernels.alibi_attention.rope import rotated
from pallas_kernels.random_bits import dropout_scale, keep_mask


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What is known when the program is built."""

    scale: float
    block_size: int
    length: int  # of the row before it was padded to whole blocks: dropout's counters need it
    window: int | None
    dropout_rate: float


def attention(
    q_BLHD: Float[Array, "B L H D"],
    k_BLHD: Float[Array, "B L H D"],
    v_BLHD: Float[Array, "B L H D"],
    segment_ids_BL: Int[Array, "B L"],
    slopes_H: Float[Array, "H"],
    ranges: BlockRanges,
    *,
    scale: float,
    rope_theta: float | None = None,
    window: int | None = None,
    dropout_rate: float = 0.0,
    dropout_keys_B: Key[Array, "B"] | None = None,
) -> Float[Array, "B L H D"]:
    """See `api.alibi_attention`. The rows of a batch share the widest of their ranges."""
    length = q_BLHD.shape[1]
    if rope_theta is not None:
        q_BLHD, k_BLHD = rotated(q_BLHD, rope_theta), rotated(k_BLHD, rope_theta)
    settings = _Settings(scale, ranges.block_size, length, window, dropout_rate)
    q_BHLD, k_BHLD, v_BHLD = (
        pad_to_blocks(x.transpose(0, 2, 1, 3), ranges.block_size, axis=2)
        for x in (q_BLHD, k_BLHD, v_BLHD)
    )
    lower_BQ, upper_BQ = ranges.of_blocks(ranges.block_size, ranges.block_size, window=window)
    lower_Q = jnp.min(jnp.where(lower_BQ == upper_BQ, lower_BQ.shape[1], lower_BQ), axis=0)
    upper_Q = jnp.max(upper_BQ, axis=0)
    context = _Context(
        pad_to_blocks(segment_ids_BL, ranges.block_size),
        slopes_H.astype(jnp.float32),
        jnp.minimum(lower_Q, upper_Q),
        upper_Q,
        dropout_keys_B,
    )
    out_BHLD = _attend(settings, q_BHLD, k_BHLD, v_BHLD, context)
    return out_BHLD[:, :, :length].transpose(0, 2, 1, 3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Context:
    """The arrays that have no gradient."""

    segment_ids_BL: jax.Array
    slopes_H: jax.Array
    lower_Q: jax.Array
    upper_Q: jax.Array
    dropout_keys_B: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings: _Settings, q_BHLD, k_BHLD, v_BHLD, context: _Context):
    return _forward(settings, q_BHLD, k_BHLD, v_BHLD, context)[0]


def _einsum(subscripts: str, *operands: jax.Array) -> jax.Array:
    """With sums in float32, of float32 operands in full precision too: not TF32, as GPUs would."""
    precision = lax.Precision.HIGHEST if operands[0].dtype == jnp.float32 else None
    return jnp.einsum(
        subscripts, *operands, precision=precision, preferred_element_type=jnp.float32
    )


def _take(x: jax.Array, block: jax.Array, size: int, axis: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, block * size, size, axis)


def _scores(settings: _Settings, q_BHID, k_BHJD, i, j, context: _Context):
    """Scores of query block i against key block j: float32[B, H, I, J], -inf where unseen."""
    size = settings.block_size
    scores_BHIJ = settings.scale * _einsum("bhid,bhjd->bhij", q_BHID, k_BHJD)
    row_I1 = lax.broadcasted_iota(jnp.int32, (size, size), 0) + i * size
    column_1J = lax.broadcasted_iota(jnp.int32, (size, size), 1) + j * size
    distance_IJ = jnp.abs(row_I1 - column_1J).astype(jnp.float32)
    ids_BI = _take(context.segment_ids_BL, i, size, 1)
    ids_BJ = _take(context.segment_ids_BL, j, size, 1)
    visible_BIJ = (ids_BI[:, :, None] == ids_BJ[:, None, :]) & (ids_BI != 0)[:, :, None]
    if settings.window is not None:
        visible_BIJ &= distance_IJ <= settings.window
    scores_BHIJ -= context.slopes_H[:, None, None] * distance_IJ
    return jnp.where(visible_BIJ[:, None], scores_BHIJ, -jnp.inf)


def _drop(settings: _Settings, x_BHIJ, i, j, context: _Context):
    """Attention dropout, with the reference's counters: ((head L) + query) L + key."""
    if not settings.dropout_rate:
        return x_BHIJ
    size, length = settings.block_size, settings.length
    shape_HIJ = x_BHIJ.shape[1:]
    head, query, key = (lax.broadcasted_iota(jnp.uint32, shape_HIJ, axis) for axis in range(3))
    query = query + jnp.uint32(i * size)
    key = key + jnp.uint32(j * size)
    counters_HIJ = (head * jnp.uint32(length) + query) * jnp.uint32(length) + key
    keep_BHIJ = keep_mask(
        context.dropout_keys_B[:, None, None, None], counters_HIJ, settings.dropout_rate
    )
    return jnp.where(keep_BHIJ, x_BHIJ * dropout_scale(settings.dropout_rate), 0.0)


def _loop(num_blocks: int, lower, upper, body, carry):
    """body(block, carry) over [lower, upper); without a loop where a row is one block."""
    return body(0, carry) if num_blocks == 1 else lax.fori_loop(lower, upper, body, carry)


def _forward(settings: _Settings, q_BHLD, k_BHLD, v_BHLD, context: _Context):
    size = settings.block_size
    rows, heads, padded_length, head_size = q_BHLD.shape
    num_blocks = padded_length // size

    def attend_block(i):
        q_BHID = _take(q_BHLD, i, size, 2)

        def meet(j, carry):
            highest_BHI, total_BHI, sum_BHID = carry
            scores_BHIJ = _scores(settings, q_BHID, _take(k_BHLD, j, size, 2), i, j, context)
            new_BHI = jnp.maximum(highest_BHI, jnp.max(scores_BHIJ, axis=-1))
            # A query that has seen no key yet: subtract 0, as -inf - -inf is NaN.
            shift_BHI = jnp.where(jnp.isfinite(new_BHI), new_BHI, 0.0)
            weights_BHIJ = jnp.exp(scores_BHIJ - shift_BHI[..., None])
            decay_BHI = jnp.exp(highest_BHI - shift_BHI)
            total_BHI = total_BHI * decay_BHI + jnp.sum(weights_BHIJ, axis=-1)
            dropped_BHIJ = _drop(settings, weights_BHIJ, i, j, context).astype(v_BHLD.dtype)
            weighted_BHID = _einsum("bhij,bhjd->bhid", dropped_BHIJ, _take(v_BHLD, j, size, 2))
            sum_BHID = sum_BHID * decay_BHI[..., None] + weighted_BHID
            return new_BHI, total_BHI, sum_BHID

        start = (
            jnp.full((rows, heads, size), -jnp.inf, jnp.float32),
            jnp.zeros((rows, heads, size), jnp.float32),
            jnp.zeros((rows, heads, size, head_size), jnp.float32),
        )
        highest_BHI, total_BHI, sum_BHID = _loop(
            num_blocks, context.lower_Q[i], context.upper_Q[i], meet, start
        )
        safe_BHI = jnp.where(total_BHI == 0.0, 1.0, total_BHI)
        out_BHID = (sum_BHID / safe_BHI[..., None]).astype(q_BHLD.dtype)
        # +inf for a query without keys makes its recomputed weights exp(-inf - inf) = 0.
        logsumexp_BHI = jnp.where(total_BHI == 0.0, jnp.inf, highest_BHI + jnp.log(safe_BHI))
        return out_BHID, logsumexp_BHI

    if num_blocks == 1:
        return attend_block(0)
    out_QBHID, logsumexp_QBHI = lax.map(attend_block, jnp.arange(num_blocks))
    out_BHLD = jnp.moveaxis(out_QBHID, 0, 2).reshape(q_BHLD.shape)
    return out_BHLD, jnp.moveaxis(logsumexp_QBHI, 0, 2).reshape(rows, heads, padded_length)


def _attend_forward(settings, q_BHLD, k_BHLD, v_BHLD, context):
    out_BHLD, logsumexp_BHL = _forward(settings, q_BHLD, k_BHLD, v_BHLD, context)
    return out_BHLD, (q_BHLD, k_BHLD, v_BHLD, context, out_BHLD, logsumexp_BHL)


def _attend_backward(settings: _Settings, saved, d_out_BHLD):
    """One sweep: for each block of keys, the queries that saw it; dq is summed in place."""
    q_BHLD, k_BHLD, v_BHLD, context, out_BHLD, logsumexp_BHL = saved
    size = settings.block_size
    num_blocks = q_BHLD.shape[2] // size
    delta_BHL = jnp.sum(d_out_BHLD.astype(jnp.float32) * out_BHLD.astype(jnp.float32), axis=-1)

    def visit_keys(dq_BHLD, j):
        k_BHJD, v_BHJD = _take(k_BHLD, j, size, 2), _take(v_BHLD, j, size, 2)

        def meet(i, carry):
            dq_BHLD, dk_BHJD, dv_BHJD = carry
            q_BHID, d_out_BHID = _take(q_BHLD, i, size, 2), _take(d_out_BHLD, i, size, 2)
            scores_BHIJ = _scores(settings, q_BHID, k_BHJD, i, j, context)
            weights_BHIJ = jnp.exp(scores_BHIJ - _take(logsumexp_BHL, i, size, 2)[..., None])
            dropped_BHIJ = _drop(settings, weights_BHIJ, i, j, context).astype(v_BHLD.dtype)
            dv_BHJD += _einsum("bhij,bhid->bhjd", dropped_BHIJ, d_out_BHID)
            d_weights_BHIJ = _einsum("bhid,bhjd->bhij", d_out_BHID, v_BHJD)
            d_weights_BHIJ = _drop(settings, d_weights_BHIJ, i, j, context)
            delta_BHI1 = _take(delta_BHL, i, size, 2)[..., None]
            d_scores_BHIJ = settings.scale * weights_BHIJ * (d_weights_BHIJ - delta_BHI1)
            d_scores_BHIJ = d_scores_BHIJ.astype(q_BHLD.dtype)
            dk_BHJD += _einsum("bhij,bhid->bhjd", d_scores_BHIJ, q_BHID)
            dq_BHID = _einsum("bhij,bhjd->bhid", d_scores_BHIJ, k_BHJD)
            if num_blocks == 1:
                return dq_BHID, dk_BHJD, dv_BHJD
            dq_BHID += _take(dq_BHLD, i, size, 2)
            dq_BHLD = lax.dynamic_update_slice_in_dim(dq_BHLD, dq_BHID, i * size, axis=2)
            return dq_BHLD, dk_BHJD, dv_BHJD

        zeros_BHJD = jnp.zeros(k_BHJD.shape, jnp.float32)
        dq_BHLD, dk_BHJD, dv_BHJD = _loop(
            num_blocks,
            context.lower_Q[j],
            context.upper_Q[j],
            meet,
            (dq_BHLD, zeros_BHJD, zeros_BHJD),
        )
        return dq_BHLD, (dk_BHJD.astype(k_BHLD.dtype), dv_BHJD.astype(v_BHLD.dtype))

    dq_BHLD = jnp.zeros(q_BHLD.shape, jnp.float32)
    if num_blocks == 1:
        dq_BHLD, (dk_BHLD, dv_BHLD) = visit_keys(dq_BHLD, 0)
    else:
        dq_BHLD, stacked = lax.scan(visit_keys, dq_BHLD, jnp.arange(num_blocks))
        dk_BHLD, dv_BHLD = (jnp.moveaxis(x, 0, 2).reshape(k_BHLD.shape) for x in stacked)
    # The context has no gradient: segment ids and ranges are integers, the slopes constants.
    return dq_BHLD.astype(q_BHLD.dtype), dk_BHLD, dv_BHLD, None


_attend.defvjp(_attend_forward, _attend_backward)
