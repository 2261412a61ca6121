"""The kernels of geglu_linear, by JAX's interpreter, against plain JAX."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mosaicbert_jax.modeling.dropout import Site, dropout, row_keys, site_keys
from mosaicbert_jax.modeling.on_mesh import on_own_columns
from pallas_kernels import geglu_linear
from pallas_kernels.geglu_linear import triton
from tests.kernels.attention_cases import normal
from tests.kernels.device import KERNELS, on_gpu
from tests.kernels.gradient_cases import TOLERANCE, assert_close, values_and_gradients

KEY = jax.random.key(7)
OUTPUTS = 16


def inputs(rows, length, width, dtype="float32"):
    """gate_up and the linear map's kernel, and the gradient of the result."""
    rng = np.random.default_rng(0)
    gate_up_BL2F = normal(rng, rows, length, 2, width, dtype=dtype)
    d_out_BLE = normal(rng, rows, length, OUTPUTS, dtype=dtype)
    return (gate_up_BL2F, normal(rng, width, OUTPUTS)), d_out_BLE


@on_gpu
@pytest.mark.parametrize(
    ("rows", "length", "width", "dtype", "rate", "activation"),
    [
        # Three blocks of columns, two of tokens, the last not full.
        (3, 11, 192, "float32", 0.1, "gelu"),
        (1, 3, 3072, "float32", 0.0, "gelu"),
        (2, 5, 2048, "float32", 0.5, "gelu"),  # a token's columns go to two programs
        (2, 9, 128, "bfloat16", 0.1, "gelu"),
        (2, 9, 128, "bfloat16", 0.0, "gelu"),
        (2, 9, 128, "float16", 0.1, "gelu"),
        (3, 11, 192, "float32", 0.1, "silu"),
        (2, 9, 128, "bfloat16", 0.0, "silu"),
    ],
)
def test_kernels_are_the_plain_form(rows, length, width, dtype, rate, activation):
    operands, d_out_BLE = inputs(rows, length, width, dtype)
    function = functools.partial(
        geglu_linear,
        activation=activation,
        dropout_rate=rate,
        dropout_keys_B=row_keys(KEY, rows) if rate else None,
    )
    ours, true = (
        values_and_gradients(functools.partial(function, backend=backend), operands, d_out_BLE)
        for backend in (KERNELS, "xla")
    )
    assert_close(ours, true, TOLERANCE[dtype])
    d_kernel_FE = ours[2]
    assert dtype == "float32" or (d_kernel_FE.astype(dtype) != d_kernel_FE).any()  # not rounded


def test_the_normal_distribution_is_exact_to_3e_7():
    x_T = np.linspace(-12, 12, 4801, dtype=np.float32)
    phi_T, density_T = triton.normal_cdf_and_density(jnp.asarray(x_T))
    true_T = [0.5 * math.erfc(-x / math.sqrt(2)) for x in x_T.tolist()]
    np.testing.assert_allclose(phi_T, true_T, rtol=0, atol=3e-7)
    true_T = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in x_T.tolist()]
    np.testing.assert_allclose(density_T, true_T, rtol=0, atol=1e-7)


@on_gpu
@pytest.mark.parametrize(("rate", "dtype"), [(0.1, "float32"), (0.7, "bfloat16")])
def test_kernels_drop_what_dropout_drops_and_round_as_it_does(rate, dtype):
    rows, length, width = 3, 11, 192
    keys_B = row_keys(KEY, rows)
    drop = functools.partial(dropout, rate=rate, keys_B=keys_B, layer=2, site=Site.FEED_FORWARD)
    rng = np.random.default_rng(0)
    up_BLF, d_out_BLF = (normal(rng, rows, length, width, dtype=dtype) for _ in "12")
    nines_BLF = jnp.full_like(up_BLF, 9)  # GELU(9) is 9, and its derivative 1
    product_BLF, backward = jax.vjp(
        functools.partial(
            geglu_linear,
            kernel_FE=jnp.eye(width),
            dropout_rate=rate,
            dropout_keys_B=site_keys(keys_B, 2, Site.FEED_FORWARD),
            backend=KERNELS,
        ),
        jnp.stack([nines_BLF, up_BLF], axis=2),
    )
    d_gate_BLF, d_up_BLF = jnp.moveaxis(backward(d_out_BLF)[0], 2, 0)
    ours = product_BLF, d_gate_BLF, d_up_BLF
    true = drop(9 * up_BLF), up_BLF * drop(d_out_BLF), 9 * drop(d_out_BLF)
    for our, expected in zip(ours, true, strict=True):
        our, expected = (np.asarray(x, np.float32) for x in (our, expected))
        np.testing.assert_allclose(our, expected, rtol=1e-6, atol=0)


def test_neither_product_nor_mask_is_kept():
    (gate_up_BL2F, kernel_FE), _ = inputs(2, 5, 64)
    options = {"dropout_rate": 0.1, "dropout_keys_B": row_keys(KEY, 2), "backend": "interpret"}
    function = functools.partial(geglu_linear, **options)
    _, backward = jax.eval_shape(lambda *x: jax.vjp(function, *x), gate_up_BL2F, kernel_FE)
    kept = sorted(array.shape for array in jax.tree.leaves(backward))
    assert kept == [(2,), (2,), gate_up_BL2F.shape, kernel_FE.shape]


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 1, 2)])
def test_any_mesh_gives_the_same(shape):
    operands, d_out_BLE = inputs(4, 5, 128)

    def function(keys_B, *operands):
        return geglu_linear(
            *operands,
            dropout_rate=0.1,
            dropout_keys_B=keys_B,
            divide=on_own_columns,
            backend="interpret",
        )

    keys_B = row_keys(KEY, 4)
    alone = values_and_gradients(functools.partial(function, keys_B), operands, d_out_BLE)
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    specs = PartitionSpec("data", None, None, "tensor"), PartitionSpec("tensor")
    *shardings, by_rows = (NamedSharding(mesh, spec) for spec in (*specs, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        placed = jax.device_put(operands, tuple(shardings))
        divided = values_and_gradients(
            functools.partial(function, keys_B), placed, jax.device_put(d_out_BLE, by_rows)
        )
    assert_close(divided, alone, 1e-6)


def test_what_does_not_fit_is_said():
    (gate_up_BL2F, kernel_FE), _ = inputs(2, 3, 32)
    with pytest.raises(ValueError, match="'triton' can't serve: the device is a cpu"):
        geglu_linear(gate_up_BL2F, kernel_FE, backend="triton")
    with pytest.raises(ValueError, match=r"'interpret' can't serve: .*not 32"):
        geglu_linear(gate_up_BL2F, kernel_FE, backend="interpret")
    with pytest.raises(ValueError, match="'cuda' is not one of auto, triton, xla"):
        geglu_linear(gate_up_BL2F, kernel_FE, backend="cuda")
    for gate_up, kernel in ((gate_up_BL2F[0], kernel_FE), (gate_up_BL2F[..., :16], kernel_FE)):
        with pytest.raises(ValueError, match=r"must be \(B, L, 2, F\) and \(F, E\), not "):
            geglu_linear(gate_up, kernel)
    with pytest.raises(ValueError, match="needs dropout_keys_B"):
        geglu_linear(gate_up_BL2F, kernel_FE, dropout_rate=0.1)
