"""The kernel of cross-entropy, by JAX's interpreter, against plain JAX; and that against optax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mosaicbert_jax.modeling.loss import masked_lm_loss
from mosaicbert_jax.modeling.on_mesh import on_own_rows
from pallas_kernels import cross_entropy_and_gradient
from pallas_kernels.cross_entropy import api, triton
from tests.kernels.attention_cases import normal
from tests.kernels.device import KERNELS, on_gpu


def predictions(rows, words, dtype="float32"):
    """Logits, of which the label's is highest in every third row, labels and weights."""
    rng = np.random.default_rng(0)
    labels_N = rng.integers(0, words, rows)
    logits_NV = np.array(5 * normal(rng, rows, words), np.float32)
    logits_NV[::3, :][np.arange(len(labels_N[::3])), labels_N[::3]] = 50
    return (
        jnp.asarray(logits_NV, dtype),
        jnp.asarray(labels_N, jnp.int32),
        jnp.asarray(np.arange(rows) % 4, jnp.float32),
    )


def by(backend, **options):
    return jax.jit(functools.partial(cross_entropy_and_gradient, backend=backend, **options))


@on_gpu
@pytest.mark.parametrize("words", [1, 100, 8192, 8193, 20_000])
def test_kernel_is_the_plain_form(words):
    operands = predictions(7, words)
    (loss_N, is_correct_N, d_logits_NV), true = (by(b)(*operands) for b in (KERNELS, "xla"))
    np.testing.assert_allclose(loss_N, true[0], rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(is_correct_N, true[1])
    np.testing.assert_allclose(d_logits_NV, true[2], rtol=2e-6, atol=1e-7)
    assert words == 1 or 0 < is_correct_N.sum() < 7


@on_gpu
@pytest.mark.parametrize("backend", [KERNELS, "xla"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_is_that_of_logits_and_gradient_alone(dtype, backend):
    logits_NV, labels_N, weights_N = predictions(5, 300, dtype)
    loss_N, _, d_logits_NV = by(backend)(logits_NV, labels_N, weights_N)
    exact_N, _, exact_NV = by("xla")(logits_NV.astype(jnp.float32), labels_N, weights_N)
    assert (loss_N.dtype, d_logits_NV.dtype) == ("float32", dtype)
    np.testing.assert_allclose(loss_N, exact_N, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(
        d_logits_NV.astype(jnp.float32), exact_NV.astype(dtype).astype(jnp.float32), rtol=1e-2
    )


def test_plain_form_is_cross_entropy():
    logits_NV, labels_N, weights_N = predictions(6, 50)
    loss_N, is_correct_N, d_logits_NV = by("xla")(logits_NV, labels_N, weights_N)
    losses = optax.softmax_cross_entropy_with_integer_labels
    np.testing.assert_allclose(loss_N, losses(logits_NV, labels_N), rtol=1e-6, atol=1e-6)
    gradient = jax.grad(lambda logits_NV: jnp.sum(losses(logits_NV, labels_N) * weights_N))
    np.testing.assert_allclose(d_logits_NV, gradient(logits_NV), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(is_correct_N, jnp.argmax(logits_NV, axis=1) == labels_N)


@on_gpu
@pytest.mark.parametrize("where", [0, 9000])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_what_is_not_finite_is_not_hidden(value, where):
    logits_NV, labels_N, weights_N = predictions(2, 10_000)
    loss_N, is_correct_N, _ = by(KERNELS)(
        logits_NV.at[1, where].set(value), labels_N.at[1].set(5), weights_N
    )
    assert jnp.isfinite(loss_N).tolist() == [True, False]
    assert not is_correct_N[1]


@on_gpu
@pytest.mark.parametrize("backend", [KERNELS, "xla"])
def test_the_highest_of_the_other_logits_is_not_correct_next_to_nan(backend):
    logits_NV = jnp.zeros((2, 300)).at[:, 7].set(9.0).at[1, 200].set(jnp.nan)
    _, is_correct_N, _ = by(backend)(logits_NV, jnp.full(2, 7), jnp.ones(2))
    assert is_correct_N.tolist() == [True, False]


@pytest.mark.parametrize("label", [1, 5])
def test_nan_is_not_hidden_by_a_maximum_that_ignores_it(monkeypatch, label):
    """As a GPU's does."""
    monkeypatch.setattr(triton.jnp, "max", jnp.nanmax)
    monkeypatch.setattr(triton.jnp, "maximum", jnp.fmax)
    logits_NV = jnp.zeros((2, 10_000)).at[1, 5].set(jnp.nan).at[:, 1].set(3.0)
    labels_N = jnp.full(2, label)
    loss_N, is_correct_N, d_logits_NV = cross_entropy_and_gradient(
        logits_NV, labels_N, jnp.ones(2), backend="interpret"
    )
    assert jnp.isfinite(loss_N).tolist() == [True, False]
    assert is_correct_N.tolist() == [label == 1, False]
    assert jnp.isnan(d_logits_NV[1]).all()
    assert jnp.isfinite(d_logits_NV[0]).all()


@on_gpu
@pytest.mark.parametrize("backend", [KERNELS, "xla"])
@pytest.mark.parametrize("label", [-1, 300, 2**31 - 1, -(2**31)])
def test_a_label_outside_of_the_vocabulary_has_no_loss(backend, label):
    logits_NV, labels_N, weights_N = predictions(3, 300)
    true = by("xla")(logits_NV, labels_N, weights_N)
    labels_N = labels_N.at[1].set(label)
    loss_N, is_correct_N, d_logits_NV = by(backend)(logits_NV, labels_N, weights_N)
    assert jnp.isnan(loss_N).tolist() == [False, True, False]
    assert not is_correct_N[1]
    np.testing.assert_allclose(loss_N[::2], true[0][::2], rtol=2e-6)
    softmax_V = jax.nn.softmax(logits_NV[1]) * weights_N[1]
    np.testing.assert_allclose(d_logits_NV[1], softmax_V, rtol=1e-5, atol=1e-7)


@on_gpu
def test_very_low_logits_are_as_good_as_any():
    operands = predictions(3, 9000)
    shifted = by(KERNELS)(operands[0] - 1024.0, *operands[1:])
    np.testing.assert_allclose(shifted[0], by("xla")(*operands)[0], atol=2e-3)


def test_rows_divided_over_a_mesh_give_the_same():
    operands = predictions(8, 500)
    alone = by("interpret")(*operands)
    mesh = jax.make_mesh((2, 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        placed = jax.device_put(operands, NamedSharding(mesh, PartitionSpec("data")))
        divided = jax.jit(lambda *x: on_own_rows(by("interpret"), x))(*placed)
    for ours, whole in zip(divided, alone, strict=True):
        np.testing.assert_array_equal(ours, whole)


def test_the_loss_by_the_kernel_is_the_loss(monkeypatch):
    rng = np.random.default_rng(0)
    hidden_BPE, table_VE, bias_V = normal(rng, 3, 4, 16), normal(rng, 300, 16), normal(rng, 300)
    labels_BP = jnp.asarray(rng.integers(0, 300, (3, 4)))
    weights_BP = jnp.asarray([[1.0, 1, 0, 0]] * 3)

    def values_and_gradients():
        def loss(*operands):
            return masked_lm_loss(*operands, labels_BP, weights_BP)

        grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        return jax.tree.leaves(grad(hidden_BPE, table_VE, bias_V))

    plain = values_and_gradients()
    monkeypatch.setattr(api, "choose_backend", lambda *_: "interpret")
    for ours, true in zip(values_and_gradients(), plain, strict=True):
        np.testing.assert_allclose(ours, true, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_said():
    logits_NV, labels_N, weights_N = predictions(3, 20)
    with pytest.raises(ValueError, match=r"\(N, V\), \(N,\) and \(N,\), not \(3, 20\), \(2,\)"):
        by("xla")(logits_NV, labels_N[:2], weights_N)
    with pytest.raises(ValueError, match="'triton' can't serve: the device is a cpu"):
        by("triton")(logits_NV, labels_N, weights_N)
    with pytest.raises(ValueError, match=r"'interpret' can't serve: triton has float32, .* int32"):
        by("interpret")(logits_NV.astype(jnp.int32), labels_N, weights_N)
