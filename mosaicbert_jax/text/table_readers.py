"""Readers of formats with rows and columns: CSV, Parquet and tensorflow-datasets' ArrayRecord.

They take the field out of each row, so that blocks hold nothing else.
"""

import contextlib
import csv
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from mosaicbert_jax.text import blocks
from mosaicbert_jax.text.blocks import LINE_END, Block, Problem, Row, cut, no_field, pack
from mosaicbert_jax.text.sources import record_files
from mosaicbert_jax.text.streams import (
    COMPRESSIONS,
    BrokenStreamError,
    Follower,
    Tally,
    read_pieces,
)

_FIELD_CHARACTERS = 2**27  # a longer CSV field is a quote that was never closed
_ROWS_AT_ONCE = 256


def read_csv(path: Path, field: str, tally: Tally, delimiter: str) -> Iterator[Block | Problem]:
    """Reads CSV or TSV with a header; see `csv_records`."""
    records = csv_records(path, delimiter, tally)
    _, header = next(records, (0, None))
    if header is None:
        return
    if isinstance(header, Problem):
        yield header
    elif field not in header:
        yield no_field(path, "column", field, header)
    else:
        note_twice(path, header, tally)
        yield from pack(path, _csv_rows(path, records, header, header.index(field)))


def _csv_rows(path: Path, records, header: list[str], column: int) -> Iterator[Row]:
    for line, record in records:
        if isinstance(record, Problem):
            yield "", record
        elif len(record) != len(header):
            yield "", ragged(f"{path}:{line}", record, header)
        else:
            yield f":{line}", record[column].encode("utf-8", "surrogateescape")


def note_twice(path: Path, names: Sequence[str], tally: Tally) -> None:
    """Notes the columns of one name, of which the first is read."""
    for name in sorted({name for name in names if name and names.count(name) > 1}):
        tally.notes.append(f"{path}: several columns are named {name!r}; the first one is read")


def ragged(place: str, record: list[str], header: list[str]) -> Problem:
    """A row with more or fewer fields than the header."""
    return Problem(
        place,
        "ragged row",
        f"fields: {len(record)} in this row, {len(header)} in the header; fix the row, and quote "
        "fields that hold the separator",
    )


def _csv_lines(path: Path, tally: Tally) -> Iterator[str]:
    for _, data in cut(path, tally, LINE_END):
        for text in data.splitlines(keepends=True):
            # Bytes that are no UTF-8 survive; whoever parses the rows finds those in the field.
            yield text.decode("utf-8", "surrogateescape")


def csv_records(
    path: Path, delimiter: str, tally: Tally
) -> Iterator[tuple[int, list[str] | Problem]]:
    """Yields each record, or what is wrong with it, with the number of its first line.

    In CSV, quotes are doubled in quoted fields, which may hold line ends; the tally notes how many
    do. In TSV a quote is a character as any other, unless all quoted fields of the file end in
    their own line. Bytes that are no UTF-8 are surrogates in the fields.
    """
    csv.field_size_limit(_FIELD_CHARACTERS)
    quoting = csv.QUOTE_MINIMAL
    if delimiter == "\t" and not _is_quoted_tsv(path):
        quoting = csv.QUOTE_NONE
    reader = csv.reader(_csv_lines(path, tally), delimiter=delimiter, strict=True, quoting=quoting)
    spanning, first = 0, 0
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            if spanning:
                tally.notes.append(
                    f"{path}: quoted fields with line ends in them: {spanning:,}, the first in "
                    f"line {first}; if its quote is a mistake, double it"
                )
            return
        except csv.Error as error:
            yield (
                line,
                Problem(
                    f"{path}:{line}",
                    "bad quotes",
                    f"the row that begins here can't be read ({error}); close quotes, and double "
                    "those within a quoted field",
                ),
            )
            if reader.line_num > line:
                return  # Nobody knows where the next row begins.
            continue
        if record:
            if reader.line_num > line:
                spanning, first = spanning + 1, first or line
            yield line, record


