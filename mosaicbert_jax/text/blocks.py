"""Documents, problems, and blocks of bounded size, which the readers of all formats share."""

import codecs
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from mosaicbert_jax.text.streams import BrokenStreamError, Tally, read_pieces

BLOCK_BYTES = 2**20
_LONGEST_BYTES = 2**24
_HEAD_BYTES = 2**20  # by which a file is known to be UTF-16, or to end lines in CR alone
_ROW_BYTES = 32  # what a row takes beside its text, so that empty rows fill a block too
_NAMES_SHOWN = 12

JSON_ARRAY = "the line is a JSON array; `jq -c '.[]' FILE` writes one object a line"
LINE_END = re.compile(rb"\n")
BLANK_LINE = re.compile(rb"\n[ \t\r\f\v]*\n")  # what bytes.strip() takes away


@dataclasses.dataclass(frozen=True)
class Document:
    """One document: its text, and where it stands ("path:line", "path: row 7", "path: title")."""

    text: str
    place: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with a document or a file, and what to do; str() gives one line with all.

    `kind` is a name for counting, such as "not UTF-8", "no field" or "truncated file".
    """

    place: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


# A row's place, to be put behind the path, and its text in UTF-8, or None for a null.
Row = tuple[str, bytes | Problem | None]


@dataclasses.dataclass(frozen=True)
class Block:
    """About BLOCK_BYTES of a file, to be parsed by `readers.documents`, in any process.

    Fields:
      format: how to parse the payload, a key of the table in readers.py.
      path: of the file, for places.
      payload: lines, or rows from which the field has been taken already.
      line: the number of the payload's first line, where it is lines.
    """

    format: str
    path: str
    payload: bytes | list[Row]
    line: int = 1


def cut(path: Path, tally: Tally, boundary: re.Pattern[bytes]) -> Iterator[tuple[int, bytes]]:
    """Cuts a file at the first boundary behind each BLOCK_BYTES.

    Where it is cut depends on the file's content only. A longer stretch without a boundary is
    one block; of more than 16 MiB it is cut at a line's end, if it has lines. What precedes the
    content, a byte order mark, is dropped.

    Args:
      boundary: LINE_END or BLANK_LINE.

    Yields:
      (number of the first line, the bytes).

    Raises:
      BrokenStreamError, OSError: as in `read_pieces`; after all that ends in a boundary.
    """
    line = 1
    buffer = bytearray()
    searched = 0  # no boundary begins before, other than in the first BLOCK_BYTES

    def take(length: int) -> Iterator[tuple[int, bytes]]:
        nonlocal line, searched
        data = bytes(memoryview(buffer)[:length])
        del buffer[:length]
        if data:
            yield line, data
        line += data.count(b"\n")
        searched = 0

    try:
        for piece in text_pieces(read_pieces(path, tally)):
            buffer += piece
            while len(buffer) > BLOCK_BYTES:
                searched = max(searched, BLOCK_BYTES - 1)
                found = boundary.search(buffer, searched)
                if found and found.start() < _LONGEST_BYTES:
                    yield from take(found.end())
                elif len(buffer) > _LONGEST_BYTES + BLOCK_BYTES and (
                    line_end := buffer.rfind(b"\n", BLOCK_BYTES, _LONGEST_BYTES) + 1
                ):
                    yield from take(line_end)
                elif found:
                    yield from take(found.end())
                else:
                    last = buffer.rfind(b"\n", searched)
                    searched = len(buffer) if last < 0 else last
                    break
    except BrokenStreamError:
        ends = [found.end() for found in boundary.finditer(buffer)]
        yield from take(ends[-1] if ends else 0)
        raise
    yield from take(len(buffer))


def text_pieces(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """A text file's bytes without UTF-8's byte order mark, and with LF where lines end in CR alone.

    Raises:
      BrokenStreamError: the file is UTF-16; or as `pieces`, after all that came before.
    """
    pieces = iter(pieces)
    head, broken = b"", None
    try:
        while len(head) < _HEAD_BYTES and (piece := next(pieces, None)) is not None:
            head += piece
    except (BrokenStreamError, OSError) as error:
        broken = error
    if _is_utf16(head):
        raise BrokenStreamError(
            "not UTF-8", "the file is UTF-16; convert it with `iconv -f utf-16 -t utf-8`"
        )
    has_cr_alone = b"\r" in head[: _HEAD_BYTES - 1] and b"\n" not in head[:_HEAD_BYTES]
    for piece in itertools.chain([head.removeprefix(codecs.BOM_UTF8)], pieces):
        yield bytes(piece).replace(b"\r", b"\n") if has_cr_alone else piece
    if broken is not None:
        raise broken


def _is_utf16(head: bytes) -> bool:
    """Whether it has a byte order mark, or most bytes at odd or even places are 0 and no others."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    few, many = sorted((head[:4096:2].count(0), head[1:4096:2].count(0)))
    return few == 0 and many > max(16, len(head[:4096]) // 4)


def not_utf8(place: str, data: bytes, position: int, what: str = "the line") -> Problem:
    """Bytes that no UTF-8 has.

    Args:
      data: all of `what`.
      position: of the first such byte.
    """
    advice = "`iconv -f ENCODING -t utf-8`, with the encoding that it was written in"
    if _looks_western(data):
        advice = "`iconv -f windows-1252 -t utf-8`, as it looks like Windows-1252"
    return Problem(
        place,
        "not UTF-8",
        f"byte {position + 1} of {what} is not UTF-8; convert the file with {advice}",
    )


def _looks_western(data: bytes) -> bool:
    """Whether bytes can be Windows-1252: they are defined there, and most letters are of ASCII."""
    try:
        data.decode("windows-1252")
    except UnicodeDecodeError:
        return False
    return sum(byte >= 0x80 for byte in data) <= sum(bytes([byte]).isalpha() for byte in data)


def pack(path: Path, rows: Iterable[Row]) -> Iterator[Block]:
    """Gathers rows into blocks; those before an exception come before it."""
    payload: list[Row] = []
    length = 0
    try:
        for row in rows:
            payload.append(row)
            length += _ROW_BYTES + (len(row[1]) if isinstance(row[1], bytes) else 0)
            if length >= BLOCK_BYTES:
                yield Block("rows", str(path), payload)
                payload, length = [], 0
    except Exception:
        if payload:
            yield Block("rows", str(path), payload)
        raise
    if payload:
        yield Block("rows", str(path), payload)


def no_field(place: object, what: str, field: str, names: Iterable[str]) -> Problem:
    """The field that was asked for isn't among those that there are.

    Args:
      what: "field" or "column".
    """
    names = [*map(repr, names)]
    more = len(names) - _NAMES_SHOWN
    there = ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return Problem(
        str(place),
        "no field",
        f"no {what} {field!r}, only {there or 'none'}; name the {what} that holds the text",
    )
