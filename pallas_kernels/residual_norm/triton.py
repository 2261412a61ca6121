"""LayerNorm or RMSNorm of dropout(x + x_bias) + residual as Pallas kernels, through Triton.

Each array passes through the device's memory once a direction. Forward reads x and the residual
and writes the result, the sum, and each token's mean and 1 / deviation. Backward reads the sum and
the result's gradient; it writes the gradients of the residual and, if there is dropout, of x: the
same through the mask, which is made again from the rows' keys. A program sums the gradients of
scale and biases over its tokens; the programs' sums are added afterwards. Nothing is added
atomically, so it is deterministic.

The sum is kept although the result, which is kept in any case for the weight gradient of the next
projection, holds it too, as result = normalized sum · scale + bias: where a scale is small compared
with its bias, the result's rounding leaves nothing of it.

Shape letters besides those of `api`: N tokens of all rows, T tokens worked on at once, W the hidden
size filled up to a power of two, G programs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Key

from pallas_kernels.tokens import Tile, dropout_words

WIDTH_STEP, WIDEST = 64, 4096
_ELEMENTS = 2048  # T · W: 8 a thread, which in bfloat16 are one load of 16 bytes
_TOKENS_OF_A_PROGRAM = 64  # backward; the sums for scale and biases are then 5% of what it moves
_LAUNCH = plgpu.CompilerParams(num_warps=8, num_stages=1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is known when the program is built.

    Attributes:
      epsilon: added to the variance.
      dropout_rate: 0 or more.
      center: whether the mean is subtracted.
      has_bias, has_x_bias: whether there is one.
      returns_sum: whether the sum is a result too.
      interpret: run the kernels step by step with JAX's interpreter, on any platform.
    """

    epsilon: float
    dropout_rate: float
    center: bool
    has_bias: bool
    has_x_bias: bool
    returns_sum: bool
    interpret: bool

    @property
    def vectors(self) -> int:
        """How many of scale and biases there are."""
        return 1 + self.has_bias + self.has_x_bias


def residual_norm(
    x_BLE: Float[Array, "B L E"],
    residual_BLE: Float[Array, "B L E"],
    scale_E: Float[Array, "E"],
    bias_E: Float[Array, "E"] | None,
    *,
    x_bias_E: Float[Array, "E"] | None = None,
    epsilon: float,
    center: bool,
    norm_dtype: jnp.dtype,
    dropout_rate: float = 0.0,
    dropout_keys_B: Key[Array, "B"] | None = None,
    returns_sum: bool = True,
    interpret: bool = False,
) -> tuple[Float[Array, "B L E"], Float[Array, "B L E"] | None]:
    """See `api.residual_norm`; without `returns_sum`, the sum is None."""
    words = dropout_words(dropout_rate, dropout_keys_B)
    # Rounded, and left float32 as are the gradients' sums.
    roundings = (scale_E, norm_dtype), (bias_E, norm_dtype), (x_bias_E, x_BLE.dtype)
    vectors = tuple(x.astype(dtype).astype(jnp.float32) for x, dtype in roundings if x is not None)
    biases = bias_E is not None, x_bias_E is not None
    settings = Settings(epsilon, dropout_rate, center, *biases, returns_sum, interpret)
    return _norm(settings, x_BLE, residual_BLE, vectors, words)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(settings: Settings, x_BLE, residual_BLE, vectors, words):
    y_BLE, *sums = _forward(settings, x_BLE, residual_BLE, vectors, words, keep=False)
    return y_BLE, sums[0] if sums else None


def _norm_forward(settings: Settings, x_BLE, residual_BLE, vectors, words):
    y_BLE, sum_BLE, *statistics = _forward(settings, x_BLE, residual_BLE, vectors, words, keep=True)
    results = y_BLE, sum_BLE if settings.returns_sum else None
    return results, (sum_BLE, statistics, vectors[0], words)


