"""The kernels of residual_norm, by JAX's interpreter, against plain JAX; and that against flax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mosaicbert_jax.modeling.dropout import Site, dropout, row_keys, site_keys
from mosaicbert_jax.modeling.on_mesh import on_own_rows
from pallas_kernels import residual_norm
from pallas_kernels.residual_norm import api
from tests.kernels.attention_cases import normal
from tests.kernels.device import KERNELS, on_gpu
from tests.kernels.gradient_cases import TOLERANCE, assert_close, values_and_gradients

KEY = jax.random.key(7)


def inputs(rows, length, width, dtype="float32"):
    """x, residual, scale, bias and x's bias, and the gradient of the result."""
    rng = np.random.default_rng(0)
    x_BLE, residual_BLE, d_y_BLE = (normal(rng, rows, length, width, dtype=dtype) for _ in "123")
    scale_E, bias_E = 1 + 0.2 * normal(rng, width), 0.2 * normal(rng, width)
    x_bias_E = normal(rng, width)
    return (x_BLE, residual_BLE, scale_E, bias_E, x_bias_E), d_y_BLE


def norm(x_BLE, residual_BLE, scale_E, bias_E, x_bias_E=None, **options):
    """residual_norm, all arrays by their places."""
    options = {"epsilon": 1e-5, "backend": KERNELS} | options
    return residual_norm(x_BLE, residual_BLE, scale_E, bias_E, x_bias_E=x_bias_E, **options)


@on_gpu
@pytest.mark.parametrize(
    ("rows", "length", "width", "dtype", "norm_dtype", "rate"),
    [
        (3, 5, 192, "float32", "float32", 0.1),  # tokens and columns that are not there
        (2, 50, 768, "float32", "float32", 0.0),  # two programs backward, the last not full
        (1, 130, 64, "float32", "float32", 0.5),
        (2, 1, 4096, "float32", "float32", 0.1),  # a token at once
        (3, 7, 1024, "bfloat16", "float32", 0.1),
        (2, 9, 128, "bfloat16", "bfloat16", 0.0),
        (2, 9, 128, "float16", "float32", 0.1),
    ],
)
def test_kernels_are_the_plain_form(rows, length, width, dtype, norm_dtype, rate):
    operands, d_y_BLE = inputs(rows, length, width, dtype)
    function = functools.partial(
        norm,
        norm_dtype=norm_dtype,
        dropout_rate=rate,
        dropout_keys_B=row_keys(KEY, rows) if rate else None,
    )
    ours, true = (
        values_and_gradients(functools.partial(function, backend=backend), operands, d_y_BLE)
        for backend in (KERNELS, "xla")
    )
    assert_close(ours, true, TOLERANCE[dtype])
    if rate:
        np.testing.assert_array_equal(ours[1] == 0, true[1] == 0)


@on_gpu
@pytest.mark.parametrize("returns_sum", [False, True])
@pytest.mark.parametrize(
    ("center", "bias", "x_bias", "rate", "dtype"),
    [
        (False, False, False, 0.0, "float32"),  # RMSNorm, as a pre-LN layer without biases has it
        (False, False, True, 0.1, "bfloat16"),
        (False, True, False, 0.1, "float32"),
        (True, False, False, 0.0, "bfloat16"),  # ModernBERT's
        (True, True, True, 0.1, "float32"),
    ],
)
def test_each_norm_with_and_without_its_sum(center, bias, x_bias, rate, dtype, returns_sum):
    (x_BLE, residual_BLE, scale_E, bias_E, x_bias_E), d_y_BLE = inputs(3, 5, 192, dtype)
    biases = [bias_E] * bias + [x_bias_E] * x_bias
    if returns_sum:
        d_y_BLE = jnp.concatenate([d_y_BLE, d_y_BLE[::-1]], axis=-1)

    def function(backend, x_BLE, residual_BLE, scale_E, *biases):
        results = residual_norm(
            *(x_BLE, residual_BLE, scale_E, biases[0] if bias else None),
            x_bias_E=biases[-1] if x_bias else None,
            epsilon=1e-5,
            center=center,
            norm_dtype=dtype,
            dropout_rate=rate,
            dropout_keys_B=row_keys(KEY, 3) if rate else None,
            returns_sum=returns_sum,
            backend=backend,
        )
        return jnp.concatenate(results, axis=-1) if returns_sum else results

    operands = x_BLE, residual_BLE, scale_E, *biases
    ours, true = (
        values_and_gradients(functools.partial(function, backend), operands, d_y_BLE)
        for backend in (KERNELS, "xla")
    )
    assert_close(ours, true, TOLERANCE[dtype])


