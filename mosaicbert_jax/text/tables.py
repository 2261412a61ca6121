"""The rows of whole tables, with all of their fields: CSV, TSV and JSON Lines, for finetuning."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.text.blocks import JSON_ARRAY, Problem, not_utf8, text_pieces
from mosaicbert_jax.text.streams import COMPRESSIONS, BrokenStreamError, Tally, read_pieces
from mosaicbert_jax.text.table_readers import csv_records, note_twice, ragged

_NO_UTF8 = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of other bytes

Row = tuple[str, dict[str, Any]]  # its place ("path:line"), and its fields by name


def rows(path: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[Row]:
    """The rows of a file, by its suffix; .gz or .zst may stand behind it.

    Args:
      say: takes what a reader should be told of the file, though nothing is wrong.

    Raises:
      UserError: an unknown suffix, a damaged or missing file, a row that cannot be read.
    """
    read = _READERS.get(_suffix(path))
    if read is None:
        raise UserError(f"{path}: tables are read from files that end in {', '.join(_READERS)}")
    tally = Tally()
    try:
        yield from read(path, tally)
    except BrokenStreamError as error:
        raise UserError(f"{path}: {error}") from None
    for note in tally.notes:
        say(note)


def is_table(path: Path) -> bool:
    """Whether a file's suffix is that of a table."""
    return _suffix(path) in _READERS


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    return suffixes[-1] if suffixes else ""


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of each line of a file that is not blank.

    Raises:
      UserError: a line that is not UTF-8, or a damaged or missing file.
    """
    try:
        yield from decoded(_byte_lines(path), f"{path}:")
    except BrokenStreamError as error:
        raise UserError(f"{path}: {error}") from None


def lines_of_input() -> Iterator[tuple[str, str]]:
    """("line N", text) of each line of standard input that is not blank, as it arrives.

    Raises:
      UserError: a line that is not UTF-8, or there is none.
    """
    found = False
    for place, line in decoded(sys.stdin.buffer, "line "):
        found = True
        yield place, line.strip()
    if not found:
        raise UserError("standard input is empty: give a text a line")


def decoded(byte_lines: Iterable[bytes], place: str) -> Iterator[tuple[str, str]]:
    """(place and number, text) of each line that is not blank.

    Raises:
      UserError: a line that is not UTF-8.
    """
    for number, data in enumerate(byte_lines, 1):
        if data.strip():
            try:
                yield f"{place}{number}", data.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    str(not_utf8(f"{place}{number}", data.rstrip(b"\r\n"), error.start))
                ) from None


def _byte_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    for piece in text_pieces(read_pieces(path)):
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _read_json_lines(path: Path, tally: Tally) -> Iterator[Row]:
    for place, line in lines(path):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not JSON ({error}); one object a line is expected") from None
        if isinstance(fields, list):
            raise UserError(f"{place}: {JSON_ARRAY}")
        if not isinstance(fields, dict):
            raise UserError(f"{place}: the line is no JSON object")
        yield place, fields


def _csv_reader(delimiter: str) -> Callable[[Path, Tally], Iterator[Row]]:
    def read(path: Path, tally: Tally) -> Iterator[Row]:
        header = None
        for line, record in csv_records(path, delimiter, tally):
            place = f"{path}:{line}"
            if isinstance(record, Problem):
                raise UserError(str(record))
            if header is None:
                header = record
                note_twice(path, header, tally)
                continue
            if len(record) != len(header):
                raise UserError(str(ragged(place, record, header)))
            for name, field in zip(header, record, strict=True):
                if bad := _NO_UTF8.search(field):
                    data = field.encode("utf-8", "surrogateescape")
                    position = len(field[: bad.start()].encode())
                    raise UserError(str(not_utf8(place, data, position, f"column {name!r}")))
            fields: dict[str, Any] = {}
            for name, field in zip(header, record, strict=True):
                fields.setdefault(name, field)
            yield place, fields

    return read


_READERS: dict[str, Callable[[Path, Tally], Iterator[Row]]] = {
    ".csv": _csv_reader(","),
    ".tsv": _csv_reader("\t"),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json_lines,
}
