"""A task: what is trained on, what is held out, and how that is scored."""

import dataclasses
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from mosaicbert_jax import buckets
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.finetuning.examples import Columns, Example, TaggedExample, held_out
from mosaicbert_jax.finetuning.kinds import KINDS
from mosaicbert_jax.storage.target import Target


@dataclasses.dataclass(frozen=True)
class Task:
    """Examples with their meaning.

    Attributes:
      target: what the labels mean.
      metrics: names of METRICS.
      train: examples to learn from.
      dev: the held-out sets by name; a single one is "".
      notes: what a reader should be told of the files, though nothing is wrong.
    """

    target: Target
    metrics: tuple[str, ...]
    train: Sequence[Example] | Sequence[TaggedExample]
    dev: Mapping[str, Sequence[Example] | Sequence[TaggedExample]]
    notes: Sequence[str] = ()


def read_task(config: ConfigDict) -> Task:
    """The task that a config describes.

    Raises:
      UserError: as `read_examples`; or too few examples, or one class.
    """
    data = config.data
    columns = Columns(data.text, data.second_text, data.label)
    path = buckets.local_copy(data.path)
    kind = KINDS[config.task]
    notes: list[str] = []
    train = kind.read(path, columns, notes.append)
    # A class all of whose examples are held out is a class too.
    target = kind.target(train, path, data.label_range)
    if data.dev_path:
        dev = kind.read(buckets.local_copy(data.dev_path), columns, notes.append)
    else:
        train, dev = held_out(train, data.dev_fraction)
        if not train or not dev:
            raise UserError(
                f"{path}: with data.dev_fraction={data.dev_fraction}, {len(train)} examples are "
                f"left to train on and {len(dev)} to evaluate on; change it, or give data.dev_path"
            )
    unseen = set(target.labels) - set(kind.labels(train))
    if unseen:
        notes.append(
            f"all examples of the class {min(unseen)!r} are held out, and none is left to learn "
            f"from; lower data.dev_fraction={data.dev_fraction}, or give data.dev_path"
        )
    return Task(target, kind.metrics(target), train, {"": dev}, notes)
