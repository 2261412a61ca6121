"""The Triton kernels, by JAX's interpreter, against the reference; and the choice of backend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pallas_kernels import alibi_attention, alibi_attention_qkv, alibi_slopes, block_ranges
from pallas_kernels.alibi_attention import api
from pallas_kernels.alibi_attention.launch import AttentionLaunch, Launch
from pallas_kernels.backends import DTYPES
from tests.kernels.attention_cases import normal, packed_ids
from tests.kernels.device import KERNELS, on_gpu

TOLERANCE = {"float32": 4e-6, "bfloat16": 0.012, "float16": 2e-3}  # of the largest element


def values_and_gradients(qkv_BL3HD, ids_BL, d_out_BLHD, packed, **options):
    """The output, and the gradient of qkv, of a loss that is linear in the output."""

    def total(qkv_BL3HD):
        if packed:
            out_BLHD = alibi_attention_qkv(qkv_BL3HD, ids_BL, **options)
        else:
            q, k, v = (qkv_BL3HD[:, :, part] for part in range(3))
            out_BLHD = alibi_attention(q, k, v, ids_BL, **options)
        return (out_BLHD.astype(jnp.float32) * d_out_BLHD).sum(), out_BLHD

    (_, out_BLHD), d_qkv_BL3HD = jax.jit(jax.value_and_grad(total, has_aux=True))(qkv_BL3HD)
    return out_BLHD, d_qkv_BL3HD


def both_ways(block: int, inner_block: int) -> AttentionLaunch:
    """A launch with these blocks forward, and with them exchanged backward."""
    return AttentionLaunch(Launch(block, inner_block, 4, 1), Launch(inner_block, block, 4, 1))


# The interpreter takes the programs of a grid one by one, so the shapes are small.
@on_gpu
@settings(max_examples=8, deadline=None, phases=[Phase.generate])  # shrinking takes minutes
@given(
    length=st.sampled_from([1, 40, 64, 130]),
    heads=st.sampled_from([1, 2, 6, 12, 16]),
    head_size=st.sampled_from([32, 64, 128]),
    longest=st.sampled_from([1, 20, 130]),
    dtype=st.sampled_from(DTYPES),
    blocks=st.sampled_from([None, (32, 64), (64, 32), (128, 32), (32, 128)]),
    packed=st.booleans(),
    position=st.sampled_from([{"slopes_H": None}, {"slopes_H": 0.0}, {"rope_theta": 100.0}]),
    window=st.sampled_from([None, None, 0, 7, 64]),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 2**16),
)
def test_kernels_are_the_reference(
    length, heads, head_size, longest, dtype, blocks, packed, position, window, scale, seed
):
    rng = np.random.default_rng(seed)
    qkv_BL3HD = normal(rng, 2, length, 3, heads, head_size, dtype=dtype)
    d_out_BLHD = normal(rng, 2, length, heads, head_size)
    ids_BL = packed_ids(rng, 2, length, longest)
    options = position | {"window": window, "scale": scale}
    if options.get("slopes_H") == 0.0:
        options["slopes_H"] = np.zeros(heads)
    true = values_and_gradients(
        qkv_BL3HD, ids_BL, d_out_BLHD, packed, backend="reference", **options
    )
    launch = None if blocks is None else both_ways(*blocks)
    ours = values_and_gradients(
        qkv_BL3HD, ids_BL, d_out_BLHD, packed, backend=KERNELS, launch=launch, **options
    )
    padding = np.asarray(ids_BL) == 0
    for our, expected in zip(ours, true, strict=True):
        assert our.dtype == dtype
        our, expected = (np.asarray(x, np.float32) for x in (our, expected))
        # Rounding is that of the largest of the products that are added up.
        largest = max(np.abs(expected).max(), 1.0)
        np.testing.assert_allclose(our, expected, atol=largest * TOLERANCE[dtype], rtol=0)
        assert not our[padding].any()


@on_gpu
@pytest.mark.parametrize(
    ("length", "block_size", "dtype"),
    [(130, 64, "float32"), (96, 32, "float32"), (40, 64, "bfloat16")],
)
def test_projection_bias_is_added_and_has_its_gradient(length, block_size, dtype):
    rng = np.random.default_rng(0)
    qkv_BL3HD = normal(rng, 3, length, 3, 2, 32, dtype=dtype)
    bias_3HD, d_out_BLHD = normal(rng, 3, 2, 32), normal(rng, 3, length, 2, 32, dtype=dtype)
    ids_BL = packed_ids(rng, 3, length, 30)
    launch = both_ways(block_size, 32)

    def both(backend):
        def attend(qkv_BL3HD, bias_3HD):
            return alibi_attention_qkv(
                qkv_BL3HD, ids_BL, bias_3HD=bias_3HD, launch=launch, backend=backend
            )

        out_BLHD, backward = jax.vjp(jax.jit(attend), qkv_BL3HD, bias_3HD)
        return out_BLHD, *backward(d_out_BLHD)

    for our, expected in zip(both(KERNELS), both("reference"), strict=True):
        assert our.dtype == expected.dtype
        our, expected = (np.asarray(x, np.float32) for x in (our, expected))
        largest = np.abs(expected).max()
        np.testing.assert_allclose(our, expected, atol=largest * TOLERANCE[dtype], rtol=0)


@on_gpu
def test_only_the_ranges_are_visited():
    """Keys outside of a query's range of blocks are never read: poison there does no harm."""
    ids_BL = jnp.asarray([[1] * 64 + [2] * 64 + [3] * 64])
    qkv_BL3HD = normal(np.random.default_rng(0), 1, 192, 3, 2, 32)
    ranges = block_ranges(ids_BL, block_size=64)
    whole = values_and_gradients(qkv_BL3HD, ids_BL, 1.0, True, backend="reference")
    for segment in range(3):
        inside = slice(64 * segment, 64 * segment + 64)
        poisoned = jnp.full_like(qkv_BL3HD, jnp.nan).at[:, inside].set(qkv_BL3HD[:, inside])
        ours = values_and_gradients(
            poisoned, ids_BL, 1.0, True, backend=KERNELS, block_ranges=ranges
        )
        for our, expected in zip(ours, whole, strict=True):
            np.testing.assert_allclose(our[:, inside], expected[:, inside], atol=2e-5)


