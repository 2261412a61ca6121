"""The BERT baseline against BERT written out in numpy, and the switches between the two models."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mosaicbert_jax import BertConfig, BertForMaskedLM, BertModel
from mosaicbert_jax.modeling.dropout import NO_DROPOUT, Dropout, Site
from mosaicbert_jax.modeling.layers import embedding

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "initializer_range": 0.3,
}


def norm(x, module):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-12) * np.asarray(module.scale) + np.asarray(module.bias)


def dense(x, module):
    return x @ np.asarray(module.kernel, np.float64) + np.asarray(module.bias, np.float64)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def plain_bert(model, tokens_L):
    """One sequence through BERT: Devlin et al., 2019, layer by layer."""
    embeddings = model.embeddings
    x_LE = (
        np.asarray(embeddings.word.embedding, np.float64)[tokens_L]
        + np.asarray(embeddings.token_type.embedding)[0]
        + np.asarray(embeddings.position.embedding)[: len(tokens_L)]
    )
    x_LE = norm(x_LE, embeddings.norm)
    for layer in model.layers:
        heads = model.config.num_attention_heads
        q, k, v = np.split(dense(x_LE, layer.attention.qkv), 3, axis=-1)
        out = []
        for q_LD, k_LD, v_LD in zip(*(np.split(x, heads, axis=-1) for x in (q, k, v)), strict=True):
            weights_LL = np.exp(q_LD @ k_LD.T / math.sqrt(q_LD.shape[-1]))
            out.append(weights_LL / weights_LL.sum(-1, keepdims=True) @ v_LD)
        attended_LE = dense(np.concatenate(out, axis=-1), layer.attention.output)
        x_LE = norm(x_LE + attended_LE, layer.attention_norm)
        hidden_LF = gelu(dense(x_LE, layer.feed_forward.input))
        x_LE = norm(x_LE + dense(hidden_LF, layer.feed_forward.output), layer.feed_forward_norm)
    return x_LE


@pytest.fixture(scope="module")
def model():
    config = BertConfig.bert_base(**SMALL)
    return nnx.jit(lambda: BertModel(config, rngs=nnx.Rngs(0)))()


def test_the_baseline_is_bert_packed_and_alone(model):
    """Learned positions restart at each segment; there is no bias in attention."""
    rng = np.random.default_rng(0)
    first_L, second_L = rng.integers(0, 64, 9), rng.integers(0, 64, 14)
    tokens_1L = np.concatenate([[0], first_L, second_L, [0, 0]])[None]
    ids_1L = np.array([[0] + [1] * 9 + [2] * 14 + [0, 0]])
    packed_LE = nnx.jit(model)(jnp.asarray(tokens_1L), jnp.asarray(ids_1L))[0]
    np.testing.assert_allclose(packed_LE[1:10], plain_bert(model, first_L), atol=2e-5)
    np.testing.assert_allclose(packed_LE[10:24], plain_bert(model, second_L), atol=2e-5)


def test_dropout_stands_where_each_model_has_it(model):
    """With everything else off, only dropout's places differ from no dropout."""
    tokens_BL = jnp.arange(48).reshape(2, 24)
    key = jax.random.key(0)

    def outputs(feed_forward, **rates):
        config = BertConfig.bert_base(**SMALL | rates, feed_forward=feed_forward)
        net = BertModel(config, rngs=nnx.Rngs(0))
        return jax.jit(lambda t: net(t)), jax.jit(lambda t: net(t, dropout_key=key))

    quiet, same = outputs("gelu", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    np.testing.assert_array_equal(quiet(tokens_BL), same(tokens_BL))
    for rates in (
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.3},
        {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0},
    ):
        quiet, noisy = outputs("gelu", **rates)
        assert np.abs(quiet(tokens_BL) - noisy(tokens_BL)).max() > 0.1


def test_dropout_within_the_feed_forward_is_of_its_product():
    """What goes into the output projection is dropped, so what comes out of it has no zeros."""
    config = BertConfig(**{**SMALL, "hidden_dropout_prob": 0.5})
    part = BertModel(config, rngs=nnx.Rngs(0)).layers[0].feed_forward
    x_BLE = jax.random.normal(jax.random.key(1), (2, 8, 32))
    keys_B = jax.random.split(jax.random.key(2), 2)
    dropped_BLE = part(x_BLE, Dropout.at(keys_B, 0.5, layer=0, site=Site.FEED_FORWARD))
    assert (dropped_BLE != 0).all()
    assert (dropped_BLE != part(x_BLE, NO_DROPOUT)).all()


@pytest.mark.parametrize("layer_norm_dtype", [None, "float32"])
def test_bfloat16(layer_norm_dtype):
    """Activations in bfloat16, parameters and their gradients in float32, values near float32's."""
    fields = {**SMALL, "initializer_range": 0.1}
    exact = BertForMaskedLM(BertConfig(**fields), rngs=nnx.Rngs(0))
    config = BertConfig(**fields, dtype="bfloat16", layer_norm_dtype=layer_norm_dtype)
    low = BertForMaskedLM(config, rngs=nnx.Rngs(0))
    assert low.head.norm.dtype == (layer_norm_dtype or "bfloat16")
    tokens_BL = jnp.arange(48).reshape(2, 24)
    hidden_BLE = jax.jit(lambda t: low.bert(t))(tokens_BL)
    assert hidden_BLE.dtype == jnp.bfloat16
    expected_BLE = np.asarray(jax.jit(lambda t: exact.bert(t))(tokens_BL))
    error_BLE = np.abs(np.asarray(hidden_BLE, np.float32) - expected_BLE)
    assert 0 < error_BLE.mean() < 0.02

    def loss(model):
        slots = jnp.tile(jnp.arange(4), (2, 1))
        return model.loss(tokens_BL, None, slots, slots, jnp.ones((2, 4)))[0]

    gradients = nnx.jit(nnx.grad(loss))(low)
    assert {x.dtype for x in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_a_frequent_tokens_gradient_is_summed_in_float32():
    """In bfloat16 a sum of ones stops at 256."""
    word = embedding(BertConfig(**SMALL, dtype="bfloat16"), 8, rngs=nnx.Rngs(0))

    def total(word):
        rows = word(jnp.zeros((64, 64), jnp.int32)).astype(jnp.bfloat16)
        return rows.astype(jnp.float32).sum()

    gradient_VE = nnx.grad(total)(word).embedding[...]
    np.testing.assert_array_equal(gradient_VE[0], 4096)