def _is_quoted_tsv(path: Path) -> bool:
    """Whether there are quoted fields, and each ends in the line that it begins in."""
    found = False
    with contextlib.suppress(BrokenStreamError):  # is found again when the records are read
        for text in _csv_lines(path, Tally()):
            if '"' in text:
                try:
                    [fields] = csv.reader([text], delimiter="\t", strict=True)
                except csv.Error:
                    return False
                found = found or fields != text.rstrip("\r\n").split("\t")
    return found


def read_parquet(path: Path, field: str, tally: Tally) -> Iterator[Block | Problem]:
    """Reads one column of strings, a few pages at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    follower = Follower([path], tally)
    with _uncompressed(path, tally) as file:
        if not file.seek(0, io.SEEK_END):
            return
        try:
            table = pq.ParquetFile(file, pre_buffer=False, buffer_size=blocks.BLOCK_BYTES)
            problem = _column_problem(path, field, table.schema_arrow)
            if problem is not None:
                yield problem
                return
            note_twice(path, table.schema_arrow.names, tally)
            yield from pack(path, _parquet_rows(table, field, follower))
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            yield _damaged(path, "Parquet", error)


def _parquet_rows(table, field: str, follower: Follower) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[field]):
        # As bytes: Parquet's writers may have been careless about UTF-8.
        for value in batch.column(0).cast(pa.large_binary()).to_pylist():
            number += 1
            yield f": row {number}", value
        follower.advance(number / table.metadata.num_rows)


def _column_problem(path: Path, field: str, schema) -> Problem | None:
    import pyarrow as pa

    if field not in schema.names:
        return no_field(path, "column", field, schema.names)
    kind = schema.types[schema.names.index(field)]
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind in (pa.string(), pa.large_string(), pa.string_view()):
        return None
    return _no_text_column(path, field, kind)


@contextlib.contextmanager
def _uncompressed(path: Path, tally: Tally) -> Iterator[BinaryIO]:
    """Opens a file in which a library can seek."""
    if path.suffix.lower() not in COMPRESSIONS:
        with path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        for piece in read_pieces(path, tally):
            file.write(piece)
        file.seek(0)
        yield file


def read_tfds(path: Path, field: str, tally: Tally) -> Iterator[Block | Problem]:
    """Reads the split "train" of a data set that tensorflow-datasets prepared in folder `path`.

    Needs neither TensorFlow nor the data set's own code: the folder describes its records.
    """
    import tensorflow_datasets as tfds

    follower = Follower(record_files(path), tally)
    try:
        builder = tfds.builder_from_directory(path)
        features = builder.info.features
        if field not in features:
            yield no_field(path, "column", field, sorted(features))
        elif not isinstance(features[field], tfds.features.Text):
            yield _no_text_column(path, field, features[field])
        else:
            records = builder.as_data_source(
                "train",
                file_format="array_record",  # there may be others beside
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
            )
            decoder = tfds.features.FeaturesDict({field: features[field]})  # of this field alone
            yield from pack(path, _tfds_rows(records, decoder, field, follower))
    except OSError:
        raise
    except Exception as error:  # The libraries raise exceptions of many kinds.
        yield _damaged(path, "ArrayRecord", error)


def _tfds_rows(records, decoder, field: str, follower: Follower) -> Iterator[Row]:
    for start in range(0, len(records), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(records))
        for number, record in enumerate(records.__getitems__(range(start, stop)), start + 1):
            yield f": row {number}", decoder.deserialize_example_np(record)[field]
        follower.advance(stop / len(records))


def _no_text_column(path: Path, field: str, kind: object) -> Problem:
    return Problem(
        str(path),
        "not a string",
        f"column {field!r} holds {kind}, not strings; name the column that holds the text",
    )


def _damaged(path: Path, what: str, error: Exception) -> Problem:
    reason = " ".join(str(error).split())
    return Problem(
        str(path), "damaged file", f"no whole {what} ({reason}); fetch or make the file again"
    )
