"""Attention as Pallas kernels for Hopper, through Mosaic GPU: what can follow `triton`.

The algorithm is that of `triton`: FlashAttention-2 (Dao, 2023, arXiv:2307.08691) over the blocks
that `BlockRanges` names, and a backward kernel of two sweeps that adds nothing atomically. Here the
loads and the products are explicit: tiles come to shared memory by TMA, `STAGES` blocks ahead, and
a warp group (four warps) multiplies them by wgmma, with sums, weights and gradients of scores in
its registers. TMA reads zeros after a row's end and writes nothing there, so that rows of any
length need no mask and no copy; what one number a token takes (segment ids, logsumexp) is padded.

jax.experimental.pallas.mosaic_gpu changes between releases. What is used here is the same in jax
0.11 and 0.12; before, there is no interpreter for it, and so no test of what these kernels compute.

Shape letters besides those of `api`: I queries of a block, J keys of a block, Q blocks of a row, M
tokens of a padded row, C all columns of a token: (3, H, D) or (H, D) as one axis.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.alibi_attention.block_ranges import BlockRanges, pad_to_blocks
from pallas_kernels.alibi_attention.launch import AttentionLaunch
from pallas_kernels.alibi_attention.operands import add_bias
from pallas_kernels.backends import Target

HEAD_SIZES = (32, 64, 128)
DTYPES = ("bfloat16", "float16")
BLOCK = 64  # tokens: the rows that wgmma multiplies at a time
STAGES = 2
_LOG2_E = math.log2(math.e)
_TILE = plgpu.Layout.WGMMA
_BY_ROW, _BY_COLUMN = _TILE.reduce(1), _TILE.reduce(0)  # one number a row of a tile, or a column
_SQUARE = (BLOCK, BLOCK)

_Ref = Any  # of Pallas: an array in device or shared memory, or a part of it


def why_not(
    target: Target, head_size: int, dtype: str, drops: bool, launch: AttentionLaunch | None
) -> str | None:
    """Why these kernels can't serve a call on a device, or None."""
    if not hasattr(plgpu, "InterpretGPUParams"):
        return f"mosaic needs jax 0.11 or higher, not {jax.__version__}"
    if target.platform != "gpu" or (target.compute_capability or (0,))[0] != 9:
        return f"mosaic's kernels are for compute capability 9, not {target.device_kind}"
    if head_size not in HEAD_SIZES:
        return f"mosaic has head sizes {HEAD_SIZES}, not {head_size}"
    if dtype not in DTYPES:
        return f"mosaic has {', '.join(DTYPES)}, not {dtype}"
    if drops:
        return "mosaic has no attention dropout"
    if launch is not None:
        return "launch is for triton's kernels"
    return None


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What is known when the program is built.

    Attributes:
      scale: of the scores.
      heads, head_size: of the operands.
      packed: whether the operands are one array, (B, L, 3, H, D), or three, (B, L, H, D) each.
      has_bias: whether a bias was added to the packed one, whose gradient is wanted.
      interpret: run the kernels step by step with JAX's interpreter, on any platform.
    """

    scale: float
    heads: int
    head_size: int
    packed: bool
    has_bias: bool
    interpret: bool

    def columns(self, part: int, head):
        """Where a head of the queries (0), keys (1) or values (2) is within a token's columns."""
        first = part * self.heads + head if self.packed else head
        return pl.ds(first * self.head_size, self.head_size)


