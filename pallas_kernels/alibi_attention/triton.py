"""Attention as Pallas kernels for NVIDIA GPUs from Ampere on, through Triton.

FlashAttention-2 (Dao, 2023, arXiv:2307.08691) over packed rows. A program has one block of queries
of one head and row, and meets only the blocks of keys that `BlockRanges` names. ALiBi's bias and
the segment mask are computed in registers from positions and segment ids; the softmax is in base
2 and float32. A sliding window is part of the mask and narrows the ranges. The backward pass
recomputes the weights from the saved logsumexp, in one kernel of two sweeps: what a block of keys
receives from its queries (dk, dv), then what the same block as queries receives from its keys (dq).
Nothing is added atomically, so it is deterministic.

Queries, keys and values come as one packed array, as they leave their projection, or as three.
The gradients have the same form, so that no copy stands beside the kernels. The projection's bias
is added before, where the compiler makes it part of the matrix product; its gradient is summed
here, a block at a time, while the gradients that it is the sum of are in registers. Rotary
embeddings turn queries and keys where they lie before both kernels (`rope_kernel`), and the
gradients back in registers before they are written.

Shape letters besides those of `api`: I queries of a block, J keys of a block, Q blocks of a row.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels import ptx
from pallas_kernels.alibi_attention.block_ranges import BlockRanges
from pallas_kernels.alibi_attention.launch import AttentionLaunch, Launch
from pallas_kernels.alibi_attention.operands import add_bias
from pallas_kernels.alibi_attention.rope import rope_tables, rotate_back
from pallas_kernels.alibi_attention.rope_kernel import rotate_in_place

HEAD_SIZES = (32, 64, 128)
WINDOW_MARK = "_window_"  # in a kernel's name, before its window
_LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is known when the program is built.

    Attributes:
      scale: of the scores.
      launch: block sizes, warps and stages.
      packed: whether the operands are one array, (B, L, 3, H, D), or three, (B, L, H, D) each.
      has_bias: whether a bias was added to the packed one, whose gradient is wanted.
      rotates: whether queries and keys are rotated, and there are no slopes.
      window: tokens on each side that a token sees; None: all of its segment.
      interpret: run the kernels step by step with JAX's interpreter, on any platform.
    """

    scale: float
    launch: AttentionLaunch
    packed: bool
    has_bias: bool
    rotates: bool
    window: int | None
    interpret: bool


