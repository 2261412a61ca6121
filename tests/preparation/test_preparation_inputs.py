"""prepare on all kinds of input, bad input, awkward input, and the report."""

import dataclasses
import gzip
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare
from tests.preparation.preparation_cases import (
    contents,
    sentences,
    silent,
    small_options,
    with_vocab,
)


@pytest.fixture
def options(tmp_path) -> PrepareOptions:
    return small_options(tmp_path)


def test_report(tmp_path, options):
    path = Path(options.inputs[0])
    path.write_text("\n".join(f"the acetyltransferase {i % 7} {i}" for i in range(300)))
    (tmp_path / "general").mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    digits = [f"{mark}{i}" for i in range(10) for mark in ("", "##")]
    words = ["the", "ace", "##tyl", "##transfer", "##ase", *digits]
    (tmp_path / "general" / "vocab.txt").write_text("\n".join([*special, *words]))
    options = dataclasses.replace(
        options, vocab_size=200, report=True, compare_with=str(tmp_path / "general" / "vocab.txt")
    )
    said: list[str] = []
    metadata = prepare(options, said.append)
    report = (Path(options.output) / "report.md").read_text()
    assert report in said[-1]
    assert f"{metadata.splits['train'].documents:,}" in report
    row = next(line for line in report.split("\n") if line.startswith("| acetyltransferase"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    held_out = metadata.splits["validation"].documents
    assert cells == [
        "acetyltransferase",
        str(300 - held_out),
        "acetyltransferase",
        "ace ##tyl ##transfer ##ase",
    ]
    assert "general" in report
    before = contents(options.output)
    (Path(options.output) / "report.md").unlink()
    prepare(options, silent)  # of a data set that is there already
    assert contents(options.output) == before


def test_all_kinds_of_input_together(tmp_path, options):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("document 1\ndocument 2\n")
    with gzip.open(folder / "b.json.gz", "wt") as file:
        file.write('{"text": "document 3"}\n{"text": "document 1"}\n')
    (folder / "c.csv").write_text('id,text\n1,"document\n4"\n2,document 5\n')
    table = pyarrow.table({"text": ["document 6", "document 7"]})
    pyarrow.parquet.write_table(table, folder / "d.parquet")
    (folder / "notes.md").write_text("not read")
    options = with_vocab(
        options, tmp_path, "document 1 2 3 4 5 6 7", inputs=(str(folder),), validation_fraction=0
    )
    metadata = prepare(options, silent)
    assert sorted(sentences(options.output)) == [f"document {i}" for i in range(1, 8)]
    (source,) = metadata.sources
    assert (source.name, source.files, source.documents) == ("in/", 4, 8)
    assert metadata.dropped_duplicates == 1
    said: list[str] = []
    prepare(options, said.append)
    assert "up to date" in said[0]


def test_what_cannot_be_read_is_skipped_and_counted(tmp_path, options):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b'{"text": "the cat"}\n{broken\n{"body": 1}\n\xff\n')
    (folder / "b.txt").write_text("")
    (folder / "d.jsonl").write_bytes(b"{broken\n" * 9)
    noise = random.Random(0).randbytes(5000).replace(b"\n", b" ")  # one line, cut within
    whole = gzip.compress(b'{"text": "the cat sat"}\n' * 3 + noise)
    (folder / "c.jsonl.gz").write_bytes(whole[:-3000])
    options = with_vocab(options, tmp_path, "cat sat", inputs=(str(folder),), validation_fraction=0)
    with pytest.raises(UserError, match=r"a\.jsonl:2: not JSON"):
        prepare(options, silent)
    said: list[str] = []
    metadata = prepare(dataclasses.replace(options, on_error="skip"), said.append)
    assert sentences(options.output) == ["the cat", "the cat sat"]
    assert {"not JSON": 10, "no field": 1, "empty file": 1, "truncated file": 1}.items() <= (
        metadata.skipped.items()
    )
    text = "\n".join(said)
    assert "1 truncated file" in text
    assert f"  {folder}/a.jsonl:2 (not JSON)" in said
    assert sum(line.startswith("  ") for line in said) == 5  # the first of them


def test_awkward_documents_survive(tmp_path, options):
    path = tmp_path / "in.jsonl"
    with path.open("w") as file:
        file.write('{"text": ""}\n' * 200_000)
        file.write('{"text": "x"}\n{"text": "the\\u0000 cat"}\n')
        file.write(json.dumps({"text": "the " * 500_000 + "x" * 500_000}) + "\n")
        file.write('{"text": "cat"}\n')
    options = with_vocab(
        options, tmp_path, "cat", inputs=(str(path),), validation_fraction=0, long_documents="split"
    )
    metadata = prepare(options, silent)
    assert metadata.dropped_empty == 200_000
    found = sentences(options.output)
    assert (found[0], found[1], found[-1]) == ("[UNK]", "the cat", "cat")
    words = " ".join(found[2:-1]).split()
    assert words[:500_000] == ["the"] * 500_000
    assert set(words[500_000:]) == {"[UNK]"}
