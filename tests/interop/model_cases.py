"""Models with random numbers in every parameter, with nothing to compile."""

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 32,
}  # fmt: skip
call = nnx.jit(lambda model, *inputs: model(*inputs))


def random_model(cls, config, *, scale=0.2, **options):
    """Of class `cls`; biases are not 0 and LayerNorms not 1, so that a missing one would show."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), **options)))
    rng = np.random.default_rng(0)
    params = {
        path: jnp.asarray(rng.normal(path[-1] == "scale", scale, shape.shape), jnp.float32)
        for path, shape in nnx.to_flat_state(shapes)
    }
    return nnx.merge(graph, traverse_util.unflatten_dict(params))


def assert_same_parameters(one, other):
    """Bit for bit."""
    ours = dict(nnx.to_flat_state(nnx.state(one, nnx.Param)))
    theirs = dict(nnx.to_flat_state(nnx.state(other, nnx.Param)))
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value[...], theirs[path][...], err_msg=str(path))
