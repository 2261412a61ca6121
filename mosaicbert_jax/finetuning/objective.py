"""Finetuning objectives, and a model's logits for a batch; functions for `jax.jit`.

Batches are those of `packed_batch`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float

from mosaicbert_jax.finetuning.batching import evaluation_batches
from mosaicbert_jax.finetuning.encoded import EncodedExamples
from mosaicbert_jax.training import sharding
from mosaicbert_jax.training.step import Objective


def _logits(model: nnx.Module, batch: Mapping[str, jax.Array], dropout_key) -> jax.Array:
    """float32[S, C], or float32[B, L, C] of a model that labels words."""
    of_sequences = {k: v for k, v in batch.items() if k == "first_positions_S"}
    logits = model(
        batch["tokens_BL"],
        batch["segment_ids_BL"],
        batch["token_type_ids_BL"],
        **of_sequences,
        dropout_key=dropout_key,
    )
    return logits.astype(jnp.float32)


def _class_sums(model, batch, dropout_key):
    logits_SC = _logits(model, batch, dropout_key)
    losses_S = optax.softmax_cross_entropy_with_integer_labels(logits_SC, batch["labels_S"])
    right_S = jnp.argmax(logits_SC, axis=1) == batch["labels_S"]
    return jnp.sum(losses_S * batch["weights_S"]), jnp.sum(right_S * batch["weights_S"])


def _token_sums(model, batch, dropout_key):
    logits_BLC = _logits(model, batch, dropout_key)
    labels_BL, weights_BL = batch["labels_BL"], batch["weights_BL"]
    losses_BL = optax.softmax_cross_entropy_with_integer_labels(logits_BLC, labels_BL)
    right_BL = jnp.argmax(logits_BLC, axis=2) == labels_BL
    return jnp.sum(losses_BL * weights_BL), jnp.sum(right_BL * weights_BL)


def _value_sums(model, batch, dropout_key):
    errors_S = _logits(model, batch, dropout_key)[:, 0] - batch["labels_S"]
    weights_S = batch["weights_S"]
    return jnp.sum(errors_S**2 * weights_S), jnp.sum(jnp.abs(errors_S) * weights_S)


# Cross-entropy with the accuracy beside it, or squared error with the absolute one.
CLASSES = Objective(_class_sums, weights="weights_S", score="accuracy")
WORD_CLASSES = Objective(_token_sums, weights="weights_BL", score="accuracy")
VALUES = Objective(_value_sums, weights="weights_S", score="mean_absolute_error")


def jitted_logits(graph: nnx.GraphDef) -> jax.stages.Wrapped:
    """(params, batch) -> float32 logits of a batch's sequences or tokens, without dropout."""
    return jax.jit(
        lambda params, batch: _logits(nnx.merge(graph, sharding.at_use(params)), batch, None)
    )


def logits_of(
    step: jax.stages.Wrapped,
    params: Any,
    examples: EncodedExamples,
    mesh: Mesh,
    *,
    size: int,
    row_length: int,
) -> Float[np.ndarray, "S C"]:
    """What a model gives for each example, in their order, without dropout.

    Args:
      step: see `jitted_logits`.
      size: examples of a batch; the result does not depend on it.

    Returns:
      A row for each example, or where words are labeled for each word.
    """
    pending = []
    batches = evaluation_batches(
        examples, size=size, row_length=row_length, shards=sharding.row_shards(mesh)
    )
    with jax.set_mesh(mesh):
        for arrays, indices_S in batches:
            found = step(params, sharding.place_batch(mesh, arrays))
            pending.append((indices_S, arrays.get("weights_BL"), found))
    logits: dict[int, np.ndarray] = {}
    for indices_S, is_word_BL, found in pending:
        found = np.asarray(found)
        if is_word_BL is None:
            logits |= zip(indices_S.tolist(), found[: len(indices_S), None], strict=True)
        else:
            # Rows and their segments come in the order of the indices.
            ends_S = np.cumsum(examples.words(indices_S))[:-1]
            parts = np.split(found[is_word_BL > 0], ends_S)
            logits |= zip(indices_S.tolist(), parts, strict=True)
    return np.concatenate([logits[index] for index in range(len(examples))])
