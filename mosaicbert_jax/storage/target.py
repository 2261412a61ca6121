"""What a classifier predicts: a class for a text or for each word, or a number."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from mosaicbert_jax.errors import UserError

CLASSIFICATION, REGRESSION = "classification", "regression"
TOKEN_CLASSIFICATION = "token_classification"  # a class for each word
KINDS = (CLASSIFICATION, REGRESSION, TOKEN_CLASSIFICATION)
MULTI_LABEL = "multi_label_classification"  # of models in Hugging Face's layout alone
PROBLEM_TYPES = {  # by kind, as transformers calls them
    CLASSIFICATION: "single_label_classification",
    REGRESSION: "regression",
    MULTI_LABEL: "multi_label_classification",
}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_MOST_SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Target:
    """What the labels of a data set mean.

    Attributes:
      kind: of KINDS, or MULTI_LABEL.
      labels: the names of the classes, by number; none of a regression.
      label_range: the lowest and highest number that a label of a regression may be.
    """

    kind: str
    labels: tuple[str, ...] = ()
    label_range: tuple[float, float] = (-math.inf, math.inf)

    @classmethod
    def of_classes(cls, kind: str, names: Iterable[str]) -> Self:
        """The classes that occur, in the order of their numbers if all are integers.

        Names of the same number ("1", "01") are in the order of their characters.
        """
        names = set(names)
        try:
            labels = sorted(names, key=lambda name: (int(name), name))
        except ValueError:
            labels = sorted(names)
        return cls(kind, tuple(labels))

    @classmethod
    def of_names(cls, names: Iterable[str], *, of_tokens: bool, problem_type: str | None) -> Self:
        """Of a classifier in Hugging Face's layout, where one output is a regression's.

        Args:
          problem_type: of config.json; None decides by the number of outputs, as transformers does.

        Raises:
          UserError: a regression of several numbers, or another problem_type.
        """
        labels = tuple(names)
        if of_tokens:
            return cls(TOKEN_CLASSIFICATION, labels)
        if problem_type is None:
            problem_type = "single_label_classification" if len(labels) > 1 else REGRESSION
        if problem_type == REGRESSION and len(labels) == 1:
            return cls(REGRESSION)
        for kind in (CLASSIFICATION, MULTI_LABEL):
            if PROBLEM_TYPES[kind] == problem_type:
                return cls(kind, labels)
        raise UserError(f"problem_type {problem_type!r} with {len(labels)} outputs")

    @property
    def outputs(self) -> int:
        """C: the numbers that the model gives for each label."""
        return len(self.labels) or 1

    def __str__(self) -> str:
        if self.kind == REGRESSION:
            return "a regression"
        shown = ", ".join(map(repr, self.labels[:_MOST_SHOWN]))
        return f"the classes {shown}{', …' if len(self.labels) > _MOST_SHOWN else ''}"

    def number(self, label: Any, place: str) -> int | float:
        """A label as the loss takes it: the class's number, or the value.

        Raises:
          UserError: an unknown class, or no number in the range; names the place and the label.
        """
        if self.kind != REGRESSION:
            if label in self.labels:
                return self.labels.index(label)
            raise UserError(f"{place}: unknown label {label!r}; there are {self}")
        try:
            value = float(label)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{place}: the label {label!r} is not a number")
        if abs(value) > _FLOAT32_MAX:
            raise UserError(f"{place}: the label {label} is beyond what float32 holds")
        lowest, highest = self.label_range
        if not lowest <= value <= highest:
            raise UserError(
                f"{place}: the label {label} is outside the range, {lowest:g} to {highest:g}"
            )
        return value

    def to_dict(self) -> dict[str, Any]:
        """What the record of a run holds."""
        return {"kind": self.kind, "labels": list(self.labels)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """From `to_dict`'s record."""
        return cls(record["kind"], tuple(record["labels"]))