def attention(
    operands: tuple[Array, ...],
    segment_ids_BL: Int[Array, "B L"],
    slopes_H: Float[Array, "H"],
    ranges: BlockRanges,
    *,
    scale: float,
    bias_3HD: Float[Array, "3 H D"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B L H D"]:
    """See `api.alibi_attention` and `triton.attention`."""
    biases = () if bias_3HD is None else (bias_3HD,)
    heads, head_size = operands[0].shape[-2:]
    packed = len(operands) == 1
    settings = _Settings(scale, heads, head_size, packed, bias_3HD is not None, interpret)
    ids_BM = pad_to_blocks(segment_ids_BL, BLOCK)
    context = (ids_BM, slopes_H, *ranges.of_blocks(BLOCK, BLOCK))
    return _attend(settings, operands, biases, context)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings: _Settings, operands, biases, context):
    return _attend_forward(settings, operands, biases, context)[0]


def _attend_forward(settings: _Settings, operands, biases, context):
    if biases:
        operands = (add_bias(operands[0], biases[0]),)
    out_BLHD, logsumexp_BHM = _forward(settings, operands, context)
    return out_BLHD, (operands, context, out_BLHD, logsumexp_BHM)


def _attend_backward(settings: _Settings, saved, d_out_BLHD):
    operands, context, out_BLHD, logsumexp_BHM = saved
    products_BLHD = d_out_BLHD.astype(jnp.float32) * out_BLHD.astype(jnp.float32)
    delta_BHL = jnp.sum(products_BLHD, axis=-1).transpose(0, 2, 1)
    delta_BHM = pad_to_blocks(delta_BHL, BLOCK, axis=2)
    gradients = _backward(settings, operands, context, d_out_BLHD, logsumexp_BHM, delta_BHM)
    d_operands, sums_BQC = gradients[: len(operands)], gradients[len(operands) :]
    shape = (3, settings.heads, settings.head_size)
    d_operands = tuple(d.reshape(x.shape) for d, x in zip(d_operands, operands, strict=True))
    # The context has no gradient: segment ids and ranges are integers, the slopes constants.
    return d_operands, tuple(sum_BQC.sum(axis=(0, 1)).reshape(shape) for sum_BQC in sums_BQC), None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(settings: _Settings, operands, context):
    rows, length = operands[0].shape[:2]
    dtype, head_size, padded = operands[0].dtype, settings.head_size, context[0].shape[1]
    width = settings.heads * head_size
    out_BLC, logsumexp_BHM = _kernel(
        settings,
        _forward_kernel,
        "alibi_attention_forward",
        (rows, padded),
        out_type=(
            jax.ShapeDtypeStruct((rows, length, width), dtype),
            jax.ShapeDtypeStruct((rows, settings.heads, padded), jnp.float32),
        ),
        scratch_types={
            "q_tile": _tiles(head_size, dtype),
            "own_ids": plgpu.SMEM((BLOCK,), jnp.int32),
            "lse": plgpu.SMEM((BLOCK,), jnp.float32),
            "own_loaded": plgpu.Barrier(num_arrivals=2),
            "k_tiles": _tiles(head_size, dtype, STAGES),
            "v_tiles": _tiles(head_size, dtype, STAGES),
            "ids": plgpu.SMEM((STAGES, BLOCK), jnp.int32),
            "loaded": plgpu.Barrier(num_arrivals=3, num_barriers=STAGES),
        },
    )(*_as_three(operands), *context)
    return out_BLC.reshape(rows, length, settings.heads, head_size), logsumexp_BHM


def _backward(settings: _Settings, operands, context, d_out_BLHD, logsumexp_BHM, delta_BHM):
    rows = operands[0].shape[0]
    dtype, head_size, padded = operands[0].dtype, settings.head_size, context[0].shape[1]
    flat = [_flat(x) for x in operands]
    out_type = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in flat]
    scratch_types = {
        "own_tiles": [_tiles(head_size, dtype)] * 2,
        "own_ids": plgpu.SMEM((BLOCK,), jnp.int32),
        "own_numbers": [plgpu.SMEM((BLOCK,), jnp.float32)] * 2,
        "own_loaded": plgpu.Barrier(num_arrivals=3),
        "own_loaded_again": plgpu.Barrier(num_arrivals=4),
        "tiles": [_tiles(head_size, dtype, STAGES)] * 2,
        "ids": plgpu.SMEM((STAGES, BLOCK), jnp.int32),
        "numbers": [plgpu.SMEM((STAGES, BLOCK), jnp.float32)] * 2,
        "queries_loaded": plgpu.Barrier(num_arrivals=5, num_barriers=STAGES),
        "keys_loaded": plgpu.Barrier(num_arrivals=3, num_barriers=STAGES),
    }
    if settings.has_bias:
        shape = (rows, padded // BLOCK, flat[0].shape[-1])
        out_type.append(jax.ShapeDtypeStruct(shape, jnp.float32))
        scratch_types["sums"] = plgpu.SMEM((head_size,), jnp.float32)
    return _kernel(
        settings,
        _backward_kernel,
        "alibi_attention_backward",
        (rows, padded),
        out_type=tuple(out_type),
        scratch_types=scratch_types,
    )(*_as_three(operands), *context, _flat(d_out_BLHD), logsumexp_BHM, delta_BHM)


def _kernel(settings: _Settings, body, name: str, shape: tuple[int, int], **types):
    """A program a block, head and row of arrays of `shape`, (B, M)."""
    rows, padded = shape
    return plgpu.kernel(
        functools.partial(body, settings),
        grid=(padded // BLOCK, settings.heads, rows),
        grid_names=("block", "head", "row"),
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(approx_math=True),  # exponentials in hardware
        interpret=plgpu.InterpretGPUParams() if settings.interpret else None,
        **types,
    )


def _flat(x: Array) -> Array:
    """(B, L, C), as TMA takes up to five axes, of which tiles take two more."""
    return x.reshape(*x.shape[:2], -1)


def _as_three(operands):
    flat = tuple(map(_flat, operands))
    return flat * 3 if len(flat) == 1 else flat


def _tiles(head_size: int, dtype, *stages: int):
    """Shared memory for (BLOCK, head_size), as wgmma reads it without bank conflicts."""
    row = head_size * jnp.dtype(dtype).itemsize
    swizzle = min(128, row)
    tiling = plgpu.TilingTransform((8, swizzle // jnp.dtype(dtype).itemsize))
    transforms = (tiling, plgpu.SwizzleTransform(swizzle))
    return plgpu.SMEM((*stages, BLOCK, head_size), dtype, transforms=transforms)


@dataclasses.dataclass(frozen=True)
class _Stream:
    """Loads what belongs to the blocks from `lower` to `upper`, STAGES blocks ahead.

    Attributes:
      loads: pairs of what gives the source of a block, and its buffer, with an axis of STAGES.
      loaded: a barrier a stage, where each load arrives.
    """

    loads: tuple[tuple[Callable[[Array], _Ref], _Ref], ...]
    loaded: _Ref
    lower: Array
    upper: Array

    def start(self) -> None:
        for stage in range(STAGES):
            self._fetch(self.lower + stage)

    def wait(self, block) -> list[_Ref]:
        """The block's buffers, loaded."""
        plgpu.barrier_wait(self.loaded.at[self._slot(block)])
        return [buffer.at[self._slot(block)] for _, buffer in self.loads]

    def release(self, block) -> None:
        """After the last use of the block's buffers."""
        self._fetch(block + STAGES)

    def _slot(self, block):
        return lax.rem(block - self.lower, jnp.int32(STAGES))

    def _fetch(self, block) -> None:
        @pl.when(block < self.upper)
        def _():
            # Pallas makes all warps wait here for one another before the first load.
            slot = self._slot(block)
            for source, buffer in self.loads:
                plgpu.copy_gmem_to_smem(source(block), buffer.at[slot], self.loaded.at[slot])


def _load(loaded: _Ref, *loads: tuple[_Ref, _Ref]) -> None:
    """Pairs of a source and a buffer; returns when all are there."""
    for source, buffer in loads:
        plgpu.copy_gmem_to_smem(source, buffer, loaded)
    plgpu.barrier_wait(loaded)


def _of_block(ref: _Ref, row, *columns) -> Callable[[Array], _Ref]:
    """What gives the part of (B, …, L, C) or (B, …, L) that a block of a row is."""
    return lambda block: ref.at[(row, pl.ds(block * BLOCK, BLOCK), *columns)]


def _across(x, like, axis: int):
    """A number a row (axis 0) or a column (axis 1), for each element of a tile."""
    return lax.broadcast_in_dim(x, like.shape, [axis])


def _filled(shape: tuple[int, ...], value: float, layout):
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def _products(settings: _Settings, *pairs: tuple[_Ref, _Ref]):
    """left @ right.T of tiles in shared memory, all under way at once; float32[BLOCK, BLOCK]."""

    def multiply(*sums):
        for sum_, (left, right) in zip(sums, pairs, strict=True):
            plgpu.wgmma(sum_, left, right.transpose((1, 0)))
        return [sum_[...] for sum_ in sums]

    return pl.run_scoped(multiply, *[plgpu.ACC(_SQUARE, jnp.float32)] * len(pairs))


def _add_products(settings: _Settings, *terms):
    """sum + left @ right of each (sum, left, right); left is in registers."""
    if settings.interpret:  # which knows wgmma with both operands in shared memory only
        return [
            sum_ + jnp.dot(left, right[...], preferred_element_type=jnp.float32)
            for sum_, left, right in terms
        ]

    def multiply(sums):
        for sum_, (_, left, right) in zip(sums, terms, strict=True):
            plgpu.wgmma(sum_, left, right)

    return pl.run_state(multiply)([plgpu.ACC.init(sum_) for sum_, _, _ in terms])


def _scores(settings: _Settings, products, row_ids, column_ids, blocks_apart, slope):
    """Scores in base 2, -inf where the segments differ: queries by keys, or keys by queries."""
    row = plgpu.broadcasted_iota(jnp.int32, (BLOCK,), 0, layout=_BY_ROW) + blocks_apart * BLOCK
    column = plgpu.broadcasted_iota(jnp.int32, (BLOCK,), 0, layout=_BY_COLUMN)
    row, column = row.astype(jnp.float32), column.astype(jnp.float32)
    distance = jnp.abs(_across(row, products, 0) - _across(column, products, 1))
    scores = products * (settings.scale * _LOG2_E) - slope * distance
    same = _across(row_ids, products, 0) == _across(column_ids, products, 1)
    return jnp.where(same, scores, -jnp.inf)


def _query_ids(ids):
    """Padding of queries is different from every key, padding included."""
    return jnp.where(ids == 0, -1, ids)


def _forward_kernel(
    settings,
    q_ref,
    k_ref,
    v_ref,
    ids_ref,
    slopes_ref,
    lower_ref,
    upper_ref,
    out_ref,
    lse_ref,
    *,
    q_tile,
    own_ids,
    lse,
    own_loaded,
    k_tiles,
    v_tiles,
    ids,
    loaded,
):
    here, head, row = map(lax.axis_index, ("block", "head", "row"))
    ids_of = _of_block(ids_ref, row)
    loads = (
        (_of_block(k_ref, row, settings.columns(1, head)), k_tiles),
        (_of_block(v_ref, row, settings.columns(2, head)), v_tiles),
        (ids_of, ids),
    )
    keys = _Stream(loads, loaded, lower_ref[row, here], upper_ref[row, here])
    keys.start()
    q_of = _of_block(q_ref, row, settings.columns(0, head))
    _load(own_loaded, (q_of(here), q_tile), (ids_of(here), own_ids))
    ids_I = _query_ids(plgpu.load(own_ids, layout=_BY_ROW))
    slope = slopes_ref[head] * _LOG2_E

    def meet(j, carry):
        highest_I, total_I, sum_ID = carry
        k_tile, v_tile, key_ids = keys.wait(j)
        (products_IJ,) = _products(settings, (q_tile, k_tile))
        ids_J = plgpu.load(key_ids, layout=_BY_COLUMN)
        scores_IJ = _scores(settings, products_IJ, ids_I, ids_J, here - j, slope)
        new_I = jnp.maximum(highest_I, scores_IJ.max(axis=1))
        # A query that has seen no key yet: subtract 0, as -inf - -inf is NaN.
        shift_I = jnp.where(new_I == -jnp.inf, 0.0, new_I)
        weights_IJ = jnp.exp2(scores_IJ - _across(shift_I, scores_IJ, 0))
        decay_I = jnp.exp2(highest_I - shift_I)
        total_I = total_I * decay_I + weights_IJ.sum(axis=1)
        sum_ID = sum_ID * _across(decay_I, sum_ID, 0)
        weights_IJ = weights_IJ.astype(v_tiles.dtype)
        (sum_ID,) = _add_products(settings, (sum_ID, weights_IJ, v_tile))
        keys.release(j)
        return new_I, total_I, sum_ID

    start = (
        _filled((BLOCK,), -jnp.inf, _BY_ROW),
        _filled((BLOCK,), 0.0, _BY_ROW),
        _filled((BLOCK, settings.head_size), 0.0, _TILE),
    )
    highest_I, total_I, sum_ID = lax.fori_loop(keys.lower, keys.upper, meet, start)
    safe_I = jnp.where(total_I == 0.0, 1.0, total_I)
    q_tile[...] = (sum_ID / _across(safe_I, sum_ID, 0)).astype(q_tile.dtype)
    # +inf for a query without keys makes its recomputed weights exp2(-inf - inf) = 0.
    lse[...] = jnp.where(total_I == 0.0, jnp.inf, highest_I + jnp.log(safe_I) * _LOG2_E)
    plgpu.commit_smem()
    out_columns = pl.ds(head * settings.head_size, settings.head_size)
    plgpu.copy_smem_to_gmem(q_tile, _of_block(out_ref, row, out_columns)(here))
    plgpu.copy_smem_to_gmem(lse, _of_block(lse_ref.at[row], head)(here))
    plgpu.wait_smem_to_gmem(0)


def _backward_kernel(
    settings,
    q_ref,
    k_ref,
    v_ref,
    ids_ref,
    slopes_ref,
    lower_ref,
    upper_ref,
    d_out_ref,
    lse_ref,
    delta_ref,
    *gradient_refs,
    own_tiles,
    own_ids,
    own_numbers,
    own_loaded,
    own_loaded_again,
    tiles,
    ids,
    numbers,
    queries_loaded,
    keys_loaded,
    sums=None,
):
    here, head, row = map(lax.axis_index, ("block", "head", "row"))
    slope = slopes_ref[head] * _LOG2_E
    lower, upper = lower_ref[row, here], upper_ref[row, here]
    dtype, tile_shape = tiles[0].dtype, (BLOCK, settings.head_size)
    ids_of = _of_block(ids_ref, row)
    q_of = _of_block(q_ref, row, settings.columns(0, head))
    k_of = _of_block(k_ref, row, settings.columns(1, head))
    v_of = _of_block(v_ref, row, settings.columns(2, head))
    d_out_columns = pl.ds(head * settings.head_size, settings.head_size)
    d_out_of = _of_block(d_out_ref, row, d_out_columns)
    lse_of, delta_of = _of_block(lse_ref.at[row], head), _of_block(delta_ref.at[row], head)

    def put(part, gradient_ID, tile):
        """Stores the gradient of the block's queries (0), keys (1) or values (2)."""
        tile[...] = gradient_ID.astype(dtype)
        if settings.has_bias:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            sums[...] = gradient_ID.sum(axis=0)
        plgpu.commit_smem()
        ref = gradient_refs[0 if settings.packed else part]
        columns = settings.columns(part, head)
        plgpu.copy_smem_to_gmem(tile, _of_block(ref, row, columns)(here))
        if settings.has_bias:
            plgpu.copy_smem_to_gmem(sums, gradient_refs[-1].at[row, here, columns])

    def meet_queries(i, carry):
        dk_JD, dv_JD = carry
        q_tile, d_out_tile, query_ids, lse, delta = queries.wait(i)
        products_JI, d_weights_JI = _products(settings, (k_tile, q_tile), (v_tile, d_out_tile))
        ids_I = _query_ids(plgpu.load(query_ids, layout=_BY_COLUMN))
        scores_JI = _scores(settings, products_JI, ids_J, ids_I, here - i, slope)
        lse_I = plgpu.load(lse, layout=_BY_COLUMN)
        weights_JI = jnp.exp2(scores_JI - _across(lse_I, scores_JI, 1))
        delta_I = plgpu.load(delta, layout=_BY_COLUMN)
        d_scores_JI = weights_JI * (d_weights_JI - _across(delta_I, scores_JI, 1))
        dk_JD, dv_JD = _add_products(
            settings,
            (dk_JD, d_scores_JI.astype(dtype), q_tile),
            (dv_JD, weights_JI.astype(dtype), d_out_tile),
        )
        queries.release(i)
        return dk_JD, dv_JD

    loads = zip((q_of, d_out_of, ids_of, lse_of, delta_of), (*tiles, ids, *numbers), strict=True)
    queries = _Stream(tuple(loads), queries_loaded, lower, upper)
    queries.start()
    k_tile, v_tile = own_tiles
    _load(own_loaded, (k_of(here), k_tile), (v_of(here), v_tile), (ids_of(here), own_ids))
    ids_J = plgpu.load(own_ids, layout=_BY_ROW)
    zeros = _filled(tile_shape, 0.0, _TILE)
    dk_JD, dv_JD = lax.fori_loop(lower, upper, meet_queries, (zeros, zeros))
    put(1, dk_JD * settings.scale, k_tile)
    put(2, dv_JD, v_tile)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)

    def meet_keys(j, dq_ID):
        k_tile, v_tile, key_ids = keys.wait(j)
        products_IJ, d_weights_IJ = _products(settings, (q_tile, k_tile), (d_out_tile, v_tile))
        ids_J = plgpu.load(key_ids, layout=_BY_COLUMN)
        scores_IJ = _scores(settings, products_IJ, ids_I, ids_J, here - j, slope)
        weights_IJ = jnp.exp2(scores_IJ - _across(lse_I, scores_IJ, 0))
        d_scores_IJ = weights_IJ * (d_weights_IJ - _across(delta_I, scores_IJ, 0))
        (dq_ID,) = _add_products(settings, (dq_ID, d_scores_IJ.astype(dtype), k_tile))
        keys.release(j)
        return dq_ID

    keys = _Stream(
        tuple(zip((k_of, v_of, ids_of), (*tiles, ids), strict=True)), keys_loaded, lower, upper
    )
    keys.start()
    q_tile, d_out_tile = own_tiles
    lse, delta = own_numbers
    again = ((q_of(here), q_tile), (d_out_of(here), d_out_tile))
    _load(own_loaded_again, *again, (lse_of(here), lse), (delta_of(here), delta))
    lse_I, delta_I = (plgpu.load(x, layout=_BY_ROW) for x in own_numbers)
    ids_I = _query_ids(ids_J)
    dq_ID = lax.fori_loop(lower, upper, meet_keys, _filled(tile_shape, 0.0, _TILE))
    put(0, dq_ID * settings.scale, q_tile)
    plgpu.wait_smem_to_gmem(0)
