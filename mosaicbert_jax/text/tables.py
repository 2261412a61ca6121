"""The rows of whole tables, with all of their fields: CSV, TSV and JSON Lines, for finetuning."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.text.blocks import Problem, without_mark
from mosaicbert_jax.text.streams import COMPRESSIONS, BrokenStreamError, read_pieces
from mosaicbert_jax.text.table_readers import csv_records, ragged

Row = tuple[str, dict[str, Any]]  # its place ("path:line"), and its fields by name


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file, by its suffix; .gz or .zst may stand behind it.

    Raises:
      UserError: an unknown suffix, a damaged or missing file, a row that cannot be read.
    """
    read = _READERS.get(_suffix(path))
    if read is None:
        raise UserError(f"{path}: tables are read from files that end in {', '.join(_READERS)}")
    try:
        yield from read(path)
    except BrokenStreamError as error:
        raise UserError(f"{path}: {error}") from None


def is_table(path: Path) -> bool:
    """Whether a file's suffix is that of a table."""
    return _suffix(path) in _READERS


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    return suffixes[-1] if suffixes else ""


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of each line that is not blank; raises UserError for one that is not UTF-8."""
    for number, data in enumerate(_byte_lines(path), 1):
        if data.strip():
            try:
                yield f"{path}:{number}", data.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8"
                ) from None


def _byte_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    for piece in without_mark(read_pieces(path)):
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _read_json_lines(path: Path) -> Iterator[Row]:
    for place, line in lines(path):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not JSON ({error}); one object a line is expected") from None
        if not isinstance(fields, dict):
            raise UserError(f"{place}: the line is no JSON object")
        yield place, fields


def _csv_reader(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    def read(path: Path) -> Iterator[Row]:
        text = (data.decode("utf-8", "surrogateescape") + "\n" for data in _byte_lines(path))
        records = csv_records(path, csv.reader(text, delimiter=delimiter, strict=True))
        header = None
        for line, record in records:
            place = f"{path}:{line}"
            if isinstance(record, Problem):
                raise UserError(str(record))
            if header is None:
                header = record
                continue
            if len(record) != len(header):
                raise UserError(str(ragged(place, record, header)))
            if any("\udc80" <= char <= "\udcff" for field in record for char in field):
                raise UserError(f"{place}: the row is not UTF-8; convert the file")
            yield place, dict(zip(header, record, strict=True))

    return read


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _csv_reader(","),
    ".tsv": _csv_reader("\t"),
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
}
