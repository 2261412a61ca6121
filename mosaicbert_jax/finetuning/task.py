"""A task: what is trained on, what is held out, and how that is scored."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.finetuning.examples import (
    Columns,
    Example,
    TaggedExample,
    held_out,
    read_examples,
    read_tagged_examples,
)
from mosaicbert_jax.finetuning.scores import metrics_of
from mosaicbert_jax.storage.target import REGRESSION, TOKEN_CLASSIFICATION, Target


@dataclasses.dataclass(frozen=True)
class Task:
    """Examples with their meaning.

    Attributes:
      target: what the labels mean.
      metrics: names of METRICS.
      train: examples to learn from.
      dev: the held-out sets by name; a single one is "".
    """

    target: Target
    metrics: tuple[str, ...]
    train: Sequence[Example] | Sequence[TaggedExample]
    dev: Mapping[str, Sequence[Example] | Sequence[TaggedExample]]


def read_task(config: ConfigDict) -> Task:
    """The task of one's own that a config describes.

    Raises:
      UserError: as `read_examples`; or too few examples, or one class.
    """
    data = config.data
    columns = Columns(data.text, data.second_text, data.label)
    path = pathlib.Path(data.path)
    read = read_tagged_examples if config.task == TOKEN_CLASSIFICATION else read_examples
    train = read(path, columns)
    if data.dev_path:
        dev = read(pathlib.Path(data.dev_path), columns)
    else:
        train, dev = held_out(train, data.dev_fraction)
        if not train or not dev:
            raise UserError(
                f"{path}: with data.dev_fraction={data.dev_fraction}, {len(train)} examples are "
                f"left to train on and {len(dev)} to evaluate on; change it, or give data.dev_path"
            )
    target = _target(config, train, path)
    return Task(target, metrics_of(target), train, {"": dev})


def _target(config: ConfigDict, train: Sequence[Any], path: pathlib.Path) -> Target:
    if config.task == REGRESSION:
        return Target(REGRESSION, (), tuple(config.data.label_range) or (-math.inf, math.inf))
    if config.task == TOKEN_CLASSIFICATION:
        labels = itertools.chain.from_iterable(example.labels for example in train)
    else:
        labels = (example.label for example in train)
    target = Target.of_classes(config.task, labels)
    if len(target.labels) < 2:
        raise UserError(
            f"{path}: the only label to train on is {target.labels[0]!r}; two are needed"
        )
    return target
