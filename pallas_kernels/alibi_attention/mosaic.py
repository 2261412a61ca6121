"""Attention as Pallas kernels for Hopper, through Mosaic GPU: a successor of `triton`.

The algorithm is that of `triton`: FlashAttention-2 (Dao, 2023, arXiv:2307.08691) over the blocks
that `BlockRanges` names, and a backward kernel of two sweeps that adds nothing atomically. Here the
loads and the products are explicit (`mosaic_kernels`). TMA reads zeros after a row's end and writes
nothing there, so that rows of any length need no mask and no copy; what is one number a token
(segment ids, logsumexp) is padded.

jax.experimental.pallas.mosaic_gpu changes between releases. What is used here is the same in jax
0.11 and 0.12. Before, its interpreter can't run these kernels, and so nothing tests their numbers.

Shape letters besides those of `api`: Q blocks of a row, M tokens of a padded row, C all columns of
a token: (3, H, D) or (H, D) as one axis.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.alibi_attention.block_ranges import BlockRanges, pad_to_blocks
from pallas_kernels.alibi_attention.launch import AttentionLaunch
from pallas_kernels.alibi_attention.mosaic_kernels import (
    BLOCK,
    Settings,
    backward_kernel,
    backward_scratch,
    forward_kernel,
    forward_scratch,
)
from pallas_kernels.alibi_attention.operands import add_bias
from pallas_kernels.backends import Target

HEAD_SIZES = (32, 64, 128)
DTYPES = ("bfloat16", "float16")


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
    settings = Settings(scale, heads, head_size, packed, bias_3HD is not None, interpret)
    ids_BM = pad_to_blocks(segment_ids_BL, BLOCK)
    context = (ids_BM, slopes_H, *ranges.of_blocks(BLOCK, BLOCK))
    return _attend(settings, operands, biases, context)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings: Settings, operands, biases, context):
    return _attend_forward(settings, operands, biases, context)[0]


def _attend_forward(settings: Settings, operands, biases, context):
    if biases:
        operands = (add_bias(operands[0], biases[0]),)
    out_BLHD, logsumexp_BHM = _forward(settings, operands, context)
    return out_BLHD, (operands, context, out_BLHD, logsumexp_BHM)


def _attend_backward(settings: Settings, saved, d_out_BLHD):
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


def _forward(settings: Settings, operands, context):
    rows, length = operands[0].shape[:2]
    dtype, padded = operands[0].dtype, context[0].shape[1]
    width = settings.heads * settings.head_size
    out_BLC, logsumexp_BHM = _kernel(
        settings,
        forward_kernel,
        "alibi_attention_forward",
        (rows, padded),
        out_type=(
            jax.ShapeDtypeStruct((rows, length, width), dtype),
            jax.ShapeDtypeStruct((rows, settings.heads, padded), jnp.float32),
        ),
        scratch_types=forward_scratch(settings, dtype),
    )(*_as_three(operands), *context)
    return out_BLC.reshape(rows, length, settings.heads, settings.head_size), logsumexp_BHM


def _backward(settings: Settings, operands, context, d_out_BLHD, logsumexp_BHM, delta_BHM):
    rows, padded = context[0].shape
    flat = [_flat(x) for x in operands]
    out_type = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in flat]
    if settings.has_bias:
        shape = (rows, padded // BLOCK, flat[0].shape[-1])
        out_type.append(jax.ShapeDtypeStruct(shape, jnp.float32))
    return _kernel(
        settings,
        backward_kernel,
        "alibi_attention_backward",
        (rows, padded),
        out_type=tuple(out_type),
        scratch_types=backward_scratch(settings, flat[0].dtype),
    )(*_as_three(operands), *context, _flat(d_out_BLHD), logsumexp_BHM, delta_BHM)


def _kernel(settings: Settings, body, name: str, shape: tuple[int, int], **types):
    """A program a block, head and row of arrays of `shape`, (B, M)."""
    rows, padded = shape
    return plgpu.kernel(
        functools.partial(body, settings),
        grid=(padded // BLOCK, settings.heads, rows),
        grid_names=("block", "head", "row"),
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(approx_math=True),  # exponentials in hardware
        interpret=plgpu.InterpretGPUParams(detect_races=True) if settings.interpret else None,
        **types,
    )


def _flat(x: Array) -> Array:
    """(B, L, C), as TMA takes up to five axes, of which tiles take two more."""
    return x.reshape(*x.shape[:2], -1)


def _as_three(operands):
    flat = tuple(map(_flat, operands))
    return flat * 3 if len(flat) == 1 else flat
