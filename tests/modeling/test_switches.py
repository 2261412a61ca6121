"""Each switch of the architecture alone and together, against an encoder written out in numpy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mosaicbert_jax import BertConfig, BertForMaskedLM, BertModel
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.training import sharding
from mosaicbert_jax.training.flops import model_flops_per_token
from pallas_kernels import alibi_slopes
from tests.interop.model_cases import random_model

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0}
MOSAICBERT = BertConfig(**SIZES, **NO_DROPOUT)
WINDOW = {"sliding_window": 3, "global_attention_every": 2}
SWITCHES = {
    "none": {},
    "pre-norm": {"norm_position": "pre"},
    "RMSNorm": {"normalization": "rmsnorm", "norm_bias": False},
    "no bias": {"use_bias": False, "norm_bias": False, "head_bias": False},
    "rope": {"position_embedding": "rope"},
    "window": WINDOW,
    "swiglu": {"feed_forward": "swiglu"},
    "no token types": {"type_vocab_size": 0},
    "pre-norm, gelu, learned": {
        "norm_position": "pre",
        "feed_forward": "gelu",
        "position_embedding": "learned",
        "max_position_embeddings": 24,
    },
    "all": {
        "norm_position": "pre",
        "normalization": "rmsnorm",
        "use_bias": False,
        "norm_bias": False,
        "position_embedding": "rope",
        "feed_forward": "swiglu",
        "type_vocab_size": 0,
        **WINDOW,
    },
}
SWITCHES["narrow"] = {"narrow_from_layer": 0}
SWITCHES["all, narrow"] = SWITCHES["all"] | {"narrow_from_layer": 1}


def array(param):
    return np.asarray(param[...], np.float64)


def norm(x_LE, module):
    if module.center:
        x_LE = x_LE - x_LE.mean(-1, keepdims=True)
    y_LE = x_LE / np.sqrt((x_LE**2).mean(-1, keepdims=True) + module.epsilon) * array(module.scale)
    return y_LE if module.bias is None else y_LE + array(module.bias)


def dense(x_LE, module):
    y_LE = x_LE @ array(module.kernel)
    return y_LE if module.bias is None else y_LE + array(module.bias)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def rotate(x_LD, theta):
    """As complex numbers: the first half of the columns is their real part."""
    half = x_LD.shape[1] // 2
    turns_LK = np.arange(len(x_LD))[:, None] * theta ** (-np.arange(half) / half)
    turned_LK = (x_LD[:, :half] + 1j * x_LD[:, half:]) * np.exp(1j * turns_LK)
    return np.concatenate([turned_LK.real, turned_LK.imag], axis=1)


def attend(x_LE, source_LE, layer, index, config):
    heads, window = config.num_attention_heads, config.window_of(index)
    column_L = np.arange(len(x_LE))
    distance_LL = np.abs(column_L[:, None] - column_L)
    qkv = layer.attention.qkv
    queries_LE = np.split(dense(x_LE, qkv), 3, axis=-1)[0]
    parts = queries_LE, *np.split(dense(source_LE, qkv), 3, axis=-1)[1:]
    out = []
    for head, (q_LD, k_LD, v_LD) in enumerate(
        zip(*(np.split(x, heads, axis=-1) for x in parts), strict=True)
    ):
        if config.position_embedding == "rope":
            theta = config.global_rope_theta if window is None else config.local_rope_theta
            q_LD, k_LD = rotate(q_LD, theta), rotate(k_LD, theta)
        scores_LL = q_LD @ k_LD.T / math.sqrt(q_LD.shape[-1])
        if config.position_embedding == "alibi":
            scores_LL -= alibi_slopes(heads)[head] * distance_LL
        if window is not None:
            scores_LL[distance_LL > window] = -np.inf
        weights_LL = np.exp(scores_LL)
        out.append(weights_LL / weights_LL.sum(-1, keepdims=True) @ v_LD)
    return dense(np.concatenate(out, axis=-1), layer.attention.output)


def feed_forward(x_LE, layer, config):
    hidden_LF = dense(x_LE, layer.feed_forward.input)
    if config.feed_forward == "gelu":
        return dense(gelu(hidden_LF), layer.feed_forward.output)
    gate_LF, up_LF = np.split(hidden_LF, 2, axis=-1)
    silu_LF = gate_LF / (1 + np.exp(-gate_LF))
    active_LF = silu_LF if config.feed_forward == "swiglu" else gelu(gate_LF)
    return dense(active_LF * up_LF, layer.feed_forward.output)


def plain_encoder(model, tokens_L):
    """One sequence, layer by layer."""
    config, embeddings = model.config, model.embeddings
    x_LE = array(embeddings.word.embedding)[tokens_L]
    if config.type_vocab_size:
        x_LE = x_LE + array(embeddings.token_type.embedding)[0]
    if config.position_embedding == "learned":
        x_LE = x_LE + array(embeddings.position.embedding)[: len(tokens_L)]
    x_LE, narrow_from = norm(x_LE, embeddings.norm), config.narrow_from_layer
    for index, layer in enumerate(model.layers):
        if narrow_from is None or index <= narrow_from:
            source_LE = x_LE
        if config.norm_position == "post":
            attended_LE = attend(x_LE, source_LE, layer, index, config)
            x_LE = norm(x_LE + attended_LE, layer.attention_norm)
            x_LE = norm(x_LE + feed_forward(x_LE, layer, config), layer.feed_forward_norm)
        else:
            read_LE = norm(x_LE, layer.attention_norm) if index else x_LE
            read_source_LE = norm(source_LE, layer.attention_norm) if index else source_LE
            x_LE = x_LE + attend(read_LE, read_source_LE, layer, index, config)
            read_LE = norm(x_LE, layer.feed_forward_norm)
            x_LE = x_LE + feed_forward(read_LE, layer, config)
    return norm(x_LE, model.final_norm) if config.norm_position == "pre" else x_LE


@pytest.mark.parametrize("name", SWITCHES)
def test_packed_rows_are_the_plain_encoder_of_each_segment(name):
    model = random_model(BertModel, dataclasses.replace(MOSAICBERT, **SWITCHES[name]))
    rng = np.random.default_rng(0)
    first_L, second_L = rng.integers(0, 64, 9), rng.integers(0, 64, 14)
    tokens_1L = np.concatenate([[0], first_L, second_L, [0, 0]])[None]
    ids_1L = np.array([[0] + [1] * 9 + [2] * 14 + [0, 0]])
    packed_LE = nnx.jit(model)(jnp.asarray(tokens_1L), jnp.asarray(ids_1L))[0]
    for tokens_L, begin in (first_L, 1), (second_L, 10):
        expected_LE = plain_encoder(model, tokens_L)
        found_LE = packed_LE[begin : begin + len(tokens_L)]
        np.testing.assert_allclose(found_LE, expected_LE, atol=1e-5 * np.abs(expected_LE).max())


@pytest.mark.parametrize("name", ["pre-norm", "all", "narrow", "all, narrow"])
def test_layers_on_positions_alone_are_those_of_the_row(name):
    """Values and gradients; one position has two slots, as unused ones have."""
    model = random_model(BertModel, dataclasses.replace(MOSAICBERT, **SWITCHES[name]))
    tokens_BL = jnp.arange(48).reshape(2, 24)
    positions_BP = jnp.array([[3, 20, 5], [0, 23, 0]])
    weights_BP1 = jnp.array([[1.0, 2.0, 0.5], [3.0, 1.0, 0.0]])[:, :, None]

    def of_the_row(model):
        whole_BLE = model(tokens_BL)
        return jnp.take_along_axis(whole_BLE, positions_BP[:, :, None], axis=1)

    def alone(model):
        return model(tokens_BL, positions_BP=positions_BP)

    def gradients(read):
        return nnx.jit(nnx.grad(lambda model: jnp.sum(jnp.sin(read(model)) * weights_BP1)))(model)

    np.testing.assert_allclose(nnx.jit(alone)(model), nnx.jit(of_the_row)(model), atol=2e-5)
    for one, other in zip(
        jax.tree.leaves(gradients(alone)), jax.tree.leaves(gradients(of_the_row)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-5 * max(1.0, float(jnp.abs(other).max())))


def loss_and_gradients(model, **options):
    tokens_BL = jnp.arange(48).reshape(2, 24)
    slots_BP = jnp.tile(jnp.arange(4), (2, 1))

    def loss(model):
        return model.loss(tokens_BL, None, slots_BP, slots_BP, jnp.ones((2, 4)), **options)[0]

    return nnx.jit(nnx.value_and_grad(loss))(model)


@pytest.mark.parametrize("name", ["pre-norm, gelu, learned", "all, narrow"])
def test_activation_checkpointing_changes_nothing(name):
    config = dataclasses.replace(MOSAICBERT, **SWITCHES[name] | {"hidden_dropout_prob": 0.1})
    model, key = random_model(BertForMaskedLM, config), jax.random.key(1)
    plain = loss_and_gradients(model, dropout_key=key)
    again = loss_and_gradients(model, dropout_key=key, activation_checkpointing=True)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [("all", {"tensor": 2}), ("pre-norm", {"fsdp": 2}), ("narrow", {"tensor": 2})],
)
def test_a_mesh_gives_the_same(name, mesh):
    config = dataclasses.replace(MOSAICBERT, **SWITCHES[name])
    model = random_model(BertForMaskedLM, config)
    alone = loss_and_gradients(model)
    with jax.set_mesh(sharding.make_mesh(-1, **{"fsdp": 1, "tensor": 1} | mesh)):
        divided = loss_and_gradients(model)
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(divided), strict=True):
        scale = max(1.0, float(jnp.abs(one).max()))
        np.testing.assert_allclose(one, other, atol=1e-5 * scale)


@pytest.mark.parametrize("feed_forward", ["geglu", "gelu"])
def test_each_dropout_of_pre_norm_counts(feed_forward):
    fields = {**SWITCHES["pre-norm"], "feed_forward": feed_forward}
    key, found = jax.random.key(1), set()
    rates = ("hidden_dropout_prob", "embedding_dropout_prob", "feed_forward_dropout_prob")
    for dropped in (None, *rates):
        given = dict.fromkeys(rates, 0.0) | ({dropped: 0.3} if dropped else {})
        model = random_model(BertModel, dataclasses.replace(MOSAICBERT, **fields | given))
        hidden_BLE = nnx.jit(model)(jnp.arange(48).reshape(2, 24), dropout_key=key)
        found.add(float(jnp.abs(hidden_BLE[:, :, 0]).sum()))
    assert len(found) == 4


def test_bfloat16_of_modernbert():
    fields = {**SIZES, "sliding_window": 3}
    exact = BertForMaskedLM(BertConfig.modernbert_base(**fields), rngs=nnx.Rngs(0))
    low = BertForMaskedLM(BertConfig.modernbert_base(**fields, dtype="bfloat16"), rngs=nnx.Rngs(0))
    tokens_BL = jnp.arange(48).reshape(2, 24)
    hidden_BLE = jax.jit(lambda t: low.bert(t))(tokens_BL)
    assert hidden_BLE.dtype == jnp.bfloat16
    expected_BLE = np.asarray(jax.jit(lambda t: exact.bert(t))(tokens_BL))
    error_BLE = np.abs(np.asarray(hidden_BLE, np.float32) - expected_BLE)
    assert 0 < error_BLE.mean() < 0.02
    _, gradients = loss_and_gradients(low)
    assert {x.dtype for x in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_output_projections_of_pre_norm_start_smaller():
    config = BertConfig.modernbert_base(vocab_size=64, num_hidden_layers=8, hidden_size=384)
    layer = nnx.jit(lambda: BertModel(config, rngs=nnx.Rngs(0)))().layers[0]
    inner, outer = array(layer.attention.qkv.kernel), array(layer.attention.output.kernel)
    assert np.abs(inner).max() <= 0.04
    np.testing.assert_allclose(inner.std() / outer.std(), 4.0, rtol=0.02)  # the root of 2 · 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sliding_window": 64}, "set both, or None and 1"),
        ({"global_attention_every": 3}, "set both, or None and 1"),
        ({"sliding_window": -1, "global_attention_every": 3}, "an integer of 0 or more"),
        ({"normalization": "rmsnorm"}, r"set model\.norm_bias=False"),
        ({"position_embedding": "rope", "hidden_size": 36}, "heads of an even size"),
        ({"local_rope_theta": 0.0}, r"model\.local_rope_theta must be a positive number"),
        ({"use_bias": 1}, r"model\.use_bias must be True or False, not 1"),
        ({"norm_position": "mid"}, r"one of \('post', 'pre'\)"),
        ({"narrow_from_layer": 3}, r"the layers are numbered 0 to 2"),
        ({"classifier_dropout": 1.0}, r"model\.classifier_dropout must be in \[0, 1\)"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        BertConfig(**SIZES | fields)


def test_flops_count_a_layers_window():
    sizes = {"sequence_length": 1024, "masking_rate": 0.3}
    local, whole = (
        model_flops_per_token(BertConfig.modernbert_base(**fields), **sizes)
        for fields in ({}, {"sliding_window": None, "global_attention_every": 1})
    )
    # Of 22 layers 14 are local, where a token has 129 keys.
    assert whole - local == 12 * 768 * 14 * (1024 - 129)


def test_flops_count_what_narrow_layers_compute():
    """Of two of three layers, keys and values of all tokens and the rest of 30%."""
    sizes = {"sequence_length": 64, "masking_rate": 0.3}
    narrow = dataclasses.replace(MOSAICBERT, narrow_from_layer=1)
    one_layer = 6 * (4 * 32**2 + 3 * 32 * 48) + 12 * 32 * 64
    spared = 2 * 0.7 * (one_layer - 6 * 2 * 32**2)
    whole = model_flops_per_token(MOSAICBERT, **sizes)
    assert whole - model_flops_per_token(narrow, **sizes) == pytest.approx(spared)
