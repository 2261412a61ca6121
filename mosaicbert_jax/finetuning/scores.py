"""Finetuning metrics, computed by scikit-learn, SciPy and seqeval."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num
from scipy import special, stats
from seqeval import metrics as seqeval_metrics
from sklearn import metrics as sklearn_metrics

from mosaicbert_jax.storage.target import REGRESSION, Target

ENTITY_F1 = "entity_f1"


def _correlation(correlate: Callable) -> Callable[[np.ndarray, np.ndarray], float]:
    def score(labels_S: np.ndarray, predicted_S: np.ndarray) -> float:
        # Not defined for constant predictions, which get the worst score.
        if np.ptp(labels_S) == 0 or np.ptp(predicted_S) == 0:
            return 0.0
        return float(correlate(labels_S, predicted_S).statistic)

    return score


def _macro_f1(labels_S: np.ndarray, predicted_S: np.ndarray) -> float:
    return float(sklearn_metrics.f1_score(labels_S, predicted_S, average="macro", zero_division=0))


def _f1(labels_S: np.ndarray, predicted_S: np.ndarray) -> float:
    """Of class 1, the second of two."""
    return float(sklearn_metrics.f1_score(labels_S, predicted_S, zero_division=0))


# name -> (labels, predicted classes or values) -> the score
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": sklearn_metrics.accuracy_score,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": sklearn_metrics.matthews_corrcoef,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
    "mean_absolute_error": sklearn_metrics.mean_absolute_error,
}


def entity_f1(
    labels_W: Num[np.ndarray, "W"],
    predicted_W: Num[np.ndarray, "W"],
    words_S: Num[np.ndarray, "S"],
    target: Target,
) -> float:
    """Of whole entities (labels B-NAME, I-NAME and O), as CoNLL counts them.

    Args:
      words_S: how many of the W words each example has.
    """
    ends_S = np.cumsum(words_S)[:-1]

    def named(numbers_W: np.ndarray) -> list[list[str]]:
        return [[target.labels[i] for i in part] for part in np.split(numbers_W, ends_S)]

    return float(seqeval_metrics.f1_score(named(labels_W), named(predicted_W), zero_division=0))


@dataclasses.dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
      values: by name; "loss" is the mean cross-entropy in nats, or squared error.
      examples: how many were evaluated, of all sets together.
    """

    values: Mapping[str, float]
    examples: int

    def __str__(self) -> str:
        shown = ", ".join(
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in self.values.items()
        )
        return f"held-out {shown} over {self.examples:,} examples"

    def row(self) -> dict[str, Any]:
        """As the row of metrics.jsonl."""
        return {f"eval_{name}": value for name, value in self.values.items()} | {
            "eval_examples": self.examples
        }


def predictions(logits_SC: Float[np.ndarray, "S C"], target: Target) -> Num[np.ndarray, "S"]:
    """The likeliest class of each, or the value."""
    return logits_SC[:, 0] if target.kind == REGRESSION else logits_SC.argmax(axis=1)


def score(
    logits_SC: Float[np.ndarray, "S C"],
    labels_S: Num[np.ndarray, "S"],
    target: Target,
    metrics: Sequence[str],
    words_S: Num[np.ndarray, "S"] | None = None,
) -> dict[str, float]:
    """The metrics by name, and the loss.

    Args:
      words_S: where words are labeled, how many each example has.
    """
    predicted_S = predictions(logits_SC, target)
    if target.kind == REGRESSION:
        loss = np.mean((predicted_S - labels_S) ** 2)
    else:
        log_probabilities_SC = special.log_softmax(logits_SC, axis=1)
        loss = -np.mean(log_probabilities_SC[np.arange(len(labels_S)), labels_S])
    found = {
        name: entity_f1(labels_S, predicted_S, words_S, target)
        if name == ENTITY_F1
        else float(METRICS[name](labels_S, predicted_S))
        for name in metrics
    }
    return {"loss": float(loss), **found}
