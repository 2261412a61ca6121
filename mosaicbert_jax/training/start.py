"""The state that a run starts from or goes on from."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.heads import BertForMaskedLM
from mosaicbert_jax.training import checkpoints, workdir
from mosaicbert_jax.training.durations import Progress
from mosaicbert_jax.training.run import Run
from mosaicbert_jax.training.step import TrainState


def starting_point(run: Run, store: checkpoints.Checkpoints) -> checkpoints.Restored:
    """The state to train from.

    1. The run's own last checkpoint, if there is one.
    2. Else, with init_from, that model's parameters and a new optimizer.
    3. Else random parameters.
    """
    abstract = run.abstract_state()
    if store.latest_step is not None:
        return store.restore(abstract)
    everywhere = jax.tree.map(lambda x: x.sharding, abstract)
    if run.config.init_from:
        params = _initial_params(run, abstract.params)
    else:

        def init(key):
            model = BertForMaskedLM(run.model, rngs=nnx.Rngs(key))
            return nnx.to_pure_dict(nnx.state(model, nnx.Param))

        params = jax.jit(init, out_shardings=everywhere.params)(jax.random.key(run.config.seed))
    optimizer_state = jax.jit(run.optimizer.init, out_shardings=everywhere.optimizer_state)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), everywhere.step)
    return checkpoints.Restored(TrainState(params, optimizer_state, step), Progress(), Position())


def _initial_params(run: Run, abstract: Any) -> Any:
    """The parameters of init_from: a run's folder, or one in Hugging Face's layout."""
    source = pathlib.Path(run.config.init_from)
    if (source / workdir.CHECKPOINTS).is_dir():
        found = BertConfig.from_fields(workdir.read(source)["model"])
        _check_same_model(source, found, run.model)
        return checkpoints.restore_params(source, abstract, run.config.init_from_step)
    model = BertForMaskedLM.from_pretrained(source)
    _check_same_model(source, model.config, run.model)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), params, abstract)


def _check_same_model(source: pathlib.Path, found: BertConfig, wanted: BertConfig) -> None:
    """Raises UserError if parameters of one do not fit the other."""
    shaping = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "type_vocab_size",
        "position_embedding",
        "feed_forward",
    ]
    if wanted.position_embedding == "learned":
        shaping.append("max_position_embeddings")
    changed = [
        f"model.{name} is {getattr(found, name)!r} there and {getattr(wanted, name)!r} here"
        for name in shaping
        if getattr(found, name) != getattr(wanted, name)
    ]
    if changed:
        raise UserError(f"init_from={source} is another model: {'; '.join(changed)}")
