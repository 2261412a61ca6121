"""The tasks of GLUE (Wang et al., 2018, arXiv:1804.07461) but WNLI, and where their examples are.

From a folder in the layout of GLUE's own archive, or from what tensorflow-datasets has prepared.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mosaicbert_jax.buckets import local_copy
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.finetuning.examples import Columns, Example, example_of
from mosaicbert_jax.finetuning.task import Task
from mosaicbert_jax.storage.target import CLASSIFICATION, REGRESSION, Target
from mosaicbert_jax.text.sources import find_sources
from mosaicbert_jax.text.streams import BrokenStreamError
from mosaicbert_jax.text.tables import Row, lines

TFDS = "tfds:glue"  # in place of a folder
_ENTAILMENT = ("entailment", "not_entailment")
_BINARY = ("0", "1")
_REGRESSION = Target(REGRESSION, (), (0.0, 5.0))
# What CoLA's files for training and evaluation have no header to say.
_COLA_COLUMNS = ("source", "label", "original", "sentence")


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """A task and its files.

    Attributes:
      folder: in GLUE's archive; also what the leaderboard calls the task.
      columns: in its files.
      target: what its labels mean; in the order of tensorflow-datasets' numbers.
      metrics: whose mean is the task's score.
      beside: further metrics to report.
      dev: the held-out sets: name -> ending of the files' names.
      has_header: whether train.tsv and dev.tsv have one.
      index: the column of test.tsv that numbers its rows.
      tfds_columns: in tensorflow-datasets.
      drops_incomplete: whether train.tsv is known to have rows that lack a text.
    """

    folder: str
    columns: Columns
    target: Target
    metrics: tuple[str, ...]
    tfds_columns: Columns
    beside: tuple[str, ...] = ()
    dev: tuple[str, ...] = ("",)
    has_header: bool = True
    index: str = "index"
    drops_incomplete: bool = False


def _classes(*labels: str) -> Target:
    return Target(CLASSIFICATION, labels)


_PAIR = Columns("sentence1", "sentence2", "label")
TASKS = {
    "mnli": GlueTask(
        "MNLI",
        Columns("sentence1", "sentence2", "gold_label"),
        _classes("entailment", "neutral", "contradiction"),
        ("accuracy",),
        Columns("premise", "hypothesis", "label"),
        dev=("matched", "mismatched"),
    ),
    "qqp": GlueTask(
        "QQP",
        Columns("question1", "question2", "is_duplicate"),
        _classes(*_BINARY),
        ("accuracy", "f1"),
        Columns("question1", "question2", "label"),
        index="id",
        drops_incomplete=True,
    ),
    "qnli": GlueTask(
        "QNLI",
        Columns("question", "sentence", "label"),
        _classes(*_ENTAILMENT),
        ("accuracy",),
        Columns("question", "sentence", "label"),
    ),
    "sst2": GlueTask(
        "SST-2",
        Columns("sentence", None, "label"),
        _classes(*_BINARY),
        ("accuracy",),
        Columns("sentence", None, "label"),
    ),
    "cola": GlueTask(
        "CoLA",
        Columns("sentence", None, "label"),
        _classes(*_BINARY),
        ("matthews",),
        Columns("sentence", None, "label"),
        has_header=False,
    ),
    "rte": GlueTask("RTE", _PAIR, _classes(*_ENTAILMENT), ("accuracy",), _PAIR),
    "mrpc": GlueTask(
        "MRPC",
        Columns("#1 String", "#2 String", "Quality"),
        _classes(*_BINARY),
        ("accuracy", "f1"),
        _PAIR,
    ),
    "stsb": GlueTask(
        "STS-B",
        Columns("sentence1", "sentence2", "score"),
        _REGRESSION,
        ("spearman",),
        _PAIR,
        beside=("pearson",),
    ),
}


def score_names(name: str) -> list[str]:
    """The scores of an evaluation whose mean is the task's."""
    task = TASKS[name]
    return [f"{metric}_{part}".rstrip("_") for metric in task.metrics for part in task.dev]


def read_glue_task(name: str, place: str) -> Task:
    """The examples of a task.

    Args:
      place: GLUE's folder, or TFDS.

    Raises:
      UserError: a missing file or column, a label that is not the task's, an empty text.
    """
    task = TASKS[name]
    train = list(_examples(name, place, "train"))
    dev = {part: list(_examples(name, place, "dev", part)) for part in task.dev}
    return Task(task.target, (*task.metrics, *task.beside), train, dev)


