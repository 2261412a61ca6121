"""The metrics on fixed predictions, against their formulas and against the library."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from mosaicbert_jax.finetuning.scores import METRICS, score
from mosaicbert_jax.storage.target import CLASSIFICATION, REGRESSION, Target

LABELS = np.array([1, 1, 1, 0, 0, 1, 0, 0])
GUESSES = np.array([1, 1, 0, 0, 1, 1, 0, 1])
TP, FP, FN, TN = 3, 2, 1, 2
VALUES = np.array([0.0, 1.0, 2.5, 4.0, 5.0])
ESTIMATES = np.array([0.5, 0.4, 3.0, 2.0, 4.5])


def test_classification_metrics_by_their_formulas():
    expected = {
        "accuracy": (TP + TN) / 8,
        "f1": 2 * TP / (2 * TP + FP + FN),
        "macro_f1": (2 * TP / (2 * TP + FP + FN) + 2 * TN / (2 * TN + FP + FN)) / 2,
        "matthews": (TP * TN - FP * FN) / math.sqrt((TP + FP) * (TP + FN) * (TN + FP) * (TN + FN)),
    }
    for name, value in expected.items():
        assert METRICS[name](LABELS, GUESSES) == pytest.approx(value), name


def test_they_are_the_librarys_used_directly():
    assert METRICS["f1"](LABELS, GUESSES) == metrics.f1_score(LABELS, GUESSES)
    assert METRICS["matthews"](LABELS, GUESSES) == metrics.matthews_corrcoef(LABELS, GUESSES)
    assert METRICS["accuracy"](LABELS, GUESSES) == metrics.accuracy_score(LABELS, GUESSES)
    assert METRICS["pearson"](VALUES, ESTIMATES) == stats.pearsonr(VALUES, ESTIMATES)[0]
    assert METRICS["spearman"](VALUES, ESTIMATES) == stats.spearmanr(VALUES, ESTIMATES)[0]


def test_regression_metrics_by_their_formulas():
    a, b = VALUES - VALUES.mean(), ESTIMATES - ESTIMATES.mean()
    pearson = (a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum())
    ranks = 1 - 6 * sum(d**2 for d in (1, -1, 1, -1, 0)) / (5 * 24)
    assert METRICS["pearson"](VALUES, ESTIMATES) == pytest.approx(pearson)
    assert METRICS["spearman"](VALUES, ESTIMATES) == pytest.approx(ranks)
    assert METRICS["pearson"](VALUES, np.ones(5)) == 0.0  # not NaN


def test_loss_and_classes_come_from_the_logits():
    logits = np.array([[2.0, 0.0], [0.0, 1.0]], np.float32)
    target = Target(CLASSIFICATION, ("a", "b"))
    found = score(logits, np.array([0, 0]), target, ("accuracy",))
    losses = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))]
    assert found == {"loss": pytest.approx(sum(losses) / 2), "accuracy": 0.5}
    values = np.array([[1.0], [3.0]], np.float32)
    found = score(values, np.array([0.0, 3.0]), Target(REGRESSION), ("mean_absolute_error",))
    assert found == {"loss": 0.5, "mean_absolute_error": 0.5}