def attention(
    operands: tuple[Array, ...],
    segment_ids_BL: Int[Array, "B L"],
    slopes_H: Float[Array, "H"],
    ranges: BlockRanges,
    launch: AttentionLaunch,
    *,
    scale: float,
    rope_theta: float | None = None,
    window: int | None = None,
    bias_3HD: Float[Array, "3 H D"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B L H D"]:
    """See `api.alibi_attention`.

    Args:
      operands: (qkv_BL3HD,) or (q_BLHD, k_BLHD, v_BLHD).
      bias_3HD: for the first form only.

    Raises:
      ValueError: ranges whose blocks don't divide those of the launch.
    """
    biases = () if bias_3HD is None else (bias_3HD,)
    packed, rotates = len(operands) == 1, rope_theta is not None
    settings = Settings(scale, launch, packed, bias_3HD is not None, rotates, window, interpret)
    tables = ()
    if rotates:
        _, length, _, head_size = _shape(settings, operands)
        tables = tuple(map(jnp.asarray, rope_tables(length, head_size, rope_theta)))
    return _attend(settings, operands, biases, (segment_ids_BL, slopes_H, ranges, tables))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings: Settings, operands, biases, context):
    return _attend_forward(settings, operands, biases, context)[0]


def _attend_forward(settings: Settings, operands, biases, context):
    if biases:
        operands = (add_bias(operands[0], biases[0]),)
    if settings.rotates:
        operands = rotate_in_place(operands, context[-1], interpret=settings.interpret)
    out_BLHD, logsumexp_BHL = _forward(settings, operands, context)
    return out_BLHD, (operands, context, out_BLHD, logsumexp_BHL)


def _attend_backward(settings: Settings, saved, d_out_BLHD):
    operands, context, out_BLHD, logsumexp_BHL = saved
    products_BLHD = d_out_BLHD.astype(jnp.float32) * out_BLHD.astype(jnp.float32)
    delta_BHL = jnp.sum(products_BLHD, axis=-1).transpose(0, 2, 1)
    gradients = _backward(settings, operands, context, d_out_BLHD, logsumexp_BHL, delta_BHL)
    d_operands, sums_BQ3HD = gradients[: len(operands)], gradients[len(operands) :]
    # The context has no gradient: segment ids and ranges are integers, the slopes constants.
    return d_operands, tuple(sum_BQ3HD.sum(axis=(0, 1)) for sum_BQ3HD in sums_BQ3HD), None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(settings: Settings, operands, context):
    launch = settings.launch.forward
    rows, length, heads, head_size = _shape(settings, operands)
    row_of_head = pl.BlockSpec((None, length, None, head_size), lambda i, h, b: (b, 0, h, 0))
    return pl.pallas_call(
        functools.partial(_forward_kernel, settings, length),
        grid=(pl.cdiv(length, launch.block), heads, rows),
        in_specs=[
            *_operand_specs(settings, length, head_size),
            *_context_specs(length),
        ],
        out_specs=[row_of_head, pl.BlockSpec((None, None, length), lambda i, h, b: (b, h, 0))],
        out_shape=[
            jax.ShapeDtypeStruct((rows, length, heads, head_size), operands[0].dtype),
            jax.ShapeDtypeStruct((rows, heads, length), jnp.float32),
        ],
        compiler_params=_compiler_params(launch),
        interpret=settings.interpret,
        name=_name("alibi_attention_forward", settings),
    )(*_as_three(operands), *_context_of(settings, launch, context))


def _backward(settings: Settings, operands, context, d_out_BLHD, logsumexp_BHL, delta_BHL):
    launch = settings.launch.backward
    rows, length, heads, head_size = _shape(settings, operands)
    row_of_head = pl.BlockSpec((None, length, None, head_size), lambda i, h, b: (b, 0, h, 0))
    per_token = pl.BlockSpec((None, None, length), lambda i, h, b: (b, h, 0))
    table = pl.BlockSpec((length, head_size // 2), lambda i, h, b: (0, 0))
    if settings.packed:
        row_of_all = pl.BlockSpec(
            (None, length, 3, None, head_size), lambda i, h, b: (b, 0, 0, h, 0)
        )
        out_specs = [row_of_all]
    else:
        out_specs = [row_of_head] * 3
    blocks = pl.cdiv(length, launch.block)
    out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
    if settings.has_bias:
        block_of_all = (None, None, 3, None, head_size)
        out_specs.append(pl.BlockSpec(block_of_all, lambda i, h, b: (b, i, 0, h, 0)))
        out_shape.append(jax.ShapeDtypeStruct((rows, blocks, 3, heads, head_size), jnp.float32))
    gradients = pl.pallas_call(
        functools.partial(_backward_kernel, settings, length),
        grid=(blocks, heads, rows),
        in_specs=[
            *_operand_specs(settings, length, head_size),
            *_context_specs(length),
            row_of_head,
            per_token,
            per_token,
            *[table] * (2 * settings.rotates),
        ],
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=_compiler_params(launch),
        interpret=settings.interpret,
        name=_name("alibi_attention_backward", settings),
    )(
        *_as_three(operands),
        *_context_of(settings, launch, context),
        d_out_BLHD,
        logsumexp_BHL,
        delta_BHL,
        *context[-1],
    )
    return tuple(gradients)


def _name(kernel: str, settings: Settings) -> str:
    return kernel if settings.window is None else f"{kernel}{WINDOW_MARK}{settings.window}"


def _compiler_params(launch: Launch) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=launch.num_warps, num_stages=launch.num_stages)


def _context_of(settings: Settings, launch: Launch, context):
    """What a kernel takes of it: the ranges in the blocks of its launch."""
    segment_ids_BL, slopes_H, ranges, _ = context
    bounds = ranges.of_blocks(launch.block, launch.inner_block, window=settings.window)
    return segment_ids_BL, slopes_H, *bounds


def _shape(settings: Settings, operands) -> tuple[int, int, int, int]:
    shape = operands[0].shape
    return (shape[0], shape[1], shape[3], shape[4]) if settings.packed else shape


def _as_three(operands):
    return operands * 3 if len(operands) == 1 else operands


def _operand_specs(settings: Settings, length: int, head_size: int) -> list[pl.BlockSpec]:
    """Each program sees all tokens of its row and head in q, k and v; it loads what it needs."""
    if not settings.packed:
        spec = pl.BlockSpec((None, length, None, head_size), lambda i, h, b: (b, 0, h, 0))
        return [spec] * 3

    def spec_of(part: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, length, None, None, head_size), lambda i, h, b: (b, 0, part, h, 0)
        )

    return [spec_of(part) for part in range(3)]


def _context_specs(length: int) -> list[pl.BlockSpec]:
    return [
        pl.BlockSpec((None, length), lambda i, h, b: (b, 0)),  # segment ids
        pl.BlockSpec((None,), lambda i, h, b: (h,)),  # slopes
        pl.BlockSpec((None, None), lambda i, h, b: (b, i)),  # lower
        pl.BlockSpec((None, None), lambda i, h, b: (b, i)),  # upper
    ]


@dataclasses.dataclass(frozen=True)
class _Block:
    """One block of a row: where it begins, and which of its tokens are within the row."""

    start: jax.Array
    size: int
    within: jax.Array | None  # None: all are, known when the program is built

    @classmethod
    def of(cls, index, size: int, length: int) -> "_Block":
        start = index * size
        return cls(start, size, start + jnp.arange(size) < length if length % size else None)

    def load(self, ref, other: float = 0.0, columns=slice(None)):
        """Its tokens of a ref over a row: (size, D) or (size,)."""
        slice_ = pl.ds(self.start, self.size)
        if len(ref.shape) == 1:
            mask = self.within
            return plgpu.load(ref.at[slice_], mask=mask, other=None if mask is None else other)
        mask = None if self.within is None else self.within[:, None]
        return plgpu.load(ref.at[slice_, columns], mask=mask, other=None if mask is None else other)

    def store(self, ref, value, part: int | None = None, columns=slice(None)) -> None:
        """Puts its tokens into a ref over a row, (L,) or (L, D), or one part of (L, 3, D)."""
        slices = (pl.ds(self.start, self.size),)
        slices += () if part is None else (jnp.int32(part),)
        mask = self.within
        if value.ndim == 2:
            slices += (columns,)
            mask = None if mask is None else mask[:, None]
        plgpu.store(ref.at[slices], value.astype(ref.dtype), mask=mask)


def _parts(settings: Settings, head_size: int):
    """The columns of queries and keys by which backward goes: halves where they were rotated.

    A product of whole heads is the sum of the products of halves, and a gradient that is there by
    halves can be rotated back.
    """
    if not settings.rotates:
        return (slice(None),)
    return pl.ds(0, head_size // 2), pl.ds(head_size // 2, head_size // 2)


def _scores(
    settings: Settings,
    q_parts,
    k_parts,
    queries: _Block,
    keys: _Block,
    ids_I,
    ids_J,
    slope,
    logsumexp_I=None,
):
    """Scores in base 2, float32[I, J], less logsumexp_I if it is given.

    They are -inf where the segments differ, beyond the window, or where the query is padding.
    """
    fma = functools.partial(ptx.fma, interpret=settings.interpret)
    position_I = queries.start + jnp.arange(queries.size)
    position_J = keys.start + jnp.arange(keys.size)
    distance_IJ = jnp.abs(position_I[:, None] - position_J[None, :])
    products = [_dot(q, k.T) for q, k in zip(q_parts, k_parts, strict=True)]
    products_IJ = functools.reduce(jnp.add, products)
    scale = jnp.float32(settings.scale * _LOG2_E)
    if not settings.rotates:
        distances_IJ = distance_IJ.astype(jnp.float32)
        added_IJ = -slope * distances_IJ
        if logsumexp_I is not None:
            added_IJ = fma(-slope, distances_IJ, -logsumexp_I[:, None])
        scores_IJ = fma(products_IJ, scale, added_IJ)
    elif logsumexp_I is not None:
        scores_IJ = fma(products_IJ, scale, -logsumexp_I[:, None])
    else:
        scores_IJ = products_IJ * scale
    visible_IJ = ids_I[:, None] == ids_J[None, :]
    if settings.window is not None:
        visible_IJ &= distance_IJ <= settings.window
    return jnp.where(visible_IJ, scores_IJ, -jnp.inf)


def _dot(left, right):
    """A product with sums in float32, of float32 operands in full precision too."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.dot(left, right, precision=precision, preferred_element_type=jnp.float32)


def _query_ids(ids_I):
    """Padding made different from every key, padding included."""
    return jnp.where(ids_I == 0, -1, ids_I)


def _forward_kernel(
    settings,
    length,
    q_ref,
    k_ref,
    v_ref,
    ids_ref,
    slope_ref,
    lower_ref,
    upper_ref,
    out_ref,
    lse_ref,
):
    launch = settings.launch.forward
    queries = _Block.of(pl.program_id(0), launch.block, length)
    slope = slope_ref[...] * _LOG2_E
    q_ID = queries.load(q_ref)
    ids_I = _query_ids(queries.load(ids_ref, 0))
    exp2 = functools.partial(ptx.exp2, interpret=settings.interpret)

    def meet(j, carry):
        highest_I, total_I, sum_ID = carry
        keys = _Block.of(j, launch.inner_block, length)
        k_JD = keys.load(k_ref)
        ids_J = keys.load(ids_ref, 0)
        scores_IJ = _scores(settings, (q_ID,), (k_JD,), queries, keys, ids_I, ids_J, slope)
        new_I = jnp.maximum(highest_I, jnp.max(scores_IJ, axis=1))
        # A query that has seen no key yet: subtract 0, as -inf - -inf is NaN.
        shift_I = jnp.where(new_I == -jnp.inf, 0.0, new_I)
        weights_IJ = exp2(scores_IJ - shift_I[:, None])
        decay_I = exp2(highest_I - shift_I)
        total_I = total_I * decay_I + jnp.sum(weights_IJ, axis=1)
        v_JD = keys.load(v_ref)
        sum_ID = sum_ID * decay_I[:, None] + _dot(weights_IJ.astype(v_JD.dtype), v_JD)
        return new_I, total_I, sum_ID

    start = (
        jnp.full((queries.size,), -jnp.inf, jnp.float32),
        jnp.zeros((queries.size,), jnp.float32),
        jnp.zeros((queries.size, v_ref.shape[-1]), jnp.float32),
    )
    highest_I, total_I, sum_ID = jax.lax.fori_loop(lower_ref[...], upper_ref[...], meet, start)
    safe_I = jnp.where(total_I == 0.0, 1.0, total_I)
    queries.store(out_ref, sum_ID / safe_I[:, None])
    # +inf for a query without keys makes its recomputed weights exp2(-inf - inf) = 0.
    queries.store(lse_ref, jnp.where(total_I == 0.0, jnp.inf, highest_I + jnp.log2(safe_I)))


def _backward_kernel(
    settings,
    length,
    q_ref,
    k_ref,
    v_ref,
    ids_ref,
    slope_ref,
    lower_ref,
    upper_ref,
    d_out_ref,
    lse_ref,
    delta_ref,
    *refs,
):
    table_refs, gradient_refs = refs[: 2 * settings.rotates], refs[2 * settings.rotates :]
    launch = settings.launch.backward
    here = _Block.of(pl.program_id(0), launch.block, length)
    slope = slope_ref[...] * _LOG2_E
    ids_here = here.load(ids_ref, 0)
    lower, upper = lower_ref[...], upper_ref[...]
    parts = _parts(settings, v_ref.shape[-1])

    def load(block, ref):
        return [block.load(ref, columns=columns) for columns in parts]

    def put(part, gradient_ID, columns=slice(None)):
        """Stores the gradient of the block's queries (0), keys (1) or values (2)."""
        ref = gradient_refs[0 if settings.packed else part]
        here.store(ref, gradient_ID, part if settings.packed else None, columns)
        if settings.has_bias:
            gradient_refs[-1][part, columns] = jnp.sum(gradient_ID, axis=0)

    def put_rotated_back(part, gradient_parts):
        """The same of queries or keys, by parts and not yet scaled."""
        gradient_parts = [gradient * settings.scale for gradient in gradient_parts]
        if settings.rotates:
            gradient_parts = rotate_back(*gradient_parts, *(here.load(ref) for ref in table_refs))
        for gradient, columns in zip(gradient_parts, parts, strict=True):
            put(part, gradient, columns)

    def meet_queries(i, carry):
        dk_parts, dv_JD = carry
        queries = _Block.of(i, launch.inner_block, length)
        q_parts, d_out_ID = load(queries, q_ref), queries.load(d_out_ref)
        ids_I = _query_ids(queries.load(ids_ref, 0))
        lse_I = queries.load(lse_ref)
        scores_IJ = _scores(
            settings, q_parts, k_parts, queries, here, ids_I, ids_here, slope, lse_I
        )
        weights_IJ = ptx.exp2(scores_IJ, interpret=settings.interpret)
        dv_JD += _dot(weights_IJ.astype(v_JD.dtype).T, d_out_ID)
        d_weights_IJ = _dot(d_out_ID, v_JD.T)
        d_scores_IJ = weights_IJ * (d_weights_IJ - queries.load(delta_ref)[:, None])
        d_scores_IJ = d_scores_IJ.astype(v_JD.dtype)
        dk_parts = [dk + _dot(d_scores_IJ.T, q) for dk, q in zip(dk_parts, q_parts, strict=True)]
        return dk_parts, dv_JD

    k_parts, v_JD = load(here, k_ref), here.load(v_ref)
    zeros_of_parts = [jnp.zeros(part.shape, jnp.float32) for part in k_parts]
    zeros_JD = jnp.zeros(v_JD.shape, jnp.float32)
    dk_parts, dv_JD = jax.lax.fori_loop(lower, upper, meet_queries, (zeros_of_parts, zeros_JD))
    put(2, dv_JD)  # first, as rotating needs registers
    put_rotated_back(1, dk_parts)

    q_parts, d_out_ID = load(here, q_ref), here.load(d_out_ref)
    lse_I = here.load(lse_ref)
    delta_I = here.load(delta_ref)
    ids_I = _query_ids(ids_here)

    def meet_keys(j, dq_parts):
        keys = _Block.of(j, launch.inner_block, length)
        k_parts = load(keys, k_ref)
        ids_J = keys.load(ids_ref, 0)
        scores_IJ = _scores(settings, q_parts, k_parts, here, keys, ids_I, ids_J, slope, lse_I)
        weights_IJ = ptx.exp2(scores_IJ, interpret=settings.interpret)
        d_weights_IJ = _dot(d_out_ID, keys.load(v_ref).T)
        d_scores_IJ = weights_IJ * (d_weights_IJ - delta_I[:, None])
        d_scores_IJ = d_scores_IJ.astype(d_out_ID.dtype)
        return [dq + _dot(d_scores_IJ, k) for dq, k in zip(dq_parts, k_parts, strict=True)]

    put_rotated_back(0, jax.lax.fori_loop(lower, upper, meet_keys, zeros_of_parts))
