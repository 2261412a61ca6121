"""A model that runs by kernels, all of them by JAX's interpreter, and what it asks of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mosaicbert_jax import BertConfig, BertForMaskedLM, BertModel
from mosaicbert_jax.modeling import layers
from mosaicbert_jax.modeling.dropout import Site, row_keys, site_keys
from pallas_kernels.alibi_attention import api as attention
from pallas_kernels.cross_entropy import api as cross_entropy
from pallas_kernels.geglu_linear import api as geglu_linear
from pallas_kernels.residual_norm import api as residual_norm
from pallas_kernels.row_sums import api as row_sums
from tests.kernels.gradient_cases import assert_close

KEY = jax.random.key(7)
HIDDEN, FEED_FORWARD, NOWHERE = Site.HIDDEN, Site.FEED_FORWARD, None


@pytest.mark.parametrize(
    ("preset", "fields", "norms"),
    [
        ("mosaicbert_base", {}, 5),  # the embeddings', and two a layer
        # One less in the first layer, and the final one; the embeddings' is the compiler's.
        ("modernbert_base", {"sliding_window": 4, "global_attention_every": 2}, 4),
        (
            "modernbert_base",
            {"normalization": "rmsnorm", "feed_forward": "swiglu", "use_bias": True},
            4,
        ),
    ],
)
def test_it_is_the_model(monkeypatch, preset, fields, norms):
    config = getattr(BertConfig, preset)(
        vocab_size=64,
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=0.1,
        **fields,
    )
    graph, params = nnx.split(BertForMaskedLM(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    integers = {"tokens_BL": 16, "positions_BP": 3, "labels_BP": 3}
    batch = {name: jnp.asarray(rng.integers(0, 9, (2, n))) for name, n in integers.items()}
    batch |= {"segment_ids_BL": jnp.ones((2, 16), jnp.int32), "weights_BP": jnp.ones((2, 3))}

    def gradients():
        def loss(params):
            return nnx.merge(graph, params).loss(**batch, dropout_key=KEY)[0]

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params))

    plain = gradients()
    taken = []

    def interpret(kernel, backend, *_):
        if backend == "xla":
            return backend
        taken.append(kernel)
        return "interpret"

    for api in (attention, cross_entropy, geglu_linear, residual_norm, row_sums):
        monkeypatch.setattr(api, "choose_backend", interpret)
    assert_close(gradients(), plain, 1e-5)
    assert {kernel: taken.count(kernel) for kernel in taken} == {
        "alibi_attention": 2,
        "cross_entropy_and_gradient": 1,
        "geglu_linear": 2,
        "residual_norm": norms,
        "sum_rows": 1,
    }


@pytest.mark.one_end
@pytest.mark.parametrize(
    ("feed_forward", "name", "sites"),
    [
        ("geglu", "residual_norm", (HIDDEN, NOWHERE)),  # after attention, after the feed-forward
        ("geglu", "geglu_linear", (FEED_FORWARD,)),
        ("gelu", "residual_norm", (HIDDEN, FEED_FORWARD)),
    ],
)
def test_each_layer_drops_at_its_own_place(monkeypatch, feed_forward, name, sites):
    config = BertConfig(
        vocab_size=8,
        num_hidden_layers=2,
        hidden_size=8,
        num_attention_heads=2,
        intermediate_size=8,
        feed_forward=feed_forward,
        hidden_dropout_prob=0.1,
    )
    asked, function = [], getattr(layers, name)

    def record(*operands, **options):
        asked.append((options["dropout_rate"], options["dropout_keys_B"]))
        return function(*operands, **options)

    monkeypatch.setattr(layers, name, record)
    keys_B = row_keys(KEY, 2)
    model = BertModel(config, rngs=nnx.Rngs(0))
    model(jnp.zeros((2, 3), jnp.int32), dropout_key=keys_B)
    if name == "residual_norm":
        # The embeddings', which drop what it gives.
        assert asked.pop(0) == (0.0, None)
    expected = [(layer, site) for layer in range(2) for site in sites]
    for (layer, site), (rate, drawn_B) in zip(expected, asked, strict=True):
        assert rate == (0.0 if site is NOWHERE else 0.1)
        if site is NOWHERE:
            assert drawn_B is None
        else:
            assert (drawn_B == site_keys(keys_B, layer, site)).all()
    asked.clear()
    model(jnp.zeros((2, 3), jnp.int32))
    assert set(asked) == {(0.0, None)}