def _forward(settings: Settings, x_BLE, residual_BLE, vectors, words, *, keep: bool):
    """The result; the sum if it is a result or kept; 1 / deviations, and means, if kept."""
    rows, length, width = x_BLE.shape
    like_NE = jax.ShapeDtypeStruct((rows * length, width), x_BLE.dtype)
    a_token_N = jax.ShapeDtypeStruct((rows * length,), jnp.float32)
    results = pl.pallas_call(
        functools.partial(_forward_kernel, settings, x_BLE.shape),
        grid=(pl.cdiv(rows * length, _tokens_at_once(width)),),
        out_shape=[
            *[like_NE] * (2 if keep or settings.returns_sum else 1),
            *[a_token_N] * (keep * (1 + settings.center)),
        ],
        compiler_params=_LAUNCH,
        interpret=settings.interpret,
        name="residual_norm_forward",
    )(x_BLE.reshape(-1, width), residual_BLE.reshape(-1, width), *vectors, *words)
    return [result.reshape(rows, length, *result.shape[1:]) for result in results]


def _norm_backward(settings: Settings, saved, d_results):
    sum_BLE, statistics_BL, scale_E, words = saved
    d_y_BLE, d_sum_BLE = d_results
    rows, length, width = d_y_BLE.shape
    programs = pl.cdiv(rows * length, _TOKENS_OF_A_PROGRAM)
    like_NE = jax.ShapeDtypeStruct((rows * length, width), d_y_BLE.dtype)
    sums_GE = jax.ShapeDtypeStruct((programs, width), jnp.float32)
    sums = [sums_GE] * settings.vectors
    gradients = pl.pallas_call(
        functools.partial(_backward_kernel, settings, d_y_BLE.shape),
        grid=(programs,),
        out_shape=[*sums, *[like_NE] * (2 if words else 1)],
        compiler_params=_LAUNCH,
        interpret=settings.interpret,
        name="residual_norm_backward",
    )(
        d_y_BLE.reshape(-1, width),
        *([d_sum_BLE.reshape(-1, width)] if settings.returns_sum else []),
        sum_BLE.reshape(-1, width),
        *(numbers_BL.reshape(-1) for numbers_BL in statistics_BL),
        scale_E,
        *words,
    )
    d_vectors_GE, d_NE = gradients[: len(sums)], gradients[len(sums) :]
    d_residual_BLE, d_x_BLE = (d_NE[part].reshape(d_y_BLE.shape) for part in (0, -1))
    return d_x_BLE, d_residual_BLE, tuple(d_GE.sum(axis=0) for d_GE in d_vectors_GE), None


_norm.defvjp(_norm_forward, _norm_backward)


