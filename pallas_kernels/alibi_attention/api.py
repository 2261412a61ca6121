"""The public functions: they check, fill in defaults, and choose a backend."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from pallas_kernels import backends
from pallas_kernels.alibi_attention import reference, triton, xla
from pallas_kernels.alibi_attention.block_ranges import (
    BlockRanges,
    block_ranges,
    default_block_size,
)
from pallas_kernels.alibi_attention.launch import RANGE_BLOCK, AttentionLaunch, launch_for
from pallas_kernels.alibi_attention.operands import add_bias
from pallas_kernels.alibi_attention.slopes import alibi_slopes
from pallas_kernels.backends import DTYPES, choose_backend, target

BACKENDS = (*backends.BACKENDS, "mosaic", "reference")
_find_block_ranges = block_ranges  # the public functions have an argument of that name


def alibi_attention(
    q_BLHD: Float[Array, "B L H D"],
    k_BLHD: Float[Array, "B L H D"],
    v_BLHD: Float[Array, "B L H D"],
    segment_ids_BL: Int[Array, "B L"] | None,
    *,
    slopes_H: Float[Array, "H"] | None = None,
    rope_theta: float | None = None,
    window: int | None = None,
    scale: float | None = None,
    block_ranges: BlockRanges | None = None,
    dropout_rate: float = 0.0,
    dropout_keys_B: Key[Array, "B"] | None = None,
    launch: AttentionLaunch | None = None,
    backend: str = "auto",
) -> Float[Array, "B L H D"]:
    """FlashAttention-style bidirectional attention within segments, with ALiBi or RoPE.

    out_i = sum_j softmax_j(scale q_i·k_j - slope |i - j|) v_j over the j of i's segment
    (ALiBi: arXiv:2108.12409, symmetric as an encoder needs it), or with q and k rotated and without
    a bias (RoPE: arXiv:2104.09864). Padding gives zeros and zero gradients. Differentiable in q, k
    and v; the slopes are constants.

    Args:
      q_BLHD, k_BLHD, v_BLHD: float32, bfloat16 or float16. Softmax and sums are in float32.
      segment_ids_BL: int32; 0 is padding wherever it stands; None means one segment, no padding.
      slopes_H: float32; None means `alibi_slopes(H)`; zeros mean no bias.
      rope_theta: base of the rotation of q and k, which are rounded to their dtype afterwards (see
        `rope`); in place of slopes. None means no rotation.
      window: keys at most this many tokens away are seen (arXiv:2004.05150); None means all. The
        time is that of the window.
      scale: None means 1 / sqrt(D).
      block_ranges: what `block_ranges(segment_ids_BL)` gave, to share it among layers; None
        computes it here.
      dropout_rate: probability of dropping an attention weight.
      dropout_keys_B: a typed JAX key a row; needed if dropout_rate is not 0.
      launch: block sizes, warps and stages of the kernels; None takes what `launch_for` finds.
      backend: "triton", Pallas kernels for NVIDIA GPUs from Ampere on; "xla", plain JAX for any
        device; "mosaic", Pallas kernels for Hopper through Mosaic GPU, with jax 0.11 or higher and
        launch parameters of their own; "reference", the dense form; "interpret", the kernels of
        "triton" by JAX's interpreter, for tests. "auto" takes triton on GPUs where it can serve,
        else xla, and logs once which and why.

    Returns:
      out_BLHD, in q's dtype.

    Raises:
      ValueError: shapes that do not fit, dropout without keys, or a backend that is not there or
        can't serve.
    """
    if not q_BLHD.shape == k_BLHD.shape == v_BLHD.shape or q_BLHD.ndim != 4:
        shapes = f"{q_BLHD.shape}, {k_BLHD.shape}, {v_BLHD.shape}"
        raise ValueError(f"q, k and v must have one shape (B, L, H, D), not {shapes}")
    return _attention(
        (q_BLHD, k_BLHD, v_BLHD),
        None,
        segment_ids_BL,
        slopes_H,
        rope_theta,
        window,
        scale,
        block_ranges,
        dropout_rate,
        dropout_keys_B,
        launch,
        backend,
    )


def alibi_attention_qkv(
    qkv_BL3HD: Float[Array, "B L 3 H D"],
    segment_ids_BL: Int[Array, "B L"] | None,
    *,
    bias_3HD: Float[Array, "3 H D"] | None = None,
    slopes_H: Float[Array, "H"] | None = None,
    rope_theta: float | None = None,
    window: int | None = None,
    scale: float | None = None,
    block_ranges: BlockRanges | None = None,
    dropout_rate: float = 0.0,
    dropout_keys_B: Key[Array, "B"] | None = None,
    launch: AttentionLaunch | None = None,
    backend: str = "auto",
) -> Float[Array, "B L H D"]:
    """`alibi_attention` on the packed projection as it leaves Wqkv; same options, same result.

    The kernels read from it and write its gradient in the same form: no copy is made.

    Args:
      bias_3HD: the projection's bias if it was not added yet, in any float dtype; it is rounded to
        qkv's. The kernels sum its gradient as they go, where a pass of its own would read all of
        qkv's gradient again.
    """
    if qkv_BL3HD.ndim != 5 or qkv_BL3HD.shape[2] != 3:
        raise ValueError(f"qkv must be (B, L, 3, H, D), not {qkv_BL3HD.shape}")
    if bias_3HD is not None and bias_3HD.shape != qkv_BL3HD.shape[2:]:
        raise ValueError(f"bias must be {qkv_BL3HD.shape[2:]} like qkv, not {bias_3HD.shape}")
    return _attention(
        (qkv_BL3HD,),
        bias_3HD,
        segment_ids_BL,
        slopes_H,
        rope_theta,
        window,
        scale,
        block_ranges,
        dropout_rate,
        dropout_keys_B,
        launch,
        backend,
    )


def _attention(
    operands,
    bias_3HD,
    segment_ids_BL,
    slopes_H,
    rope_theta,
    window,
    scale,
    ranges,
    dropout_rate,
    dropout_keys_B,
    launch,
    backend,
):
    """On (qkv_BL3HD,) or (q_BLHD, k_BLHD, v_BLHD)."""
    rows, length, *_, heads, head_size = operands[0].shape
    if segment_ids_BL is None:
        segment_ids_BL = jnp.ones((rows, length), jnp.int32)
    if segment_ids_BL.shape != (rows, length):
        raise ValueError(
            f"segment_ids_BL must be {(rows, length)} like q, not {segment_ids_BL.shape}"
        )
    if dropout_rate and dropout_keys_B is None:
        raise ValueError("dropout_rate needs dropout_keys_B, one key a row")
    if window is not None and window < 0:
        raise ValueError(f"window must not be negative, as {window} is")
    if rope_theta is not None:
        if slopes_H is not None or head_size % 2:
            raise ValueError("rope_theta goes with an even head size and without slopes_H")
        slopes_H = jnp.zeros(heads)
    slopes_H = jnp.asarray(alibi_slopes(heads) if slopes_H is None else slopes_H, jnp.float32)
    if slopes_H.shape != (heads,):
        raise ValueError(f"slopes_H must be ({heads},), one a head of q, not {slopes_H.shape}")
    scale = head_size**-0.5 if scale is None else scale
    why_not_triton = reason_against_triton(head_size, operands[0].dtype.name, dropout_rate > 0)
    device = target()
    chosen = choose_backend("alibi_attention", backend, device, why_not_triton, BACKENDS)
    if chosen in ("triton", "interpret"):
        return triton.attention(
            operands,
            segment_ids_BL,
            slopes_H,
            ranges or _find_block_ranges(segment_ids_BL, block_size=RANGE_BLOCK),
            launch
            or launch_for(
                device, length, head_size, operands[0].dtype, rotates=rope_theta is not None
            ),
            scale=scale,
            rope_theta=rope_theta,
            window=window,
            bias_3HD=bias_3HD,
            interpret=chosen == "interpret",
        )
    if chosen == "mosaic":
        # Here, as it takes 0.3 s, and what JAX has of it changes between releases.
        from pallas_kernels.alibi_attention import mosaic

        drops = dropout_rate > 0
        why_not = mosaic.why_not(device, head_size, operands[0].dtype.name, drops, launch)
        if rope_theta is not None or window is not None:
            why_not = why_not or "mosaic has neither rotation nor window"
        if why_not:
            raise ValueError(f"backend 'mosaic' can't serve: {why_not}")
        ranges = ranges or _find_block_ranges(segment_ids_BL, block_size=RANGE_BLOCK)
        return mosaic.attention(
            operands, segment_ids_BL, slopes_H, ranges, scale=scale, bias_3HD=bias_3HD
        )
    if bias_3HD is not None:
        operands = (add_bias(operands[0], bias_3HD),)
    if len(operands) == 1:
        operands = tuple(operands[0][:, :, part] for part in range(3))
    options = {
        "scale": scale,
        "rope_theta": rope_theta,
        "window": window,
        "dropout_rate": dropout_rate,
        "dropout_keys_B": dropout_keys_B,
    }
    if chosen == "reference":
        return reference.attention(*operands, segment_ids_BL, slopes_H, **options)
    # Small blocks, which the kernels share, would be many rounds of a loop here.
    ranges = ranges or _find_block_ranges(
        segment_ids_BL, block_size=default_block_size(length, "cpu")
    )
    if device.platform == "gpu" and ranges.block_size == RANGE_BLOCK:
        ranges = ranges.of_size(128)
    return xla.attention(*operands, segment_ids_BL, slopes_H, ranges, **options)


def reason_against_triton(head_size: int, dtype: str, drops: bool) -> str | None:
    """Why the Triton kernel cannot serve these operands; None where it can."""
    if head_size not in triton.HEAD_SIZES:
        return f"triton has head sizes {triton.HEAD_SIZES}, not {head_size}"
    if dtype not in DTYPES:
        return f"triton has {', '.join(DTYPES)}, not {dtype}"
    if drops:
        return "triton has no attention dropout"
    return None
