"""The kernels of `mosaic`: attention for one block of tokens, head and row.

A program is a warp group (four warps) with its own block of BLOCK tokens. Tiles of the blocks that
it meets come to shared memory by TMA, STAGES blocks ahead, and it multiplies them by wgmma, with
sums, weights and gradients of scores in its registers.

Shape letters besides those of `api`: I queries of a block, J keys of a block.
"""

import dataclasses
import math
import types
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

BLOCK = 64  # tokens: the rows that wgmma multiplies at a time
STAGES = 2
_LOG2_E = math.log2(math.e)
_TILE = plgpu.Layout.WGMMA
_BY_ROW, _BY_COLUMN = _TILE.reduce(1), _TILE.reduce(0)  # one number a row of a tile, or a column

_Ref = Any  # Pallas': an array in device or shared memory, or a part of it


@dataclasses.dataclass(frozen=True)
class Settings:
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


def forward_scratch(settings: Settings, dtype) -> dict[str, Any]:
    """Shared memory and barriers of `forward_kernel`."""
    return {
        "q_tile": _tiles(settings.head_size, dtype),
        "own_ids": plgpu.SMEM((BLOCK,), jnp.int32),
        "lse": plgpu.SMEM((BLOCK,), jnp.float32),
        "own_loaded": plgpu.Barrier(num_arrivals=2),
        "tiles": [_tiles(settings.head_size, dtype, STAGES)] * 2,
        "ids": plgpu.SMEM((STAGES, BLOCK), jnp.int32),
        "loaded": plgpu.Barrier(num_arrivals=3, num_barriers=STAGES),
    }


def backward_scratch(settings: Settings, dtype) -> dict[str, Any]:
    """Shared memory and barriers of `backward_kernel`."""
    scratch = {
        "own_tiles": [_tiles(settings.head_size, dtype)] * 2,
        "own_ids": plgpu.SMEM((BLOCK,), jnp.int32),
        "own_numbers": [plgpu.SMEM((BLOCK,), jnp.float32)] * 2,
        "own_keys_loaded": plgpu.Barrier(num_arrivals=3),
        "own_queries_loaded": plgpu.Barrier(num_arrivals=4),
        "tiles": [_tiles(settings.head_size, dtype, STAGES)] * 2,
        "ids": plgpu.SMEM((STAGES, BLOCK), jnp.int32),
        "numbers": [plgpu.SMEM((STAGES, BLOCK), jnp.float32)] * 2,
        "queries_loaded": plgpu.Barrier(num_arrivals=5, num_barriers=STAGES),
        "keys_loaded": plgpu.Barrier(num_arrivals=3, num_barriers=STAGES),
    }
    if settings.has_bias:
        scratch["sums"] = plgpu.SMEM((settings.head_size,), jnp.float32)
    return scratch


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
            plgpu.commit_smem()  # all warps have read what these loads overwrite
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


def _products(*pairs: tuple[_Ref, _Ref]):
    """left @ right.T of tiles in shared memory, all under way at once; float32[BLOCK, BLOCK]."""

    def multiply(*sums):
        for sum_, (left, right) in zip(sums, pairs, strict=True):
            plgpu.wgmma(sum_, left, right.transpose((1, 0)))
        return [sum_[...] for sum_ in sums]

    return pl.run_scoped(multiply, *[plgpu.ACC((BLOCK, BLOCK), jnp.float32)] * len(pairs))


def _add_products(settings: Settings, *terms):
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


def _query_ids(ids):
    """Padding of queries is different from every key, padding included."""
    return jnp.where(ids == 0, -1, ids)


