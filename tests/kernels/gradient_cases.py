"""Values and gradients of two forms of a function, and how near they must be."""

import jax
import numpy as np

TOLERANCE = {"float32": 5e-6, "bfloat16": 0.04, "float16": 5e-3}  # of the largest value


def values_and_gradients(function, operands, d_y_BLE):
    """The result, and the gradients of the operands."""

    @jax.jit
    def run(operands, d_y_BLE):
        y_BLE, backward = jax.vjp(function, *operands)
        return y_BLE, *backward(d_y_BLE)

    return run(operands, d_y_BLE)


def assert_close(ours, true, tolerance):
    for our, expected in zip(ours, true, strict=True):
        assert our.dtype == expected.dtype
        our, expected = (np.asarray(x, np.float32) for x in (our, expected))
        np.testing.assert_allclose(our, expected, rtol=0, atol=tolerance * np.abs(expected).max())
