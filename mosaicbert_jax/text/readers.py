"""Documents from files: blocks are cut in one process and parsed into documents in others.

A new format is a generator of blocks, a line in `_READERS`, and a suffix in sources.py; if what
is in its blocks is new too, a parser and a line in `_PARSERS`.
"""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mosaicbert_jax.text.blocks import (
    BLANK_LINE,
    JSON_ARRAY,
    LINE_END,
    Block,
    Document,
    Problem,
    cut,
    no_field,
    not_utf8,
    pack,
    text_pieces,
)
from mosaicbert_jax.text.sources import InputFile, disk_files
from mosaicbert_jax.text.streams import BrokenStreamError, Follower, Tally, read_pieces
from mosaicbert_jax.text.table_readers import read_csv, read_parquet, read_tfds

__all__ = ["Block", "Document", "Problem", "blocks", "documents"]


def blocks(file: InputFile, field: str, tally: Tally) -> Iterator[Block | Problem]:
    """Cuts a file into blocks of about 1 MiB, in the order of the file.

    Nothing is raised: what is wrong is yielded in its place, and where it makes the rest of the
    file unreadable, the blocks end there. Once the caller has read to the end, the tally is
    complete.

    Args:
      field: the JSON key or the column that holds the text; text files have none.
      tally: follows the bytes on disk.
    """
    is_empty = True
    try:
        for block in _READERS[file.format](file.path, field, tally):
            is_empty = False
            yield block
        if is_empty:
            yield Problem(str(file.path), "empty file", "no text in it; remove it, or add text")
    except BrokenStreamError as error:
        yield Problem(str(file.path), error.kind, str(error))
    except OSError as error:
        yield Problem(
            str(file.path),
            "unreadable file",
            f"can't be read ({error.strerror or error}); check the file and its rights",
        )
    with contextlib.suppress(OSError):  # has been told
        Follower(disk_files(file), tally).advance(1)


def documents(block: Block, field: str) -> Iterator[Document | Problem]:
    """Parses a block of `blocks`, with the same field. Empty documents are documents too."""
    return _PARSERS[block.format](block, field)


def _read_text(path: Path, field: str, tally: Tally) -> Iterator[Block]:
    if _has_paragraphs(path):
        yield from _cut_blocks("paragraphs", path, tally, BLANK_LINE)
    else:
        yield from _cut_blocks("lines", path, tally, LINE_END)


def _has_paragraphs(path: Path) -> bool:
    """Whether a blank line stands between two lines of text."""
    tail = b""
    seen_text = False
    with contextlib.suppress(BrokenStreamError):  # is found again when the text is read
        for piece in text_pieces(read_pieces(path)):
            data = tail + piece if seen_text else bytes(piece).lstrip()
            text = data.rstrip()
            if BLANK_LINE.search(text):
                return True
            seen_text = seen_text or bool(text)
            # Of the white space at the end, what tells whether it has a blank line.
            tail = b"\n" * min(2, data.count(b"\n", len(text)))
    return False


def _read_json_lines(path: Path, field: str, tally: Tally) -> Iterator[Block]:
    yield from _cut_blocks("json lines", path, tally, LINE_END)


def _cut_blocks(
    parser: str, path: Path, tally: Tally, boundary: re.Pattern[bytes]
) -> Iterator[Block]:
    for line, data in cut(path, tally, boundary):
        if not data.isspace():
            yield Block(parser, str(path), data, line)


def _read_speech(path: Path, field: str, tally: Tally) -> Iterator[Block]:
    yield Block("speech", str(path), b"".join(text_pieces(read_pieces(path, tally))))


def _read_articles(path: Path, field: str, tally: Tally) -> Iterator[Block]:
    articles = json.loads(b"".join(read_pieces(path, tally)))
    yield from pack(
        path, ((f": {title}", article["extract"].encode()) for title, article in articles.items())
    )


# (path, field, tally) → the file's blocks; may raise BrokenStreamError and OSError.
_READERS: dict[str, Callable[[Path, str, Tally], Iterator[Block | Problem]]] = {
    "text": _read_text,
    "json lines": _read_json_lines,
    "csv": functools.partial(read_csv, delimiter=","),
    "tsv": functools.partial(read_csv, delimiter="\t"),
    "parquet": read_parquet,
    "tfds": read_tfds,
    "speech": _read_speech,
    "articles": _read_articles,
}


def _parse_lines(block: Block, field: str) -> Iterator[Document | Problem]:
    for number, line in enumerate(block.payload.split(b"\n"), block.line):
        if line.strip():
            yield _text_document(block.path, number, [line])


def _parse_paragraphs(block: Block, field: str) -> Iterator[Document | Problem]:
    paragraph: list[bytes] = []
    for number, line in enumerate([*block.payload.split(b"\n"), b""], block.line):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield _text_document(block.path, number - len(paragraph), paragraph)
            paragraph = []


def _parse_speech(block: Block, field: str) -> Iterator[Document | Problem]:
    yield _text_document(block.path, 1, block.payload.split(b"\n"))


def _text_document(path: str, first: int, lines: Iterable[bytes]) -> Document | Problem:
    data = b"\n".join(line.rstrip(b"\r") for line in lines)
    try:
        return Document(data.decode("utf-8"), f"{path}:{first}")
    except UnicodeDecodeError as error:
        number = first + data.count(b"\n", 0, error.start)
        begin = data.rfind(b"\n", 0, error.start) + 1
        return not_utf8(f"{path}:{number}", data[begin:].split(b"\n", 1)[0], error.start - begin)


def _parse_json_lines(block: Block, field: str) -> Iterator[Document | Problem]:
    for number, line in enumerate(block.payload.split(b"\n"), block.line):
        if line.strip():
            yield _parse_json(line, field, f"{block.path}:{number}")


def _parse_json(line: bytes, field: str, place: str) -> Document | Problem:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return not_utf8(place, line, error.start)
    except (ValueError, RecursionError) as error:
        return Problem(
            place,
            "not JSON",
            f"not JSON ({error}); one object a line is expected, and `jq -c '.[]'` makes that "
            "of an array",
        )
    if isinstance(record, list):
        return Problem(place, "JSON array", JSON_ARRAY)
    if not isinstance(record, dict):
        return Problem(
            place,
            "no JSON object",
            f'the line is no JSON object; write {{"{field}": "…"}} on each line',
        )
    if field not in record:
        return no_field(place, "field", field, record)
    text = record[field]
    if not isinstance(text, str):
        return _not_a_string(place, field, type(text).__name__)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair, which no text encoding can hold.
        return Problem(
            place,
            "lone surrogate",
            f"field {field!r} has a lone surrogate at character {error.start + 1}; "
            "fix or drop the line",
        )
    return Document(text, place)


def _not_a_string(place: str, field: str, what: str) -> Problem:
    return Problem(
        place,
        "not a string",
        f"field {field!r} holds {what}, not a string; name the field that holds the text, or fix "
        "the line",
    )


def _parse_rows(block: Block, field: str) -> Iterator[Document | Problem]:
    for where, value in block.payload:
        place = block.path + where
        if isinstance(value, Problem):
            yield value
        elif value is None:
            yield _not_a_string(place, field, "null")
        else:
            try:
                yield Document(value.decode("utf-8"), place)
            except UnicodeDecodeError as error:
                yield not_utf8(place, value, error.start, f"field {field!r}")


_PARSERS: dict[str, Callable[[Block, str], Iterator[Document | Problem]]] = {
    "lines": _parse_lines,
    "paragraphs": _parse_paragraphs,
    "speech": _parse_speech,
    "json lines": _parse_json_lines,
    "rows": _parse_rows,
}