def test_without_center_it_is_rms_norm():
    (x_BLE, residual_BLE, scale_E, *_), _ = inputs(2, 6, 96)
    rms_norm = nnx.RMSNorm(96, epsilon=1e-5, rngs=nnx.Rngs(0))
    rms_norm.scale[...] = scale_E
    ours = norm(x_BLE, residual_BLE, scale_E, None, center=False, backend="xla")
    np.testing.assert_allclose(ours, rms_norm(x_BLE + residual_BLE), rtol=1e-6, atol=1e-6)


@on_gpu
def test_epsilon_counts_and_x_needs_no_bias():
    operands, d_y_BLE = inputs(1, 3, 64)
    operands = (1e-3 * operands[0], 1e-3 * operands[1], *operands[2:4])
    ours, true = (
        values_and_gradients(functools.partial(norm, backend=backend), operands, d_y_BLE)
        for backend in (KERNELS, "xla")
    )
    assert_close(ours, true, TOLERANCE["float32"])


@on_gpu
@pytest.mark.parametrize("small", [1e-4, 1e-6, 0.0])
def test_gradients_are_exact_where_a_scale_is_small(small):
    """Beside a bias, the result holds little of such a column's sum, or nothing."""
    (x_BLE, residual_BLE, scale_E, bias_E, x_bias_E), d_y_BLE = inputs(2, 9, 256, "bfloat16")
    operands = (x_BLE, residual_BLE, scale_E.at[3].set(small), bias_E.at[3].set(0.1), x_bias_E)
    ours, true = (
        values_and_gradients(functools.partial(norm, backend=backend), operands, d_y_BLE)
        for backend in (KERNELS, "xla")
    )
    assert_close(ours, true, TOLERANCE["bfloat16"])
    assert abs(true[3][3]) > 0.1
    np.testing.assert_allclose(ours[3][3], true[3][3], rtol=1e-2)


@on_gpu
def test_nothing_is_kept_without_a_gradient():
    operands, _ = inputs(2, 5, 192)
    alone_BLE = jax.jit(functools.partial(norm, backend=KERNELS))(*operands)
    with_gradient_BLE, _ = jax.vjp(functools.partial(norm, backend=KERNELS), *operands)
    np.testing.assert_array_equal(alone_BLE, with_gradient_BLE)