@dataclasses.dataclass(frozen=True)
class _Program:
    """What both kernels know of their block.

    Attributes:
      here, head, row: which it is.
      q_of, k_of, v_of, ids_of: give the part that a block of the row is.
      slope: in base 2.
      lower, upper: of the blocks that it meets.
    """

    settings: Settings
    here: Array
    head: Array
    row: Array
    q_of: Callable[[Array], _Ref]
    k_of: Callable[[Array], _Ref]
    v_of: Callable[[Array], _Ref]
    ids_of: Callable[[Array], _Ref]
    slope: Array
    lower: Array
    upper: Array

    @classmethod
    def of(cls, settings: Settings, refs: tuple[_Ref, ...]) -> "_Program":
        q_ref, k_ref, v_ref, ids_ref, slopes_ref, lower_ref, upper_ref = refs
        here, head, row = map(lax.axis_index, ("block", "head", "row"))
        operands = (q_ref, k_ref, v_ref)
        return cls(
            settings,
            *(here, head, row),
            *(_of_block(x, row, settings.columns(part, head)) for part, x in enumerate(operands)),
            ids_of=_of_block(ids_ref, row),
            slope=slopes_ref[head] * _LOG2_E,
            lower=lower_ref[row, here],
            upper=upper_ref[row, here],
        )

    def out_of(self, ref: _Ref) -> Callable[[Array], _Ref]:
        """Of an array like the output, (B, L, H D)."""
        columns = pl.ds(self.head * self.settings.head_size, self.settings.head_size)
        return _of_block(ref, self.row, columns)

    def number_of(self, ref: _Ref) -> Callable[[Array], _Ref]:
        """Of an array with a number a head and token, (B, H, M)."""
        return _of_block(ref.at[self.row], self.head)

    def stream(self, loads, loaded: _Ref) -> _Stream:
        """Of all the blocks that it meets, begun."""
        stream = _Stream(tuple(loads), loaded, self.lower, self.upper)
        stream.start()
        return stream

    def scores(self, products, row_ids, column_ids, other):
        """Scores in base 2, -inf where the segments differ; rows are of its own block."""
        row = plgpu.broadcasted_iota(jnp.int32, (BLOCK,), 0, layout=_BY_ROW)
        row = (row + (self.here - other) * BLOCK).astype(jnp.float32)
        column = plgpu.broadcasted_iota(jnp.int32, (BLOCK,), 0, layout=_BY_COLUMN)
        column = column.astype(jnp.float32)
        distance = jnp.abs(_across(row, products, 0) - _across(column, products, 1))
        scores = products * (self.settings.scale * _LOG2_E) - self.slope * distance
        same = _across(row_ids, products, 0) == _across(column_ids, products, 1)
        return jnp.where(same, scores, -jnp.inf)

    def zeros(self):
        """A tile of sums."""
        return _filled((BLOCK, self.settings.head_size), 0.0, _TILE)


def forward_kernel(settings: Settings, *refs: _Ref, **scratch: Any) -> None:
    """refs: q, k, v, ids, slopes, lower, upper; then the output and the logsumexp."""
    *inputs, out_ref, lse_ref = refs
    program, s = _Program.of(settings, tuple(inputs)), types.SimpleNamespace(**scratch)
    here, dtype = program.here, s.q_tile.dtype
    sources = (program.k_of, program.v_of, program.ids_of)
    keys = program.stream(zip(sources, (*s.tiles, s.ids), strict=True), s.loaded)
    _load(s.own_loaded, (program.q_of(here), s.q_tile), (program.ids_of(here), s.own_ids))
    ids_I = _query_ids(plgpu.load(s.own_ids, layout=_BY_ROW))

    def meet(j, carry):
        highest_I, total_I, sum_ID = carry
        k_tile, v_tile, key_ids = keys.wait(j)
        (products_IJ,) = _products((s.q_tile, k_tile))
        scores_IJ = program.scores(products_IJ, ids_I, plgpu.load(key_ids, layout=_BY_COLUMN), j)
        new_I = jnp.maximum(highest_I, scores_IJ.max(axis=1))
        # A query that has seen no key yet: subtract 0, as -inf - -inf is NaN.
        shift_I = jnp.where(new_I == -jnp.inf, 0.0, new_I)
        weights_IJ = jnp.exp2(scores_IJ - _across(shift_I, scores_IJ, 0))
        decay_I = jnp.exp2(highest_I - shift_I)
        total_I = total_I * decay_I + weights_IJ.sum(axis=1)
        sum_ID = sum_ID * _across(decay_I, sum_ID, 0)
        (sum_ID,) = _add_products(settings, (sum_ID, weights_IJ.astype(dtype), v_tile))
        keys.release(j)
        return new_I, total_I, sum_ID

    start = (
        _filled((BLOCK,), -jnp.inf, _BY_ROW),
        _filled((BLOCK,), 0.0, _BY_ROW),
        program.zeros(),
    )
    highest_I, total_I, sum_ID = lax.fori_loop(program.lower, program.upper, meet, start)
    safe_I = jnp.where(total_I == 0.0, 1.0, total_I)
    s.q_tile[...] = (sum_ID / _across(safe_I, sum_ID, 0)).astype(dtype)
    # +inf for a query without keys makes its recomputed weights exp2(-inf - inf) = 0.
    s.lse[...] = jnp.where(total_I == 0.0, jnp.inf, highest_I + jnp.log(safe_I) * _LOG2_E)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(s.q_tile, program.out_of(out_ref)(here))
    plgpu.copy_smem_to_gmem(s.lse, program.number_of(lse_ref)(here))
    plgpu.wait_smem_to_gmem(0)


