"""Lookups, whose gradients are written without a scatter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicbert_jax.modeling.columns import gather_columns
from mosaicbert_jax.modeling.layers import look_up
from tests.kernels.attention_cases import normal


def gradient(function, x, d_y):
    y, backward = jax.vjp(function, x)
    return y, *backward(d_y)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_columns_have_the_gradient_of_a_gather(dtype):
    """Of columns taken once to the bit, and of one that several slots share."""
    rng = np.random.default_rng(0)
    columns_BP = jnp.asarray([[3, 1, 0, 0], [4, 2, 1, 0]])  # the first row's last two are one
    x_BLE, d_BPE = normal(rng, 2, 5, 8, dtype=dtype), normal(rng, 2, 4, 8, dtype=dtype)
    ours = gradient(lambda x: gather_columns(x, columns_BP), x_BLE, d_BPE)
    true = gradient(lambda x: jnp.take_along_axis(x, columns_BP[..., None], 1), x_BLE, d_BPE)
    for our, expected in zip(ours, true, strict=True):
        assert our.dtype == dtype
        np.testing.assert_array_equal(our, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_table_has_the_gradient_of_a_lookup(dtype):
    rng = np.random.default_rng(0)
    index_BL = jnp.asarray([[3, 1, 3], [0, 3, 4]])
    table_VE, d_BLE = normal(rng, 5, 8), normal(rng, 2, 3, 8, dtype=dtype)
    ours = gradient(lambda table: look_up(table, index_BL, dtype), table_VE, d_BLE)
    true = gradient(lambda t: t[index_BL].astype(dtype), table_VE, d_BLE)
    for our, expected in zip(ours, true, strict=True):
        assert our.dtype == expected.dtype
        np.testing.assert_allclose(our, expected, rtol=1e-6)
    assert jnp.isnan(look_up(table_VE, jnp.asarray([[5]]))).all()
