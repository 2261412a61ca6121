"""The Mosaic GPU kernels of attention, by JAX's interpreter, against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import alibi_attention, alibi_attention_qkv, alibi_slopes, block_ranges
from pallas_kernels.alibi_attention import mosaic
from pallas_kernels.alibi_attention.launch import AttentionLaunch, Launch
from pallas_kernels.backends import Target, target
from tests.kernels.attention_cases import normal, packed_ids
from tests.kernels.device import KERNELS, on_gpu

TOLERANCE = {"bfloat16": 0.012, "float16": 2e-3}  # of the largest element, as of triton's kernels
HOPPER = Target("gpu", "NVIDIA H100 80GB HBM3", (9, 0))
has_interpreter = hasattr(plgpu, "InterpretGPUParams")
interpreted = pytest.mark.skipif(
    not has_interpreter, reason="jax 0.11 is the first whose interpreter runs Mosaic GPU kernels"
)


@pytest.fixture
def on_hopper():
    if KERNELS != "interpret" and (target().compute_capability or (0,))[0] != 9:
        pytest.skip("mosaic's kernels are for compute capability 9")


def outputs(function, qkv_BL3HD, bias_3HD, d_out_BLHD):
    """The output, and the gradients of qkv and of the bias."""
    out_BLHD, backward = jax.vjp(jax.jit(function), qkv_BL3HD, bias_3HD)
    return out_BLHD, *backward(d_out_BLHD)


def by_kernels(ids_BL, *, packed=True, slopes_H=None, scale=None, block_size=32):
    """Attention by the kernels, of (qkv, bias)."""

    def attend(qkv_BL3HD, bias_3HD):
        heads, head_size = qkv_BL3HD.shape[-2:]
        operands = (qkv_BL3HD,) if packed else tuple(qkv_BL3HD[:, :, part] for part in range(3))
        return mosaic.attention(
            operands,
            ids_BL,
            jnp.asarray(alibi_slopes(heads) if slopes_H is None else slopes_H, jnp.float32),
            block_ranges(ids_BL, block_size=block_size),
            scale=head_size**-0.5 if scale is None else scale,
            bias_3HD=bias_3HD if packed else None,
            interpret=KERNELS == "interpret",
        )

    return attend


# The interpreter takes the programs of a grid one by one, so the shapes are small. It fails where
# a load and a use of the same shared memory are in no order.
@interpreted
@on_gpu
@pytest.mark.parametrize(
    ("length", "heads", "head_size", "dtype", "longest", "packed", "options"),
    [
        (200, 2, 32, "bfloat16", 130, True, {}),  # more blocks than are loaded ahead
        (40, 3, 64, "float16", 20, False, {"scale": 0.3}),
        (128, 1, 128, "bfloat16", 128, True, {"slopes_H": np.zeros(1), "scale": 0.05}),
        (1, 2, 64, "bfloat16", 1, True, {}),
    ],
)
def test_kernels_are_the_reference(
    on_hopper, length, heads, head_size, dtype, longest, packed, options
):
    rng = np.random.default_rng(0)
    qkv_BL3HD = normal(rng, 2, length, 3, heads, head_size, dtype=dtype)
    bias_3HD = normal(rng, 3, heads, head_size)
    d_out_BLHD = normal(rng, 2, length, heads, head_size, dtype=dtype)
    ids_BL = packed_ids(rng, 2, length, longest)

    def true(qkv_BL3HD, bias_3HD):
        if packed:
            return alibi_attention_qkv(
                qkv_BL3HD, ids_BL, bias_3HD=bias_3HD, backend="reference", **options
            )
        q, k, v = (qkv_BL3HD[:, :, part] for part in range(3))
        return alibi_attention(q, k, v, ids_BL, backend="reference", **options)

    ours = outputs(by_kernels(ids_BL, packed=packed, **options), qkv_BL3HD, bias_3HD, d_out_BLHD)
    expected = outputs(true, qkv_BL3HD, bias_3HD, d_out_BLHD)
    padding = np.asarray(ids_BL) == 0
    for name, our, theirs in zip(("out", "d_qkv", "d_bias"), ours, expected, strict=True):
        assert our.dtype == theirs.dtype
        our, theirs = (np.asarray(x, np.float32) for x in (our, theirs))
        largest = max(np.abs(theirs).max(), 1.0)
        np.testing.assert_allclose(
            our, theirs, atol=largest * TOLERANCE[dtype], rtol=0, err_msg=name
        )
        assert name == "d_bias" or not our[padding].any()


@interpreted
@on_gpu
def test_only_the_ranges_are_visited(on_hopper):
    """Keys outside of a query's range of blocks are never read: poison there does no harm."""
    ids_BL = jnp.asarray([[1] * 64 + [2] * 64])
    rng = np.random.default_rng(0)
    qkv_BL3HD = normal(rng, 1, 128, 3, 1, 32, dtype=jnp.bfloat16)
    d_out_BLHD = normal(rng, 1, 128, 1, 32, dtype=jnp.bfloat16)
    bias_3HD = jnp.zeros((3, 1, 32))
    attend = by_kernels(ids_BL, block_size=64)
    whole = outputs(attend, qkv_BL3HD, bias_3HD, d_out_BLHD)
    poisoned = jnp.full_like(qkv_BL3HD, jnp.nan).at[:, :64].set(qkv_BL3HD[:, :64])
    ours = outputs(attend, poisoned, bias_3HD, d_out_BLHD)
    for our, expected in zip(ours[:2], whole[:2], strict=True):
        np.testing.assert_array_equal(our[:, :64], expected[:, :64])
        assert np.isnan(our[:, 64:]).all()


@interpreted
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ((HOPPER, 64, "bfloat16", False), None),
        ((HOPPER, 48, "bfloat16", False), "mosaic has head sizes (32, 64, 128), not 48"),
        ((HOPPER, 64, "float32", False), "mosaic has bfloat16, float16, not float32"),
        ((HOPPER, 64, "bfloat16", True), "mosaic has no attention dropout"),
        (
            (Target("gpu", "NVIDIA B200", (10, 0)), 64, "bfloat16", False),
            "mosaic's kernels are for compute capability 9, not NVIDIA B200",
        ),
    ],
)
def test_what_mosaic_serves(case, reason):
    assert mosaic.why_not(*case, launch=None) == reason


@interpreted
def test_a_launch_of_tritons_is_an_error():
    launch = AttentionLaunch(Launch(64, 64, 4, 2), Launch(64, 64, 4, 1))
    why_not = mosaic.why_not(HOPPER, 64, "bfloat16", False, launch)
    assert why_not == "launch is for triton's kernels"


def test_mosaic_says_why_it_can_not_serve():
    reason = "compute capability 9, not cpu" if has_interpreter else "jax 0.11 or higher, not 0"
    with pytest.raises(ValueError, match=f"'mosaic' can't serve: mosaic.*{reason}"):
        alibi_attention_qkv(jnp.zeros((1, 8, 3, 2, 32), jnp.bfloat16), None, backend="mosaic")