def backward_kernel(settings: Settings, *refs: _Ref, **scratch: Any) -> None:
    """refs: those of `forward_kernel`, the output's gradient, logsumexp, delta; then gradients."""
    program, s = _Program.of(settings, refs[:7]), types.SimpleNamespace(**scratch)
    d_out_ref, lse_ref, delta_ref, *gradient_refs = refs[7:]
    query_sources = (
        program.q_of,
        program.out_of(d_out_ref),
        program.number_of(lse_ref),
        program.number_of(delta_ref),
    )

    def put(part, gradient_ID, tile):
        """Stores the gradient of the block's queries (0), keys (1) or values (2)."""
        columns = settings.columns(part, program.head)
        tile[...] = gradient_ID.astype(tile.dtype)
        if settings.has_bias:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # of the part before
            s.sums[...] = gradient_ID.sum(axis=0)
        plgpu.commit_smem()
        ref = gradient_refs[0 if settings.packed else part]
        plgpu.copy_smem_to_gmem(tile, _of_block(ref, program.row, columns)(program.here))
        if settings.has_bias:
            sums_ref = gradient_refs[-1].at[program.row, program.here, columns]
            plgpu.copy_smem_to_gmem(s.sums, sums_ref)

    dk_JD, dv_JD = _meet_queries(program, s, query_sources)
    put(1, dk_JD * settings.scale, s.own_tiles[0])
    put(2, dv_JD, s.own_tiles[1])
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    put(0, _meet_keys(program, s, query_sources) * settings.scale, s.own_tiles[0])
    plgpu.wait_smem_to_gmem(0)


def _meet_queries(program: _Program, s: types.SimpleNamespace, query_sources):
    """The gradients of the block's keys and values."""
    sources, buffers = (*query_sources, program.ids_of), (*s.tiles, *s.numbers, s.ids)
    queries = program.stream(zip(sources, buffers, strict=True), s.queries_loaded)
    k_tile, v_tile = s.own_tiles
    own = ((program.k_of, k_tile), (program.v_of, v_tile), (program.ids_of, s.own_ids))
    _load(s.own_keys_loaded, *((source(program.here), buffer) for source, buffer in own))
    ids_J = plgpu.load(s.own_ids, layout=_BY_ROW)

    def meet(i, carry):
        dk_JD, dv_JD = carry
        q_tile, d_out_tile, lse, delta, query_ids = queries.wait(i)
        products_JI, d_weights_JI = _products((k_tile, q_tile), (v_tile, d_out_tile))
        ids_I = _query_ids(plgpu.load(query_ids, layout=_BY_COLUMN))
        scores_JI = program.scores(products_JI, ids_J, ids_I, i)
        lse_I, delta_I = (plgpu.load(x, layout=_BY_COLUMN) for x in (lse, delta))
        weights_JI = jnp.exp2(scores_JI - _across(lse_I, scores_JI, 1))
        d_scores_JI = weights_JI * (d_weights_JI - _across(delta_I, scores_JI, 1))
        dk_JD, dv_JD = _add_products(
            program.settings,
            (dk_JD, d_scores_JI.astype(k_tile.dtype), q_tile),
            (dv_JD, weights_JI.astype(k_tile.dtype), d_out_tile),
        )
        queries.release(i)
        return dk_JD, dv_JD

    return lax.fori_loop(program.lower, program.upper, meet, (program.zeros(), program.zeros()))


def _meet_keys(program: _Program, s: types.SimpleNamespace, query_sources):
    """The gradient of the block's queries."""
    sources = (program.k_of, program.v_of, program.ids_of)
    keys = program.stream(zip(sources, (*s.tiles, s.ids), strict=True), s.keys_loaded)
    q_tile, d_out_tile = s.own_tiles
    own = zip(query_sources, (*s.own_tiles, *s.own_numbers), strict=True)
    _load(s.own_queries_loaded, *((source(program.here), buffer) for source, buffer in own))
    lse_I, delta_I = (plgpu.load(x, layout=_BY_ROW) for x in s.own_numbers)
    ids_I = _query_ids(plgpu.load(s.own_ids, layout=_BY_ROW))

    def meet(j, dq_ID):
        k_tile, v_tile, key_ids = keys.wait(j)
        products_IJ, d_weights_IJ = _products((q_tile, k_tile), (d_out_tile, v_tile))
        scores_IJ = program.scores(products_IJ, ids_I, plgpu.load(key_ids, layout=_BY_COLUMN), j)
        weights_IJ = jnp.exp2(scores_IJ - _across(lse_I, scores_IJ, 0))
        d_scores_IJ = weights_IJ * (d_weights_IJ - _across(delta_I, scores_IJ, 0))
        d_scores_IJ = d_scores_IJ.astype(k_tile.dtype)
        (dq_ID,) = _add_products(program.settings, (dq_ID, d_scores_IJ, k_tile))
        keys.release(j)
        return dq_ID

    return lax.fori_loop(program.lower, program.upper, meet, program.zeros())
