"""A model whose norms and feed-forwards run by kernels, and what it asks of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mosaicbert_jax import BertConfig, BertForMaskedLM, BertModel
from mosaicbert_jax.modeling import layers
from mosaicbert_jax.modeling.dropout import Site, row_keys, site_keys
from pallas_kernels.geglu_linear import api as geglu_api
from pallas_kernels.residual_norm import api as norm_api
from tests.kernels.gradient_cases import assert_close

KEY = jax.random.key(7)


def test_it_is_the_model(monkeypatch):
    config = BertConfig(
        vocab_size=64,
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=0.1,
    )
    graph, params = nnx.split(BertForMaskedLM(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    integers = {"tokens_BL": 9, "positions_BP": 3, "labels_BP": 3}
    batch = {name: jnp.asarray(rng.integers(0, 9, (2, n))) for name, n in integers.items()}
    batch |= {"segment_ids_BL": jnp.ones((2, 9), jnp.int32), "weights_BP": jnp.ones((2, 3))}

    def gradients():
        def loss(params):
            return nnx.merge(graph, params).loss(**batch, dropout_key=KEY)[0]

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params))

    plain = gradients()
    taken = []
    for name, api in (("norm", norm_api), ("geglu", geglu_api)):
        monkeypatch.setattr(api, "_choose", lambda *_, name=name: taken.append(name) or "interpret")
    assert_close(gradients(), plain, 1e-5)
    assert sorted(taken) == ["geglu"] * 2 + ["norm"] * 4


@pytest.mark.parametrize(
    ("name", "calls", "site"),
    [
        ("residual_norm", (True, False), Site.HIDDEN),  # after attention, after the feed-forward
        ("geglu_linear", (True,), Site.FEED_FORWARD),
    ],
)
def test_each_layer_drops_at_its_own_place(monkeypatch, name, calls, site):
    config = BertConfig(
        vocab_size=8,
        num_hidden_layers=2,
        hidden_size=8,
        num_attention_heads=2,
        intermediate_size=8,
        hidden_dropout_prob=0.1,
    )
    asked, function = [], getattr(layers, name)

    def record(*operands, **options):
        rate, keys_B = options.get("dropout_rate", 0.0), options.get("dropout_keys_B")
        asked.append((rate, keys_B, options["row_axes"]))
        return function(*operands, **options)

    monkeypatch.setattr(layers, name, record)
    keys_B = row_keys(KEY, 2)
    model = BertModel(config, rngs=nnx.Rngs(0))
    model(jnp.zeros((2, 3), jnp.int32), dropout_key=keys_B)
    expected = [(layer, drops) for layer in range(2) for drops in calls]
    for (layer, drops), (rate, drawn_B, axes) in zip(expected, asked, strict=True):
        assert (rate, axes) == (0.1 if drops else 0.0, ("data",))
        assert (drawn_B == site_keys(keys_B, layer, site)).all() if drops else drawn_B is None
    asked.clear()
    model(jnp.zeros((2, 3), jnp.int32))
    assert asked == [(0.0, None, ("data",))] * len(expected)
