"""The chunked loss against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mosaicbert_jax.modeling import loss as losses


def plain(hidden_BPE, embedding_VE, bias_V, labels_BP, weights_BP):
    log_BPV = jax.nn.log_softmax(hidden_BPE @ embedding_VE.T + bias_V)
    picked_BP = jnp.take_along_axis(log_BPV, labels_BP[..., None], axis=-1)[..., 0]
    return -(picked_BP * weights_BP).sum()


def inputs(rows=4, predictions=12, width=16, vocabulary=50):
    rng = np.random.default_rng(0)
    hidden_BPE, embedding_VE = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in [(rows, predictions, width), (vocabulary, width)]
    )
    bias_V = jnp.asarray(rng.normal(size=vocabulary), jnp.float32)
    labels_BP = jnp.asarray(rng.integers(0, vocabulary, (rows, predictions)), jnp.int32)
    weights_BP = jnp.asarray(rng.random((rows, predictions)) < 0.7, jnp.float32)
    return hidden_BPE, embedding_VE, bias_V, labels_BP, weights_BP


@pytest.mark.parametrize("bound", [2048, 16, 4, 1])
def test_loss_and_gradients_at_any_chunk_size(bound, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_PREDICTIONS", bound)
    arguments = inputs()
    expected = jax.value_and_grad(plain, argnums=(0, 1, 2))(*arguments)
    chunked = jax.value_and_grad(lambda *a: losses.masked_lm_loss(*a)[0], argnums=(0, 1, 2))
    for ours, true in zip(
        jax.tree.leaves(chunked(*arguments)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, true, rtol=1e-4, atol=1e-5)


def mixed(hidden_BPE, embedding_VE, bias_V, labels_BP, weights_BP, teacher):
    temperature = teacher.temperature
    theirs_BPV = teacher.hidden_BPE @ teacher.table_VE.T + teacher.bias_V
    p_BPV = jax.nn.softmax(theirs_BPV / temperature)
    log_q_BPV = jax.nn.log_softmax((hidden_BPE @ embedding_VE.T + bias_V) / temperature)
    divergence_BP = jnp.sum(p_BPV * (jnp.log(p_BPV) - log_q_BPV), axis=-1)
    hard = plain(hidden_BPE, embedding_VE, bias_V, labels_BP, weights_BP)
    soft = temperature**2 * jnp.sum(divergence_BP * weights_BP)
    return (1 - teacher.weight) * hard + teacher.weight * soft


@pytest.mark.parametrize(("bound", "weight"), [(2048, 0.3), (4, 0.3), (16, 1.0)])
def test_distillation_and_its_gradients(bound, weight, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_PREDICTIONS", bound)
    arguments = inputs()
    theirs = inputs(width=24)
    teacher = losses.SoftTargets(theirs[0], theirs[1] / 3, theirs[2], weight, temperature=2.0)
    expected = jax.value_and_grad(mixed, argnums=(0, 1, 2))(*arguments, teacher)
    ours = jax.value_and_grad(lambda *a: losses.masked_lm_loss(*a)[0], argnums=(0, 1, 2))
    for found, true in zip(
        jax.tree.leaves(ours(*arguments, teacher)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(found, true, rtol=1e-4, atol=2e-5)
    without, _ = losses.masked_lm_loss(*arguments)
    assert abs(float(ours(*arguments, teacher)[0] - without)) > 1


def test_no_array_is_as_large_as_all_logits():
    """The point of chunks: 4 x 4,096 predictions over 64 words, never at one time."""
    arguments = inputs(rows=4, predictions=4096, vocabulary=64)
    gradient = jax.grad(lambda *a: losses.masked_lm_loss(*a)[0], argnums=(0, 1, 2))
    jaxpr = jax.make_jaxpr(gradient)(*arguments)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars if v.aval.shape[-1:] == (64,))
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
            ):
                if hasattr(inner, "jaxpr"):
                    yield from sizes(inner.jaxpr)

    largest = max(sizes(jaxpr.jaxpr))
    assert 64 < largest <= losses.CHUNK_PREDICTIONS * 64


def test_unused_slots_do_not_count_even_if_not_finite():
    hidden_BPE, *rest = inputs()
    unused_BP = rest[-1] == 0
    assert unused_BP.any()
    broken_BPE = jnp.where(unused_BP[..., None], 1e30, hidden_BPE)
    expected, correct = losses.masked_lm_loss(hidden_BPE, *rest)
    actual, still_correct = losses.masked_lm_loss(broken_BPE, *rest)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert correct == still_correct


def test_counts_right_guesses():
    table_VE = jnp.eye(8)
    labels_BP = jnp.asarray([[1, 2, 3, 4]])
    hidden_BPE = 9.0 * table_VE[jnp.asarray([[1, 2, 5, 4]])]
    weights_BP = jnp.asarray([[1.0, 1.0, 1.0, 0.0]])
    _, correct = losses.masked_lm_loss(hidden_BPE, table_VE, jnp.zeros(8), labels_BP, weights_BP)
    assert correct == 2