@pytest.mark.parametrize("norm_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_form_is_flax_to_the_bit(dtype, norm_dtype):
    operands, d_y_BLE = inputs(2, 6, 96, dtype)
    keys_B = row_keys(KEY, 2)
    flax_norm = nnx.LayerNorm(
        96, epsilon=1e-5, dtype=jnp.dtype(norm_dtype), use_fast_variance=False, rngs=nnx.Rngs(0)
    )
    graph, _ = nnx.split(flax_norm)

    def by_flax(x_BLE, residual_BLE, scale_E, bias_E, x_bias_E):
        x_BLE += x_bias_E.astype(dtype)
        dropped_BLE = dropout(x_BLE, 0.1, keys_B, layer=3, site=Site.HIDDEN)
        flax_norm = nnx.merge(graph, {"scale": scale_E, "bias": bias_E})
        return flax_norm(dropped_BLE + residual_BLE).astype(dtype)

    ours = functools.partial(
        norm,
        norm_dtype=norm_dtype,
        dropout_rate=0.1,
        dropout_keys_B=site_keys(keys_B, 3, Site.HIDDEN),
        backend="xla",
    )
    for our, true in zip(
        values_and_gradients(ours, operands, d_y_BLE),
        values_and_gradients(by_flax, operands, d_y_BLE),
        strict=True,
    ):
        np.testing.assert_array_equal(our, true)


@on_gpu
@pytest.mark.parametrize("rate", [0.1, 0.7])
def test_kernels_drop_what_dropout_drops(rate):
    rows, length, width = 3, 11, 192
    keys_B = row_keys(KEY, rows)
    ones_BLE, ones_E = jnp.ones((rows, length, width)), jnp.ones(width)
    kept_BLE = dropout(ones_BLE, rate, keys_B, layer=2, site=Site.HIDDEN) != 0

    def norm_of(x_BLE):
        options = {"dropout_rate": rate, "dropout_keys_B": site_keys(keys_B, 2, Site.HIDDEN)}
        return norm(x_BLE, jnp.zeros_like(x_BLE), ones_E, 0 * ones_E, **options)

    y_BLE, backward = jax.vjp(norm_of, ones_BLE)
    np.testing.assert_array_equal(y_BLE > 0, kept_BLE)
    (d_x_BLE,) = backward(normal(np.random.default_rng(0), rows, length, width))
    np.testing.assert_array_equal(d_x_BLE != 0, kept_BLE)


def test_a_mesh_in_use_needs_no_jit():
    operands, _ = inputs(4, 5, 64)

    def call(x_BLE, residual_BLE, *vectors):
        return norm(x_BLE, residual_BLE, *vectors, backend="xla")

    mesh = jax.make_mesh((2, 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        mapped_BLE = on_own_rows(call, operands[:2], operands[2:])
    np.testing.assert_allclose(mapped_BLE, call(*operands), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 1, 2)])
def test_any_mesh_gives_the_same(shape):
    operands, d_y_BLE = inputs(4, 5, 64)

    def function(x_BLE, residual_BLE, *vectors):
        def call(x_BLE, residual_BLE, keys_B, *vectors):
            return norm(x_BLE, residual_BLE, *vectors, dropout_rate=0.1, dropout_keys_B=keys_B)

        return on_own_rows(call, (x_BLE, residual_BLE, row_keys(KEY, 4)), vectors)

    alone = values_and_gradients(function, operands, d_y_BLE)
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    by_rows, everywhere = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("data", None))
    with jax.set_mesh(mesh):
        placed = jax.device_put(operands, (by_rows,) * 2 + (everywhere,) * 3)
        divided = values_and_gradients(function, placed, jax.device_put(d_y_BLE, by_rows))
    assert_close(divided, alone, 1e-6)
    for ours, whole in zip(divided[:3], alone[:3], strict=True):
        np.testing.assert_array_equal(ours, whole)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ((768, "bfloat16", "float32"), None),
        ((768, "bfloat16", "bfloat16"), None),
        ((96, "bfloat16", "float32"), "triton has multiples of 64 up to 4096, not 96"),
        ((8192, "bfloat16", "float32"), "triton has multiples of 64 up to 4096, not 8192"),
        ((768, "float64", "float32"), "triton has float32, bfloat16, float16, not float64"),
        (
            (768, "float32", "bfloat16"),
            "triton normalizes float32 as float32 or float32, not bfloat16",
        ),
    ],
)
def test_what_triton_serves(case, reason):
    assert api.reason_against_triton(*case) == reason


def test_what_does_not_fit_is_said():
    (x_BLE, residual_BLE, scale_E, bias_E, _), _ = inputs(2, 3, 32)
    norm = functools.partial(residual_norm, epsilon=1e-5)
    with pytest.raises(ValueError, match="'triton' can't serve: the device is a cpu"):
        norm(x_BLE, residual_BLE, scale_E, bias_E, backend="triton")
    with pytest.raises(ValueError, match=r"'interpret' can't serve: .*not 32"):
        norm(x_BLE, residual_BLE, scale_E, bias_E, backend="interpret")
    with pytest.raises(ValueError, match="'cuda' is not one of auto, triton, xla"):
        norm(x_BLE, residual_BLE, scale_E, bias_E, backend="cuda")
    with pytest.raises(ValueError, match=r"one dtype and shape .*\(2, 3, 32\), float32\(2, 2, 32"):
        norm(x_BLE, residual_BLE[:, :2], scale_E, bias_E)
    with pytest.raises(ValueError, match="one dtype and shape"):
        norm(x_BLE.astype(jnp.bfloat16), residual_BLE, scale_E, bias_E)
    with pytest.raises(ValueError, match=r"scale and biases must be \(32,\)"):
        norm(x_BLE, residual_BLE, scale_E[:1], bias_E)
    with pytest.raises(ValueError, match=r"not \(32,\), \(32,\), \(3,\)"):
        norm(x_BLE, residual_BLE, scale_E, bias_E, x_bias_E=bias_E[:3])
    with pytest.raises(ValueError, match="needs dropout_keys_B"):
        norm(x_BLE, residual_BLE, scale_E, bias_E, dropout_rate=0.1)
