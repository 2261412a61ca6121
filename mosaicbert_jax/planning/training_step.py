"""Compiles the whole training step for GPUs that are not there."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mosaicbert_jax import BertConfig
from mosaicbert_jax.planning.compile_only import Program, compile_for, make_mesh
from mosaicbert_jax.planning.gpus import Gpu
from mosaicbert_jax.pretraining.microbatch import abstract_batch
from mosaicbert_jax.storage.opening import abstract_params, build_model
from mosaicbert_jax.training import optimizer, sharding
from mosaicbert_jax.training.step import (
    Objective,
    TrainState,
    compiler_options,
    distilled,
    masked_lm,
    train_step,
)

_ADAMW = {"peak_learning_rate": 5e-4, "b1": 0.9, "b2": 0.98, "eps": 1e-6, "weight_decay": 1e-5}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What of a run's settings changes its compiled step.

    Attributes:
      optimizer: arguments of `make_optimizer`.
      ema_decay: of the parameters' moving average; None: the run keeps none.
      activation_checkpointing: see `BertModel`.
      masking_rate: share of the tokens that is predicted.
      masking_unit: what is chosen together; see `TokenMasking`.
      teacher: the fields of a teacher's BertConfig; None: no distillation.
    """

    optimizer: dict[str, Any] = dataclasses.field(default_factory=lambda: _ADAMW)
    ema_decay: float | None = None
    activation_checkpointing: bool = False
    masking_rate: float = 0.3
    masking_unit: str = "token"
    teacher: dict[str, Any] | None = None

    def objective(self) -> Objective:
        """With any weight and temperature, as both compile to the same."""
        options = {"activation_checkpointing": self.activation_checkpointing}
        if self.teacher is None:
            return masked_lm(**options)
        graph, _ = nnx.split(_abstract_model(BertConfig.from_fields(self.teacher)))
        return distilled(graph, weight=0.5, temperature=2.0, **options)

    def frozen(self, mesh: Mesh) -> tuple[Any, ...]:
        """The step's last arguments, abstract."""
        if self.teacher is None:
            return ()
        model = _abstract_model(BertConfig.from_fields(self.teacher))
        return (sharding.stored(mesh, abstract_params(model, sharding.replicated(mesh))),)


def _abstract_model(config: BertConfig) -> nnx.Module:
    return nnx.eval_shape(lambda: build_model(config, None, 0))


def abstract_state(config: BertConfig, mesh: Mesh, recipe: Recipe = Recipe()) -> TrainState:
    """The shapes of parameters and optimizer state, as they are stored."""
    params = abstract_params(_abstract_model(config), sharding.replicated(mesh))
    state = jax.eval_shape(optimizer.make_optimizer(**recipe.optimizer).init, params)
    average = None if recipe.ema_decay is None else params
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return sharding.stored(mesh, TrainState(params, state, step, average))


def compile_training_step(
    gpu: Gpu,
    config: BertConfig,
    *,
    rows: int,
    length: int,
    recipe: Recipe = Recipe(),
    microbatches: int = 1,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    kernels: str = "",
) -> Program:
    """Forward, backward and update of one batch.

    Args:
      rows: of the batch, on all devices together.
      length: tokens of a row.
      recipe: the run's.
      microbatches: parts of it that a device takes one after another.
      data, fsdp, tensor: devices along the axes of the mesh.
      kernels: see `compile_for`.

    Raises:
      NotImplementedError: JAX's CUDA plugin is not there; see `compile_only`.
    """
    mesh = make_mesh(gpu, data, fsdp, tensor)
    everywhere = sharding.replicated(mesh)
    learning_rate = jax.ShapeDtypeStruct((), jnp.float32)
    dropout_key = jax.eval_shape(lambda: jax.random.key(0))
    graph, _ = nnx.split(_abstract_model(config))

    def on_all(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)

    step = functools.partial(
        train_step,
        graph=graph,
        optimizer=optimizer.make_optimizer(**recipe.optimizer),
        objective=recipe.objective(),
        microbatch_rows=rows // (data * fsdp) // microbatches,
        ema_decay=recipe.ema_decay,
    )
    with jax.set_mesh(mesh):
        return compile_for(
            gpu,
            step,
            abstract_state(config, mesh, recipe),
            abstract_batch(mesh, rows, length, recipe.masking_rate, recipe.masking_unit),
            on_all(learning_rate),
            on_all(dropout_key),
            *recipe.frozen(mesh),
            kernels=kernels,
            options=compiler_options(deterministic=True, platform="gpu"),
            donate=(0,),
        )
