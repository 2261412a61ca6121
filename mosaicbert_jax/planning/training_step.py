"""Compiles the whole training step for GPUs that are not there."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mosaicbert_jax import BertConfig, BertForMaskedLM
from mosaicbert_jax.planning.compile_only import Program, compile_for, make_mesh
from mosaicbert_jax.planning.gpus import Gpu
from mosaicbert_jax.pretraining.microbatch import abstract_batch
from mosaicbert_jax.storage.opening import abstract_params, build_model
from mosaicbert_jax.training import optimizer, sharding
from mosaicbert_jax.training.step import TrainState, compiler_options, masked_lm, train_step

_ADAM = optimizer.make_optimizer(
    peak_learning_rate=5e-4, b1=0.9, b2=0.98, eps=1e-6, weight_decay=1e-5
)


def abstract_state(config: BertConfig, mesh: Mesh) -> TrainState:
    """The shapes of parameters and optimizer state, as they are stored."""
    model = nnx.eval_shape(lambda: build_model(config, None, 0))
    params = abstract_params(model, sharding.replicated(mesh))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return sharding.stored(mesh, TrainState(params, jax.eval_shape(_ADAM.init, params), step))


def compile_training_step(
    gpu: Gpu,
    config: BertConfig,
    *,
    rows: int,
    length: int,
    masking_rate: float = 0.3,
    microbatches: int = 1,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    activation_checkpointing: bool = False,
    kernels: str = "",
) -> Program:
    """Forward, backward and update of one batch.

    Args:
      rows: of the batch, on all devices together.
      length: tokens of a row.
      masking_rate: share of them that is predicted.
      microbatches: parts of it that a device takes one after another.
      data, fsdp, tensor: devices along the axes of the mesh.
      activation_checkpointing: see `BertModel`.
      kernels: see `compile_for`.

    Raises:
      NotImplementedError: JAX's CUDA plugin is not there; see `compile_only`.
    """
    mesh = make_mesh(gpu, data, fsdp, tensor)
    everywhere = sharding.replicated(mesh)
    learning_rate = jax.ShapeDtypeStruct((), jnp.float32)
    dropout_key = jax.eval_shape(lambda: jax.random.key(0))
    graph, _ = nnx.split(nnx.eval_shape(lambda: BertForMaskedLM(config, rngs=nnx.Rngs(0))))

    def on_all(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)

    step = functools.partial(
        train_step,
        graph=graph,
        optimizer=_ADAM,
        objective=masked_lm(activation_checkpointing=activation_checkpointing),
        microbatches=microbatches,
    )
    with jax.set_mesh(mesh):
        return compile_for(
            gpu,
            step,
            abstract_state(config, mesh),
            abstract_batch(mesh, rows, length, masking_rate),
            on_all(learning_rate),
            on_all(dropout_key),
            kernels=kernels,
            options=compiler_options(deterministic=True, platform="gpu"),
            donate=(0,),
        )