@on_gpu
def test_without_segment_ids_all_is_one_segment():
    rng = np.random.default_rng(0)
    qkv_BL3HD, d_out_BLHD = normal(rng, 2, 70, 3, 2, 32), normal(rng, 2, 70, 2, 32)
    ours = values_and_gradients(qkv_BL3HD, None, d_out_BLHD, True, backend=KERNELS)
    true = values_and_gradients(qkv_BL3HD, None, d_out_BLHD, True, backend="reference")
    for our, expected in zip(ours, true, strict=True):
        np.testing.assert_allclose(our, expected, atol=2e-5)


@on_gpu
def test_heads_of_a_mesh_have_their_own_slopes():
    rng = np.random.default_rng(0)
    qkv_BL3HD = normal(rng, 1, 40, 3, 6, 32)
    whole = alibi_attention_qkv(qkv_BL3HD, None, backend=KERNELS)
    part = alibi_attention_qkv(
        qkv_BL3HD[:, :, :, 2:4], None, slopes_H=alibi_slopes(6)[2:4], backend=KERNELS
    )
    np.testing.assert_array_equal(part, whole[:, :, 2:4])


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ((64, "bfloat16", False), None),
        ((64, "bfloat16", True), "triton has no attention dropout"),
        ((48, "bfloat16", False), "triton has head sizes (32, 64, 128), not 48"),
        ((64, "float64", False), "triton has float32, bfloat16, float16, not float64"),
    ],
)
def test_what_triton_serves(case, reason):
    assert api.reason_against_triton(*case) == reason


def test_a_bias_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"bias must be \(3, 2, 16\) like qkv, not \(2, 16\)"):
        alibi_attention_qkv(jnp.zeros((1, 8, 3, 2, 16)), None, bias_3HD=jnp.zeros((2, 16)))


def test_a_backend_that_can_not_serve_says_why():
    x = jnp.zeros((1, 8, 3, 2, 16))
    with pytest.raises(ValueError, match="'triton' can't serve: the device is a cpu"):
        alibi_attention_qkv(x, None, backend="triton")
    with pytest.raises(ValueError, match=r"'interpret' can't serve: .*not 16"):
        alibi_attention_qkv(x, None, backend="interpret")
    with pytest.raises(ValueError, match="'cuda' is not one of auto, triton, xla"):
        alibi_attention_qkv(x, None, backend="cuda")
    ids_BL = jnp.ones((1, 8), jnp.int32)
    with pytest.raises(ValueError, match=r"ranges of 40 tokens don't divide blocks of 64 and 64"):
        alibi_attention_qkv(
            jnp.zeros((1, 8, 3, 2, 32)),
            ids_BL,
            backend="interpret",
            block_ranges=block_ranges(ids_BL, block_size=40),
        )
