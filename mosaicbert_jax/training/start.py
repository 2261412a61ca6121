"""The state that a run starts from or goes on from."""

import jax
import jax.numpy as jnp

from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.training import checkpoints
from mosaicbert_jax.training.durations import Progress
from mosaicbert_jax.training.recovery import Health
from mosaicbert_jax.training.run import Run
from mosaicbert_jax.training.step import TrainState


def starting_point(run: Run, store: checkpoints.Checkpoints) -> checkpoints.Restored:
    """The state to train from.

    1. The run's own last checkpoint, if there is one.
    2. Else its initial parameters (of init_from, or random) and a new optimizer.
    """
    return store.restore(run.abstract_state()) or fresh_start(run)


def fresh_start(run: Run) -> checkpoints.Restored:
    """The state of a run that has no checkpoint."""
    abstract = run.abstract_state()
    everywhere = jax.tree.map(lambda x: x.sharding, abstract)
    params = run.initial_params(abstract.params)
    optimizer_state = jax.jit(run.optimizer.init, out_shardings=everywhere.optimizer_state)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), everywhere.step)
    state = TrainState(params, optimizer_state, step)
    return checkpoints.Restored(state, Progress(), Position(), Health())
