"""Attention divided over a mesh: rows over data and fsdp, heads and their slopes over tensor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mosaicbert_jax import BertConfig, BertModel
from mosaicbert_jax.training import sharding


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_any_mesh_gives_the_same_hidden_states(shape):
    config = BertConfig(
        vocab_size=64,
        num_hidden_layers=1,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=32,
    )
    model = BertModel(config, rngs=nnx.Rngs(0))
    tokens_BL = jnp.asarray(np.random.default_rng(0).integers(5, 64, (4, 24)), jnp.int32)
    segment_ids_BL = jnp.asarray([[1] * 10 + [2] * 12 + [0] * 2] * 4, jnp.int32)
    graph, state = nnx.split(model)

    def encode(state, tokens_BL, segment_ids_BL):
        return nnx.merge(graph, state)(tokens_BL, segment_ids_BL)

    alone = jax.jit(encode)(state, tokens_BL, segment_ids_BL)
    with jax.set_mesh(sharding.make_mesh(*shape)):
        divided = jax.jit(encode)(state, tokens_BL, segment_ids_BL)
    np.testing.assert_allclose(divided, alone, atol=2e-6)
