"""Dense: the parameters of nnx.Linear, and outputs of several axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mosaicbert_jax import BertConfig
from mosaicbert_jax.modeling.layers import Dense


@pytest.mark.parametrize("use_bias", [True, False])
def test_initial_parameters_are_those_of_nnx_linear(use_bias):
    """By name, shape and bit; the second layer's too, whose key depends on the first's draws."""

    def params(make):
        rngs = nnx.Rngs(3)
        return nnx.to_pure_dict(nnx.state(nnx.List([make(rngs), make(rngs)])))

    init = nnx.initializers.normal(0.02)
    ours = params(lambda rngs: Dense(BertConfig(), 8, 3, 4, use_bias=use_bias, rngs=rngs))
    flax = params(
        lambda rngs: nnx.Linear(8, 12, use_bias=use_bias, kernel_init=init, rngs=rngs),
    )
    assert len(jax.tree.leaves(ours)) == (4 if use_bias else 2)
    jax.tree.map(np.testing.assert_array_equal, ours, flax)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outputs_have_their_axes_and_the_dtype_of_the_input(dtype):
    dense = Dense(BertConfig(), 8, 3, 4, rngs=nnx.Rngs(0))
    dense.bias[...] = jnp.arange(12.0)
    x_BLI = jax.random.normal(jax.random.key(1), (2, 5, 8), dtype)
    y_BLO = dense(x_BLI)
    assert (y_BLO.shape, y_BLO.dtype) == ((2, 5, 3, 4), dtype)
    product_BLO = np.asarray(x_BLI, np.float64) @ np.asarray(dense.kernel[...], np.float64)
    expected_BLO = (product_BLO + np.arange(12)).reshape(2, 5, 3, 4)
    tolerance = 1e-6 if dtype == "float32" else 2**-7
    np.testing.assert_allclose(
        np.asarray(y_BLO, np.float64), expected_BLO, rtol=tolerance, atol=tolerance
    )
    np.testing.assert_array_equal(
        dense.product(x_BLI) + jnp.arange(12, dtype=dtype).reshape(3, 4), y_BLO
    )