def read_test_set(name: str, place: str, part: str) -> tuple[list[str], list[Example]]:
    """Index and texts of what the leaderboard wants labeled; nothing if it is not there."""
    task = TASKS[name]
    if place == TFDS:
        columns = dataclasses.replace(task.tfds_columns, label=None)
        found = list(_tfds_rows(name, "test", part))
        indices = [str(fields["idx"]) for _, fields in found]
    else:
        path = _path(task, place, "test", part)
        columns = dataclasses.replace(task.columns, label=None)
        found = list(_tsv_rows(path)) if path.exists() else []
        for column in (task.index, columns.text, columns.second_text):
            if found and column is not None and column not in found[0][1]:
                raise UserError(f"{found[0][0]}: no column {column!r}")
        indices = [fields[task.index] for _, fields in found]
    return indices, [_unlabeled(row, columns) for row in found]


def submission_name(name: str, part: str) -> str:
    """What the leaderboard calls the file of a task's predictions."""
    return TASKS[name].folder + {"": "", "matched": "-m", "mismatched": "-mm"}[part] + ".tsv"


def submission_text(name: str, indices: list[str], labels: list[str]) -> str:
    """The contents of such a file."""
    if TASKS[name].target.kind == REGRESSION:
        lowest, highest = TASKS[name].target.label_range
        labels = [f"{min(max(float(label), lowest), highest):.3f}" for label in labels]
    rows = zip(indices, labels, strict=True)
    return "index\tprediction\n" + "".join(f"{index}\t{label}\n" for index, label in rows)


def _unlabeled(row: Row, columns: Columns) -> Example:
    """As the leaderboard has it: a text may be empty, and wants a label all the same."""
    place, fields = row
    second = None if columns.second_text is None else fields[columns.second_text]
    return Example(fields[columns.text], second, None, place)


def _examples(name: str, place: str, split: str, part: str = "") -> Iterator[Example]:
    task = TASKS[name]
    if place == TFDS:
        for row in _tfds_rows(name, {"train": "train", "dev": "validation"}[split], part):
            yield example_of(*row, task.tfds_columns)
        return
    path = _path(task, place, split, part)
    if not path.exists():
        raise UserError(
            f"{path}: no such file; data.path is GLUE's folder, in which each task has its own, "
            f"or {TFDS}"
        )
    may_drop = task.drops_incomplete and split == "train"
    header = None if task.has_header else _COLA_COLUMNS
    for place_of_row, fields in _tsv_rows(path, header, skip_short=may_drop):
        if may_drop and not (fields[task.columns.text] and fields[task.columns.second_text]):
            continue
        yield example_of(place_of_row, fields, task.columns)


def _path(task: GlueTask, place: str, split: str, part: str) -> Path:
    return local_copy(place) / task.folder / (f"{split}_{part}".rstrip("_") + ".tsv")


def _tsv_rows(
    path: Path, header: tuple[str, ...] | None = None, skip_short: bool = False
) -> Iterator[Row]:
    """Rows of a file in which a tab is always a separator and a quote never means anything."""
    try:
        for place, line in lines(path):
            cells = line.split("\t")
            if header is None:
                header = tuple(cells)
            elif len(cells) == len(header):
                yield place, dict(zip(header, cells, strict=True))
            elif not skip_short:
                raise UserError(f"{place}: {len(cells)} columns, and {len(header)} are expected")
    except BrokenStreamError as error:
        raise UserError(f"{path}: {error}") from None


def _tfds_rows(name: str, split: str, part: str) -> Iterator[Row]:
    """Rows of what tensorflow-datasets prepared, the labels by their names."""
    import tensorflow_datasets as tfds

    ((file,),) = (source.files for source in find_sources([f"{TFDS}/{name}"]))
    folder = file.path
    split = f"{split}_{part}".rstrip("_")
    builder = tfds.builder_from_directory(folder)
    if split not in builder.info.splits:
        raise UserError(f"{folder}: no split {split!r}")
    target = TASKS[name].target
    for number, record in enumerate(builder.as_data_source(split), 1):
        fields = {
            key: value.decode("utf-8") if isinstance(value, bytes) else np.asarray(value).item()
            for key, value in record.items()
        }
        label = fields["label"]
        if target.labels and 0 <= label < len(target.labels):
            fields["label"] = target.labels[label]
        yield f"{folder}, {split}: row {number}", fields