def _tokens_at_once(width: int) -> int:
    return max(1, _ELEMENTS // pl.next_power_of_2(width))


class _Tile(Tile):
    """Some tokens, with all their columns and those that fill the width up."""

    @classmethod
    def at(cls, first_token, shape: tuple[int, int, int]) -> "_Tile":
        token_T = first_token + jnp.arange(_tokens_at_once(shape[2]))
        return cls(token_T, jnp.arange(pl.next_power_of_2(shape[2]))[None, :], shape)

    def load_parameter(self, ref):
        """(1, W) of a ref over E."""
        mask_1W = self.column_1W < self.shape[2]
        return plgpu.load(ref.at[self.column_1W], mask=mask_1W, other=0.0)

    def mean(self, x_TW):
        """Over the columns, (T, 1); those that are not there must be 0."""
        return jnp.sum(x_TW, axis=1, keepdims=True) / self.shape[2]


def _forward_kernel(settings, shape, x_ref, residual_ref, scale_ref, *refs):
    words = 2 if settings.dropout_rate else 0
    bias_refs, refs = refs[: settings.has_bias], refs[settings.has_bias :]
    x_bias_refs, refs = refs[: settings.has_x_bias], refs[settings.has_x_bias :]
    word_refs, (y_ref, *kept_refs) = refs[:words], refs[words:]
    tile = _Tile.at(pl.program_id(0) * _tokens_at_once(shape[2]), shape)
    x_TW = tile.load(x_ref)
    for x_bias_ref in x_bias_refs:
        x_TW += tile.load_parameter(x_bias_ref)
        x_TW = x_TW.astype(x_ref.dtype).astype(jnp.float32)
    drop = tile.dropout(settings.dropout_rate, word_refs, x_ref.dtype)
    sum_TW = (drop(x_TW) + tile.load(residual_ref)).astype(y_ref.dtype).astype(jnp.float32)
    from_mean_TW, statistics = sum_TW, []
    if settings.center:
        mean_T1 = tile.mean(sum_TW)
        from_mean_TW = jnp.where(tile.column_1W < shape[2], sum_TW - mean_T1, 0.0)
        statistics.append(mean_T1)
    factor_T1 = jax.lax.rsqrt(tile.mean(from_mean_TW * from_mean_TW) + settings.epsilon)
    statistics.append(factor_T1)
    y_TW = from_mean_TW * factor_T1 * tile.load_parameter(scale_ref)
    for bias_ref in bias_refs:
        y_TW += tile.load_parameter(bias_ref)
    tile.store(y_ref, y_TW)
    for sum_ref in kept_refs[:1]:
        tile.store(sum_ref, sum_TW)
    there_T = tile.token_T < shape[0] * shape[1]
    for ref, numbers_T1 in zip(kept_refs[1:], statistics, strict=False):
        plgpu.store(ref.at[tile.token_T], numbers_T1[:, 0], mask=there_T)


def _backward_kernel(settings, shape, d_y_ref, *refs):
    words = 2 if settings.dropout_rate else 0
    d_result_refs, refs = refs[: settings.returns_sum], refs[settings.returns_sum :]
    sum_ref, *refs = refs
    mean_refs, (factor_ref, scale_ref, *refs) = refs[: settings.center], refs[settings.center :]
    word_refs, refs = refs[:words], refs[words:]
    d_vector_refs, (d_sum_ref, *d_x_refs) = refs[: settings.vectors], refs[settings.vectors :]
    at_once = _tokens_at_once(shape[2])
    first = pl.program_id(0) * _TOKENS_OF_A_PROGRAM

    def meet(step, sums):
        tile = _Tile.at(first + step * at_once, shape)
        d_y_TW, scale_1W = tile.load(d_y_ref), tile.load_parameter(scale_ref)
        there_T = tile.token_T < shape[0] * shape[1]
        from_mean_TW = tile.load(sum_ref)
        for mean_ref in mean_refs:
            mean_T = plgpu.load(mean_ref.at[tile.token_T], mask=there_T, other=0.0)
            from_mean_TW -= mean_T[:, None]
        factor_T = plgpu.load(factor_ref.at[tile.token_T], mask=there_T, other=0.0)
        normalized_TW = from_mean_TW * factor_T[:, None]
        d_normalized_TW = d_y_TW * scale_1W
        along_T1 = tile.mean(d_normalized_TW * normalized_TW)
        d_from_mean_TW = d_normalized_TW
        if settings.center:
            d_from_mean_TW = d_normalized_TW - tile.mean(d_normalized_TW)
        d_sum_TW = (d_from_mean_TW - normalized_TW * along_T1) * factor_T[:, None]
        for d_result_ref in d_result_refs:
            d_sum_TW += tile.load(d_result_ref)
        d_sum_TW = d_sum_TW.astype(d_sum_ref.dtype)
        tile.store(d_sum_ref, d_sum_TW)
        d_x_TW = d_sum_TW.astype(jnp.float32)
        for d_x_ref in d_x_refs:
            d_x_TW = tile.dropout(settings.dropout_rate, word_refs, d_x_ref.dtype)(d_x_TW)
            tile.store(d_x_ref, d_x_TW)
        d_vectors_TW = [d_y_TW * normalized_TW]
        d_vectors_TW += [d_y_TW] * settings.has_bias + [d_x_TW] * settings.has_x_bias
        return [sum_TW + d_TW for sum_TW, d_TW in zip(sums, d_vectors_TW, strict=True)]

    zeros_TW = jnp.zeros((at_once, pl.next_power_of_2(shape[2])), jnp.float32)
    steps = _TOKENS_OF_A_PROGRAM // at_once
    sums = jax.lax.fori_loop(0, steps, meet, [zeros_TW] * settings.vectors)
    column_W = jnp.arange(zeros_TW.shape[1])
    for ref, sum_TW in zip(d_vector_refs, sums, strict=True):
        place = ref.at[pl.program_id(0), column_W]
        plgpu.store(place, sum_TW.sum(axis=0), mask=column_W < shape[2])
