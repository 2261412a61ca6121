"""The kernel of sum_rows, by JAX's interpreter, against plain JAX; and that by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import sum_rows
from tests.kernels.attention_cases import normal
from tests.kernels.device import KERNELS, on_gpu

TOLERANCE = {"float32": 3e-6, "bfloat16": 3e-6, "float16": 3e-6}  # added in float32 in any case


def by(backend):
    return jax.jit(functools.partial(sum_rows, backend=backend), static_argnums=2)


@on_gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("count", "entries", "width"),
    [(1, 1, 32), (7, 3, 64), (100, 40, 192), (150, 9, 256)],  # two tiles of rows and more
)
def test_kernel_is_the_plain_form(count, entries, width, dtype):
    rng = np.random.default_rng(0)
    index_N = rng.integers(0, entries, count)
    index_N[rng.random(count) < 0.4] = entries // 2  # as the mask token is of all tokens
    rows_NE = normal(rng, count, width, dtype=dtype)
    ours, true = (by(b)(rows_NE, jnp.asarray(index_N), entries) for b in (KERNELS, "xla"))
    assert ours.dtype == true.dtype == "float32"
    np.testing.assert_allclose(ours, true, rtol=0, atol=TOLERANCE[dtype] * np.abs(true).max())


@on_gpu
@pytest.mark.parametrize("backend", [KERNELS, "xla"])
def test_by_hand(backend):
    rows_NE = jnp.repeat(jnp.asarray([1.0, 2, 4, 8, 16])[:, None], 32, axis=1)
    sums_VE = by(backend)(rows_NE, jnp.asarray([2, 0, 2, -1, 4]), 4)  # two that are nowhere
    np.testing.assert_array_equal(sums_VE[:, 0], [2, 0, 5, 0])


@on_gpu
def test_many_small_numbers_are_not_lost_in_bfloat16():
    rows_NE = jnp.ones((1000, 32), jnp.bfloat16)
    sums_VE = by(KERNELS)(rows_NE, jnp.zeros(1000, jnp.int32), 2)
    np.testing.assert_array_equal(sums_VE, [[1000.0] * 32, [0.0] * 32])


def test_what_does_not_fit_is_said():
    rows_NE, index_N = jnp.zeros((3, 32)), jnp.zeros(3, jnp.int32)
    with pytest.raises(ValueError, match=r"\(N, E\) and \(N,\), not \(3, 32\) and \(2,\)"):
        sum_rows(rows_NE, index_N[:2], 5)
    with pytest.raises(ValueError, match=r"'interpret' can't serve: .*multiples of 32, not 20"):
        sum_rows(rows_NE[:, :20], index_N, 5, backend="interpret")
    with pytest.raises(ValueError, match=r"can't serve: triton has float32, .* not int32"):
        sum_rows(rows_NE.astype(jnp.int32), index_N, 5, backend="interpret")
    with pytest.raises(ValueError, match="'triton' can't serve: the device is a cpu"):
        sum_rows(rows_NE, index_N, 5, backend="triton")
