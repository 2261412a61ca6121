"""Masked-language-model evaluation on held-out text."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mosaicbert_jax import hosts
from mosaicbert_jax.data.pipeline import Batch
from mosaicbert_jax.training.sharding import place_batch


@dataclasses.dataclass(frozen=True)
class MaskedLMScores:
    """Means over all predicted tokens.

    Attributes:
      loss: cross-entropy, nats.
      masked_accuracy: share guessed right.
      commonest_accuracy: share that always guessing the commonest of the labels gets right.
      predictions: how many were predicted.
    """

    loss: float
    masked_accuracy: float
    commonest_accuracy: float
    predictions: int

    def __str__(self) -> str:
        return (
            f"held-out loss {self.loss:.3f}, masked accuracy {self.masked_accuracy:.3f} over "
            f"{self.predictions:,} predictions (always the commonest token: "
            f"{self.commonest_accuracy:.3f})"
        )

    def row(self) -> dict[str, Any]:
        """As the row of metrics.jsonl."""
        return {
            f"eval_{field.name}": getattr(self, field.name) for field in dataclasses.fields(self)
        }


def evaluate(
    step: Callable[[dict[str, jax.Array]], dict[str, jax.Array]],
    stream: Iterable[Batch],
    mesh: Mesh,
    *,
    vocab_size: int,
    max_tokens: int,
) -> MaskedLMScores:
    """Goes through a stream of batches, or its first `max_tokens` tokens.

    Args:
      step: `step.evaluation_step` with the parameters bound: a batch to its sums.
      stream: of the validation split, once.
    """
    sums, tokens = [], 0
    label_counts_V = np.zeros(vocab_size, np.int64)
    for batch in stream:
        sums.append(step(place_batch(mesh, batch.arrays)))
        labels_U = batch.arrays["labels_BP"][batch.arrays["weights_BP"] > 0]
        label_counts_V += np.bincount(labels_U, minlength=vocab_size)
        tokens += batch.tokens
        if tokens >= max_tokens:
            break
    totals = {name: sum(float(s[name]) for s in jax.device_get(sums)) for name in sums[0]}
    predictions = max(totals["predictions"], 1.0)
    label_counts_V = hosts.summed(label_counts_V.astype(np.int32))  # each counted its own rows
    return MaskedLMScores(
        loss=totals["loss"] / predictions,
        masked_accuracy=totals["correct"] / predictions,
        commonest_accuracy=float(label_counts_V.max() / predictions),
        predictions=int(totals["predictions"]),
    )
