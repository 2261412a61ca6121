"""Attention: every backend against the one reference, values and gradients."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import alibi_attention, alibi_attention_qkv, alibi_slopes, block_ranges
from tests.golden_cases import FOLDER
from tests.kernels.attention_cases import normal, packed_ids


@settings(max_examples=8, deadline=None)
@given(
    length=st.sampled_from([1, 40, 128, 200, 300]),
    heads=st.sampled_from([1, 2, 6, 12]),
    head_size=st.sampled_from([16, 32, 64]),
    longest=st.sampled_from([1, 20, 128]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    dropout_rate=st.sampled_from([0.0, 0.0, 0.2]),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_xla_is_the_reference(length, heads, head_size, longest, dtype, dropout_rate, bias, seed):
    rng = np.random.default_rng(seed)
    rows = 3
    q, k, v, d_out = (normal(rng, rows, length, heads, head_size, dtype=dtype) for _ in range(4))
    ids_BL = packed_ids(rng, rows, length, longest)

    def outputs(backend):
        def total(q, k, v):
            out_BLHD = alibi_attention(
                q,
                k,
                v,
                ids_BL,
                slopes_H=None if bias else np.zeros(heads),
                dropout_rate=dropout_rate,
                dropout_keys_B=jax.random.split(jax.random.key(seed), rows),
                backend=backend,
            )
            return (out_BLHD * d_out).astype(jnp.float32).sum(), out_BLHD

        (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        return out, *gradients

    tolerance = 2e-5 if dtype == jnp.float32 else 0.06
    padding = np.asarray(ids_BL) == 0
    for ours, true in zip(outputs("xla"), outputs("reference"), strict=True):
        assert ours.dtype == dtype
        ours_BLHD, true_BLHD = (np.asarray(x, np.float32) for x in (ours, true))
        np.testing.assert_allclose(ours_BLHD, true_BLHD, atol=tolerance, rtol=tolerance)
        assert not ours_BLHD[padding].any()


def test_packed_projection_is_the_same():
    rng = np.random.default_rng(0)
    qkv = normal(rng, 2, 50, 3, 4, 16)
    ids_BL = packed_ids(rng, 2, 50, 20)
    np.testing.assert_array_equal(
        alibi_attention_qkv(qkv, ids_BL), alibi_attention(*jnp.moveaxis(qkv, 2, 0), ids_BL)
    )


def test_slopes_of_a_part_of_the_heads():
    """As when heads are divided over a mesh."""
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 2, 40, 6, 16) for _ in range(3))
    whole = alibi_attention(q, k, v, None)
    part = alibi_attention(*(x[:, :, 2:4] for x in (q, k, v)), None, slopes_H=alibi_slopes(6)[2:4])
    np.testing.assert_allclose(part, whole[:, :, 2:4], atol=1e-6)


def test_slopes():
    for heads, slopes in json.loads((FOLDER / "alibi_slopes.json").read_text()).items():
        np.testing.assert_allclose(alibi_slopes(int(heads)), slopes, rtol=1e-6)


def needed_blocks(ids_L, block):
    """By the definition: the pairs of blocks that share a segment."""
    blocks = [set(ids_L[i : i + block]) - {0} for i in range(0, len(ids_L), block)]
    return np.array([[bool(a & b) for b in blocks] for a in blocks])


@pytest.mark.one_end
@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 300),
    longest=st.sampled_from([1, 10, 100, 300]),
    block=st.sampled_from([16, 64, 128]),
    seed=st.integers(0, 2**16),
)
def test_ranges_are_the_least_possible(length, longest, block, seed):
    ids_BL = packed_ids(np.random.default_rng(seed), 3, length, longest)
    ranges = block_ranges(ids_BL, block_size=block)
    for ids_L, lower_Q, upper_Q in zip(ids_BL, ranges.lower_BQ, ranges.upper_BQ, strict=True):
        needed = needed_blocks(np.asarray(ids_L).tolist(), ranges.block_size)
        index = np.arange(len(needed))
        visited = (index >= np.asarray(lower_Q)[:, None]) & (index < np.asarray(upper_Q)[:, None])
        np.testing.assert_array_equal(visited, needed)


@pytest.mark.one_end
@settings(max_examples=10, deadline=None)
@given(
    length=st.integers(1, 400),
    longest=st.sampled_from([1, 10, 100, 400]),
    blocks=st.tuples(st.sampled_from([32, 64, 128]), st.sampled_from([32, 64, 128])),
    seed=st.integers(0, 2**16),
)
def test_ranges_of_larger_blocks_hold_those_of_their_parts(length, longest, blocks, seed):
    block, inner_block = blocks
    ids_BL = packed_ids(np.random.default_rng(seed), 3, length, longest)
    parts = block_ranges(ids_BL, block_size=32)
    lower_BI, upper_BI = (np.asarray(x) for x in parts.of_blocks(block, inner_block))
    for b, ids_L in enumerate(np.asarray(ids_BL)):
        for i in range(-(-length // block)):
            queries_L = ids_L[i * block : (i + 1) * block]
            shared = np.flatnonzero(np.isin(ids_L, queries_L[queries_L > 0]))
            if not len(shared):
                assert lower_BI[b, i] == upper_BI[b, i]
                continue
            # Of the smallest blocks, as of the larger ones, none is visited without need.
            first, last = shared[0] // 32 * 32, shared[-1] // 32 * 32
            assert (lower_BI[b, i], upper_BI[b, i] - 1) == (
                first // inner_block,
                last // inner_block,
            )


@settings(max_examples=20, deadline=None)
@given(
    length=st.integers(1, 400),
    longest=st.sampled_from([1, 10, 100, 400]),
    blocks=st.tuples(st.sampled_from([32, 64, 128]), st.sampled_from([32, 64, 128])),
    window=st.sampled_from([0, 1, 31, 64, 100, 500]),
    seed=st.integers(0, 2**16),
)
def test_a_window_narrows_the_ranges_to_what_it_sees(length, longest, blocks, window, seed):
    block, inner_block = blocks
    ids_BL = packed_ids(np.random.default_rng(seed), 3, length, longest)
    ranges = block_ranges(ids_BL, block_size=32)
    lower_BI, upper_BI = (np.asarray(x) for x in ranges.of_blocks(*blocks, window=window))
    column_L = np.arange(length)
    near_LL = np.abs(column_L[:, None] - column_L) <= window
    for b, ids_L in enumerate(np.asarray(ids_BL)):
        seen_LL = near_LL & (ids_L[:, None] == ids_L) & (ids_L > 0)
        for i in range(-(-length // block)):
            keys = np.flatnonzero(seen_LL[i * block : (i + 1) * block].any(axis=0))
            lower, upper = lower_BI[b, i], upper_BI[b, i]
            if len(keys):
                assert lower <= keys[0] // inner_block
                assert upper > keys[-1] // inner_block
            # Whatever the row's length, no more than the window and the block reach.
            assert (upper - lower - 2) * inner_block < block + 2 * window


def test_a_segment_in_two_pieces_is_still_whole():
    """Ids that do not ascend may visit more, and never miss."""
    ids_BL = jnp.asarray([[1] * 40 + [2] * 40 + [1] * 40])
    q, k, v = (normal(np.random.default_rng(0), 1, 120, 2, 16) for _ in range(3))
    options = {"block_ranges": block_ranges(ids_BL, block_size=32), "backend": "xla"}
    np.testing.assert_allclose(
        alibi_attention(q, k, v, ids_BL, **options),
        alibi_attention(q, k, v, ids_BL, backend="reference"),
        atol=1e-5,
    )


def test_memory_is_linear_in_the_row_length():
    """No L x L array: four times the length takes four times the temporary memory, not sixteen."""

    def temporary_bytes(length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 32), jnp.float32)
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
        total = lambda q, k, v, ids: alibi_attention(q, k, v, ids, backend="xla").sum()  # noqa: E731
        compiled = jax.jit(jax.grad(total, (0, 1, 2))).lower(shape, shape, shape, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4096) < 5 * temporary_bytes(1024)


def test_by_hand():
    """Three tokens, the third of another segment: weights from the definition."""
    q_1LHD = jnp.zeros((1, 3, 1, 16))
    v_1LHD = jnp.broadcast_to(jnp.asarray([1.0, 2.0, 4.0])[None, :, None, None], (1, 3, 1, 16))
    out = alibi_attention(q_1LHD, q_1LHD, v_1LHD, jnp.asarray([[1, 1, 2]]), slopes_H=np.ones(1))
    far = np.exp(-1.0)
    expected = [(1 + 2 * far) / (1 + far), (2 + far) / (1 + far), 4.0]
    np.testing.assert_allclose(out[0, :, 0, 0], expected, rtol=1e-6)


def test_time_follows_the_segments():
    """32 segments of 128 tokens take a fraction of the time of one of 4,096."""
    length = 4096
    q, k, v = (normal(np.random.default_rng(0), 1, length, 4, 64) for _ in range(3))
    total = lambda q, k, v, ids: alibi_attention(q, k, v, ids, backend="xla").sum()  # noqa: E731
    gradient = jax.jit(jax.grad(total, (0, 1, 2)))

    def fastest(ids_L):
        ids_1L = jnp.asarray(ids_L, jnp.int32)[None]
        times = []
        for _ in range(4):
            start = time.perf_counter()
            jax.block_until_ready(gradient(q, k, v, ids_1L))
            times.append(time.perf_counter() - start)
        return min(times[1:])

    assert 4 * fastest(np.arange(length) // 128 + 1) < fastest(np.ones(length))


def test_mistakes_are_explained():
    x = jnp.zeros((2, 8, 2, 16))
    with pytest.raises(ValueError, match="one shape"):
        alibi_attention(x, x, x[:, :4], None)
    with pytest.raises(ValueError, match="segment_ids_BL must be"):
        alibi_attention(x, x, x, jnp.ones((2, 7), jnp.int32))
    with pytest.raises(ValueError, match="slopes_H must be"):
        alibi_attention(x, x, x, None, slopes_H=np.ones(3))
    with pytest.raises(ValueError, match="needs dropout_keys_B"):
        alibi_attention(x, x, x, None, dropout_rate=0.1)
    with pytest.raises(ValueError, match="'wings' is not one of"):
        alibi_attention(x, x, x, None, backend="wings")
    with pytest.raises(ValueError, match=r"qkv must be"):
        alibi_attention_qkv(x, None)
