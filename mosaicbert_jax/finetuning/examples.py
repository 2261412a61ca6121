"""Labeled texts from a CSV, TSV or JSON Lines file."""

import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.text.encoding import document_digest
from mosaicbert_jax.text.tables import is_table, lines, lines_of_input, rows

_AT_ONCE = 1024  # examples that are labeled together
_NO_LABEL = ("", "nan", "null")


@dataclasses.dataclass(frozen=True)
class Example:
    """One text or a pair of them, with its label.

    Attributes:
      second: the other text of a pair.
      label: a class's name or a number as it stands in the file; None where there is none.
      place: where it stands, for messages.
    """

    first: str
    second: str | None
    label: str | None
    place: str


@dataclasses.dataclass(frozen=True)
class TaggedExample:
    """Words, with a label for each.

    Attributes:
      labels: of the words; None where there are none.
      place: where it stands, for messages.
    """

    words: tuple[str, ...]
    labels: tuple[str, ...] | None
    place: str

    @property
    def first(self) -> str:
        """All of it as a text."""
        return " ".join(self.words)


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of the columns, or keys, of an example; None for one that is not there."""

    text: str
    second_text: str | None = None
    label: str | None = None


def read_examples(
    path: Path, columns: Columns, say: Callable[[str], None] = lambda line: None
) -> list[Example]:
    """All examples of a file; `say` as for `rows`.

    Raises:
      UserError: a file that cannot be read, a missing column, or an empty text; names the line.
    """
    examples = [example_of(place, fields, columns) for place, fields in rows(path, say)]
    if not examples:
        raise UserError(f"{path}: no row with an example in it")
    return examples


def example_of(place: str, fields: dict[str, Any], columns: Columns) -> Example:
    """Takes an example from a row; raises as `read_examples`."""
    names = [columns.text, columns.second_text, columns.label]
    for name in names:
        if name is not None and name not in fields:
            raise UserError(f"{place}: no column {name!r}, only {', '.join(map(repr, fields))}")
    texts = [None if name is None else fields[name] for name in names[:2]]
    for name, text in zip(names, texts, strict=False):
        if name is not None and not isinstance(text, str):
            raise UserError(f"{place}: column {name!r} holds {json.dumps(text)}, not a text")
        if name is not None and not text.strip():
            raise UserError(f"{place}: the text in column {name!r} is empty")
    label = None if columns.label is None else _label(fields[columns.label], columns.label, place)
    return Example(texts[0], texts[1], label, place)


def read_tagged_examples(
    path: Path, columns: Columns, say: Callable[[str], None] = lambda line: None
) -> list[TaggedExample]:
    """All examples of a JSON Lines file with a list of words and one of labels in each line.

    Raises:
      UserError: a file that cannot be read, a missing key, or lists that do not match; names the
        line.
    """
    examples = [tagged_example_of(place, fields, columns) for place, fields in rows(path, say)]
    if not examples:
        raise UserError(f"{path}: no line with an example in it")
    return examples


def tagged_example_of(place: str, fields: dict[str, Any], columns: Columns) -> TaggedExample:
    """Takes an example from a line; raises as `read_tagged_examples`."""
    lists = []
    for name in (columns.text, *([columns.label] if columns.label else [])):
        if name not in fields:
            raise UserError(f"{place}: no key {name!r}, only {', '.join(map(repr, fields))}")
        found = fields[name]
        if not (isinstance(found, list) and found and all(isinstance(x, str) for x in found)):
            raise UserError(f"{place}: {name!r} must be a list of strings, one for each word")
        lists.append(tuple(found))
    if len({len(found) for found in lists}) > 1:
        raise UserError(f"{place}: {len(lists[0])} words and {len(lists[1])} labels")
    return TaggedExample(lists[0], lists[1] if columns.label else None, place)


def _label(value: Any, name: str, place: str) -> str:
    """A label in its one spelling: 1.0 and "1.0" are 1.

    Raises:
      UserError: none is there: null, NaN, or an empty text.
    """
    text = value if isinstance(value, str) else json.dumps(value)
    text = text.strip()
    if not isinstance(value, str | bool | int | float) or text.lower() in _NO_LABEL:
        raise UserError(f"{place}: there is no label in column {name!r}, but {json.dumps(value)}")
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def example_of_line(line: str, place: str, may_be_pair: bool) -> Example:
    """A line that is a text, or two with a tab between them."""
    first, _, second = line.partition("\t") if may_be_pair else (line, "", "")
    return Example(first, second or None, None, place)


def examples_to_label(
    path: Path | None, columns: Columns, may_be_pairs: bool
) -> Iterator[list[Example]]:
    """The examples of a table, of a text file's lines or, without a path, of standard input's.

    A few at a time; from a terminal one by one. Raises UserError as `read_examples`.

    Args:
      may_be_pairs: whether a tab in a line of text is between two texts.
    """
    if path is not None and is_table(path):
        found = (example_of(place, fields, columns) for place, fields in rows(path))
    else:
        texts = _lines_to_label(path)
        found = (example_of_line(line, place, may_be_pairs) for place, line in texts)
    yield from _at_once(path, found)


def examples_to_tag(path: Path | None, columns: Columns) -> Iterator[list[TaggedExample]]:
    """The same for words, which in a line of text are what stands between spaces."""
    if path is not None and is_table(path):
        found = (tagged_example_of(place, fields, columns) for place, fields in rows(path))
    else:
        found = (
            TaggedExample(tuple(line.split()), None, place) for place, line in _lines_to_label(path)
        )
    yield from _at_once(path, found)


def _lines_to_label(path: Path | None) -> Iterator[tuple[str, str]]:
    if path is not None:
        return lines(path)
    return lines_of_input()


def _at_once(path: Path | None, found: Iterator[Any]) -> Iterator[list[Any]]:
    count = 1 if path is None and sys.stdin.isatty() else _AT_ONCE
    while chunk := list(itertools.islice(found, count)):
        yield chunk


def held_out(examples: Iterable[Any], fraction: float) -> tuple[list[Any], list[Any]]:
    """Those to train on and about `fraction` of them to evaluate on.

    The digest of the first text decides, so that all copies of a text are on one side, and a file
    that grows leaves each on its own.
    """
    kept, out = [], []
    for example in examples:
        drawn = document_digest(example.first)[0] / 2**64
        (out if drawn < fraction else kept).append(example)
    return kept, out
