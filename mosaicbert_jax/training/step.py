"""The training step and the evaluation step: plain functions for `jax.jit`.

A batch is a dict with tokens_BL and segment_ids_BL (int32), and what its `Objective` reads.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key

from mosaicbert_jax.modeling.dropout import row_keys
from mosaicbert_jax.modeling.on_mesh import ROW_AXES
from mosaicbert_jax.training import optimizer as optimizers
from mosaicbert_jax.training import sharding

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is learned from a batch.

    Attributes:
      sums: (model, batch, dropout_key, *frozen) -> float32 sums over the batch: of the losses, and
        of what `score` names. `frozen` is what it reads besides, such as a teacher's parameters.
      weights: the array of the batch whose sum turns both into means.
      score: the name of the second mean in metrics.jsonl.
    """

    sums: Callable[..., tuple[jax.Array, jax.Array]]
    weights: str
    score: str


def masked_lm(*, activation_checkpointing: bool = False) -> Objective:
    """Of batches with positions_BP, labels_BP (int32) and weights_BP (float32).

    Args:
      activation_checkpointing: see `BertModel`.
    """
    sums = functools.partial(_masked_lm_sums, activation_checkpointing)
    return Objective(sums, weights="weights_BP", score="masked_accuracy")


def distilled(
    teacher: nnx.GraphDef,
    *,
    weight: float,
    temperature: float,
    activation_checkpointing: bool = False,
) -> Objective:
    """`masked_lm` with a teacher's predictions, whose parameters are the step's `frozen`.

    Args:
      teacher: of a BertForMaskedLM with the same tokenizer.
      weight, temperature: see `SoftTargets`.
    """

    def sums(model, batch: Batch, dropout_key, teacher_params):
        targets = nnx.merge(teacher, sharding.at_use(teacher_params)).soft_targets(
            batch["tokens_BL"],
            batch["segment_ids_BL"],
            batch["positions_BP"],
            vocab_size=model.config.vocab_size,
            weight=weight,
            temperature=temperature,
        )
        return _masked_lm_sums(activation_checkpointing, model, batch, dropout_key, targets)

    return Objective(sums, weights="weights_BP", score="masked_accuracy")


def _masked_lm_sums(activation_checkpointing, model, batch: Batch, dropout_key, teacher=None):
    return model.loss(
        batch["tokens_BL"],
        batch["segment_ids_BL"],
        batch["positions_BP"],
        batch["labels_BP"],
        batch["weights_BP"],
        dropout_key=dropout_key,
        activation_checkpointing=activation_checkpointing,
        teacher=teacher,
    )


MASKED_LM = masked_lm()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes.

    Attributes:
      params: the model's nnx.State of float32 parameters.
      optimizer_state: optax's.
      step: int32, completed steps.
      average: the parameters' moving average, if the run keeps one.
    """

    params: nnx.State
    optimizer_state: optax.OptState
    step: Int[Array, ""]
    average: nnx.State | None = None

    @property
    def result(self) -> nnx.State:
        """The parameters that are evaluated and exported."""
        return self.params if self.average is None else self.average


def compiler_options(*, deterministic: bool, platform: str) -> dict[str, bool]:
    """XLA's options for a step on a platform.

    Args:
      deterministic: equal programs on equal GPUs, and so equal bits after a restart. Autotuning
        picks matrix products by their measured times, which vary; without it, cuBLAS takes its own
        first choice, and Triton's products, whose tile would be a default, are not used.
    """
    if not deterministic or platform != "gpu":
        return {}
    return {"xla_gpu_deterministic_ops": True, "xla_gpu_enable_triton_gemm": False}


def train_step(
    state: TrainState,
    batch: Batch,
    learning_rate: Float[Array, ""],
    dropout_key: Key[Array, ""],
    *frozen: Any,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    microbatch_rows: int | None = None,
    objective: Objective = MASKED_LM,
    ema_decay: float | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from the mean loss over all labels of the global batch.

    Args:
      learning_rate: of this step.
      dropout_key: the run's; the step and the rows are folded in here.
      frozen: what the objective reads besides; see `Objective`.
      graph: of the model that state.params belong to.
      microbatch_rows: how many rows a device takes at a time, at most; its rows are divided into
        equal parts, and the update is that of the undivided batch, dropout included. None: all.
      ema_decay: of state.average, if there is one.

    Returns:
      The next state, and float32 scalars: loss, the objective's score, grad_norm, predictions.
    """
    rows = batch["tokens_BL"].shape[0]
    keys_B = row_keys(jax.random.fold_in(dropout_key, state.step), rows)
    predictions = jnp.sum(batch[objective.weights])
    scale = 1.0 / jnp.maximum(predictions, 1.0)

    def loss_of(params, batch, keys_B):
        model = nnx.merge(graph, sharding.at_use(params))
        loss_sum, score_sum = objective.sums(model, batch, keys_B, *frozen)
        return loss_sum * scale, score_sum * scale

    gradients_of = jax.value_and_grad(loss_of, has_aux=True)
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else sharding.row_shards(mesh)
    microbatches = equal_parts(rows // shards, microbatch_rows)
    if microbatches == 1:
        (loss, score), gradients = gradients_of(state.params, batch, keys_B)
    else:
        (loss, score), gradients = _accumulate(
            gradients_of, state.params, batch, keys_B, microbatches, shards
        )
    params, optimizer_state = optimizers.apply(
        optimizer, gradients, state.optimizer_state, state.params, learning_rate
    )
    metrics = {
        "loss": loss,
        objective.score: score,
        "grad_norm": optax.tree.norm(gradients),
        "predictions": predictions,
    }
    average = state.average
    if average is not None:
        average = optimizers.averaged(average, params, state.step, ema_decay)
    return TrainState(params, optimizer_state, state.step + 1, average), metrics


def equal_parts(rows: int, most: int | None) -> int:
    """Into how few equal parts rows can be divided so that none has more than `most`."""
    if most is None:
        return 1
    return next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= most)


def evaluation_step(
    params: nnx.State, batch: Batch, *, graph: nnx.GraphDef
) -> dict[str, jax.Array]:
    """Sums over a masked batch, no dropout: loss, correct guesses, predictions; float32 scalars."""
    model = nnx.merge(graph, sharding.at_use(params))
    loss_sum, correct = MASKED_LM.sums(model, batch, None)
    return {"loss": loss_sum, "correct": correct, "predictions": jnp.sum(batch["weights_BP"])}


def _accumulate(
    gradients_of: Callable,
    params: nnx.State,
    batch: Batch,
    keys_B: jax.Array,
    microbatches: int,
    shards: int,
):
    """The sums of loss, score and gradients over microbatches."""

    def split(x_BL: jax.Array) -> jax.Array:
        # Each device keeps its own rows: a microbatch is a slice of every device's share.
        here = x_BL.shape[0] // (shards * microbatches)
        parts = x_BL.reshape(shards, microbatches, here, *x_BL.shape[1:])
        parts = jnp.moveaxis(parts, 1, 0).reshape(microbatches, shards * here, *x_BL.shape[1:])
        if shards > 1:
            parts = jax.lax.with_sharding_constraint(parts, PartitionSpec(None, ROW_AXES))
        return parts

    def add(totals, microbatch):
        return jax.tree.map(jnp.add, totals, gradients_of(params, *microbatch)), None

    zero = jnp.zeros((), jnp.float32)
    start = ((zero, zero), jax.tree.map(jnp.zeros_like, params))
    totals, _ = jax.lax.scan(add, start, jax.tree.map(split, (batch, keys_B)))
    return totals
