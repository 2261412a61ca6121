"""The kinds of tasks: what an example is, what a step learns from it, and how it is scored."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from scipy import special
from tokenizers import Tokenizer

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.finetuning import examples as reading
from mosaicbert_jax.finetuning import objective
from mosaicbert_jax.finetuning.encoded import EncodedExamples, encode, encode_tagged
from mosaicbert_jax.finetuning.examples import Columns
from mosaicbert_jax.finetuning.scores import ENTITY_F1, score
from mosaicbert_jax.storage.target import (
    CLASSIFICATION,
    MULTI_LABEL,
    REGRESSION,
    TOKEN_CLASSIFICATION,
    Target,
)
from mosaicbert_jax.training.step import Objective


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model predicts for one example.

    Attributes:
      label: the likeliest class, or the number as text.
      probability: of that class; None for a regression.
    """

    label: str
    probability: float | None


class Classification:
    """A class for a text or a pair of texts."""

    name: ClassVar[str] = CLASSIFICATION
    objective: ClassVar[Objective] = objective.CLASSES

    def read(self, path: Path, columns: Columns, say: Callable[[str], None]) -> list[Any]:
        """All labeled examples of a file; `say` as for `rows`."""
        return reading.read_examples(path, columns, say)

    def read_unlabeled(
        self, path: Path | None, columns: Columns, may_be_pairs: bool
    ) -> Iterator[list[Any]]:
        """The examples of a file, or of standard input, a few at a time.

        Args:
          may_be_pairs: whether a tab in a line of text is between two texts.
        """
        return reading.examples_to_label(path, columns, may_be_pairs)

    def target(self, examples: Sequence[Any], path: Path, label_range: tuple) -> Target:
        """What the labels of all examples of a file mean.

        Raises:
          UserError: they are all the same.
        """
        found = Target.of_classes(self.name, self.labels(examples))
        if len(found.labels) < 2:
            raise UserError(f"{path}: the only label is {found.labels[0]!r}; two are needed")
        return found

    def labels(self, examples: Sequence[Any]) -> Iterator[str]:
        """Of the examples, one after another."""
        return (example.label for example in examples)

    def encode(
        self, examples: Sequence[Any], tokenizer: Tokenizer, target: Target, max_seq_len: int
    ) -> EncodedExamples:
        """Tokens and labels."""
        return encode(examples, tokenizer, target, max_seq_len)

    def unlabeled(self, example: Any) -> Any:
        """The example without its label."""
        return dataclasses.replace(example, label=None)

    def metrics(self, target: Target) -> tuple[str, ...]:
        """Names of METRICS, for tasks that name none."""
        return ("accuracy", "f1" if len(target.labels) == 2 else "macro_f1", "matthews")

    def score(
        self,
        logits_SC: Float[np.ndarray, "S C"],
        examples: EncodedExamples,
        target: Target,
        metrics: Sequence[str],
    ) -> dict[str, float]:
        """The metrics by name, and the loss."""
        return score(logits_SC, examples.labels_S, target, metrics)

    def predictions(
        self, logits_SC: Float[np.ndarray, "S C"], examples: EncodedExamples, target: Target
    ) -> list[Any]:
        """What the logits say of each example."""
        probabilities_SC = special.softmax(logits_SC, axis=1)
        return [
            Prediction(target.labels[row.argmax()], float(row.max())) for row in probabilities_SC
        ]

    def lines(self, example: Any, prediction: Any) -> list[str]:
        """A prediction as lines for the terminal: label, probability and text."""
        known = [] if prediction.probability is None else [f"{prediction.probability:.4f}"]
        return ["\t".join([prediction.label, *known, _text(example)])]


class Regression(Classification):
    """A number for a text or a pair of texts."""

    name = REGRESSION
    objective = objective.VALUES

    def target(self, examples: Sequence[Any], path: Path, label_range: tuple) -> Target:
        return Target(REGRESSION, (), tuple(label_range) or (-math.inf, math.inf))

    def metrics(self, target: Target) -> tuple[str, ...]:
        return ("pearson", "spearman", "mean_absolute_error")

    def predictions(self, logits_SC, examples: EncodedExamples, target: Target) -> list[Any]:
        return [Prediction(f"{value:.4f}", None) for value in logits_SC[:, 0]]


class MultiLabelClassification(Classification):
    """Any number of classes for a text; of models in Hugging Face's layout, to predict with."""

    name = MULTI_LABEL

    def predictions(self, logits_SC, examples: EncodedExamples, target: Target) -> list[Any]:
        """A Prediction for each class of each example, the likeliest first."""
        return [
            [Prediction(target.labels[i], float(row[i])) for i in np.argsort(-row, kind="stable")]
            for row in special.expit(logits_SC)
        ]

    def lines(self, example: Any, prediction: Any) -> list[str]:
        """One line: all labels, each with its probability, and the text."""
        found = [word for p in prediction for word in (p.label, f"{p.probability:.4f}")]
        return ["\t".join([*found, _text(example)])]


class TokenClassification(Classification):
    """A class for each word of a text."""

    name = TOKEN_CLASSIFICATION
    objective = objective.WORD_CLASSES

    def read(self, path: Path, columns: Columns, say: Callable[[str], None]) -> list[Any]:
        return reading.read_tagged_examples(path, columns, say)

    def read_unlabeled(
        self, path: Path | None, columns: Columns, may_be_pairs: bool
    ) -> Iterator[list[Any]]:
        return reading.examples_to_tag(path, columns)

    def labels(self, examples: Sequence[Any]) -> Iterator[str]:
        return itertools.chain.from_iterable(example.labels for example in examples)

    def encode(
        self, examples: Sequence[Any], tokenizer: Tokenizer, target: Target, max_seq_len: int
    ) -> EncodedExamples:
        return encode_tagged(examples, tokenizer, target, max_seq_len)

    def unlabeled(self, example: Any) -> Any:
        return dataclasses.replace(example, labels=None)

    def metrics(self, target: Target) -> tuple[str, ...]:
        return ("accuracy", ENTITY_F1)

    def score(self, logits_WC, examples, target, metrics) -> dict[str, float]:
        labels_W = examples.word_labels_T[examples.word_labels_T >= 0]
        words_S = examples.words(np.arange(len(examples)))
        return score(logits_WC, labels_W, target, metrics, words_S)

    def predictions(self, logits_WC, examples: EncodedExamples, target: Target) -> list[Any]:
        """The class of each word of each example; none for words that are cut off."""
        names_W = [target.labels[i] for i in logits_WC.argmax(axis=1)]
        ends_S = np.cumsum(examples.words(np.arange(len(examples))))
        return [names_W[begin:end] for begin, end in zip([0, *ends_S[:-1]], ends_S, strict=True)]

    def lines(self, example: Any, prediction: Any) -> list[str]:
        """A line for each word, with its class, and an empty one."""
        words = zip(example.words, prediction, strict=False)  # those cut off have no class
        return [*(f"{word}\t{label}" for word, label in words), ""]


def _text(example: Any) -> str:
    return " ".join(f"{example.first} {example.second or ''}".split())


KINDS = {
    kind.name: kind
    for kind in (Classification(), Regression(), TokenClassification(), MultiLabelClassification())
}
