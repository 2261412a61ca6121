"""Tables and texts as people have them: stray quotes, other encodings, old line ends."""

import json
import struct

import pytest

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.text.blocks import Problem, not_utf8
from mosaicbert_jax.text.readers import blocks, documents
from mosaicbert_jax.text.sources import find_sources
from mosaicbert_jax.text.streams import Tally
from mosaicbert_jax.text.tables import rows


def prepared(path, field="text"):
    """What `prepare` reads of a file, and what it is told of it."""
    ((file,),) = (source.files for source in find_sources([path]))
    tally, found = Tally(), []
    for block in blocks(file, field, tally):
        found += [block] if isinstance(block, Problem) else documents(block, field)
    return [getattr(one, "text", one) for one in found], tally.notes


def finetuned(path):
    """The rows that finetuning reads of a file, and what it is told of it."""
    notes: list[str] = []
    return [fields for _, fields in rows(path, notes.append)], notes


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


STRAY = "text\tlabel\n" + "".join(
    f"{quote}text {i}{end}\tab\n"
    for i, (quote, end) in enumerate(
        [("", ""), ('"', ""), ("", ""), ("", '"'), ("", ""), ('"', '"')]
    )
)


def test_a_stray_quote_in_a_tsv_swallows_no_row(tmp_path):
    path = write(tmp_path / "a.tsv", STRAY)
    texts = ["text 0", '"text 1', "text 2", 'text 3"', "text 4", '"text 5"']
    assert prepared(path) == (texts, [])
    assert [row["text"] for row in finetuned(path)[0]] == texts


def test_a_tsv_whose_quotes_all_end_in_their_line_is_quoted(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"a\tb"\tx\n"say ""so"""\ty\nplain\tz\n')
    assert prepared(path) == (["a\tb", 'say "so"', "plain"], [])
    assert [row["label"] for row in finetuned(path)[0]] == ["x", "y", "z"]


def test_csv_fields_over_several_lines_are_told(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",a\nthree,b\n"four\nfive\nsix",c\n')
    texts, notes = prepared(path)
    assert texts == ["one\ntwo", "three", "four\nfive\nsix"]
    assert len(notes) == 1
    assert f"{path}: " in notes[0]
    assert ": 2," in notes[0]
    assert "line 2" in notes[0]
    assert finetuned(path) == (
        [{"text": t, "label": c} for t, c in zip(texts, "abc", strict=True)],
        notes,
    )


def test_the_first_of_two_columns_of_one_name_is_read(tmp_path):
    path = write(tmp_path / "a.csv", "text,label,text\none,x,two\n")
    texts, notes = prepared(path)
    assert texts == ["one"]
    assert "'text'" in notes[0]
    assert finetuned(path) == ([{"text": "one", "label": "x"}], notes)


def test_a_cell_of_any_length(tmp_path):
    long = "war " * 40_000
    path = write(tmp_path / "a.csv", f"text,label\n{long},a\nb,b\n")
    assert [row["text"] for row in finetuned(path)[0]] == [long, "b"]


def test_lines_that_end_in_cr_alone(tmp_path):
    text = write(tmp_path / "a.txt", b"one\rtwo\rthree\r")
    assert prepared(text)[0] == ["one", "two", "three"]
    table = write(tmp_path / "a.csv", b"text,label\rone,a\rtwo,b\r")
    assert prepared(table)[0] == ["one", "two"]
    assert [row["label"] for row in finetuned(table)[0]] == ["a", "b"]
    mixed = write(tmp_path / "b.txt", b"one\rtwo\nthree\n")  # then they are part of the text
    assert prepared(mixed)[0] == ["one\rtwo", "three"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl", "a.tsv"])
def test_utf16_is_named(tmp_path, name, encoding):
    path = write(tmp_path / name, ("text,label\n" + "one and two,a\n" * 9).encode(encoding))
    ((problem,), _) = prepared(path)
    assert problem.kind == "not UTF-8"
    assert "UTF-16" in str(problem)
    if name != "a.txt":
        with pytest.raises(UserError, match="UTF-16"):
            finetuned(path)


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ("“so” – for 5 €".encode("windows-1252"), "iconv -f windows-1252"),
        ("Война и мир".encode("windows-1251"), "iconv -f ENCODING"),
        (b"caf\x81 au lait", "iconv -f ENCODING"),  # which no Windows-1252 has
    ],
)
def test_the_advice_names_what_the_bytes_look_like(tmp_path, data, advice):
    assert advice in str(not_utf8("a.txt:1", data, 0))
    for name, before in (("a.txt", b""), ("a.csv", b"text\n"), ("a.jsonl", b'{"text": "')):
        path = write(tmp_path / name, before + data + (b'"}' if name == "a.jsonl" else b"\n"))
        ((problem,), _) = prepared(path)
        assert advice in str(problem)
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(UserError, match=advice):
            finetuned(tmp_path / name)


def test_a_zstd_frame_with_a_long_window_is_no_damage(tmp_path):
    # A frame of one raw block; the window's exponent is 31, as of zstd --long=31.
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3])
    data = b'{"text": "one"}\n'
    block = struct.pack("<I", (len(data) << 3) | 1)[:3] + data
    path = write(tmp_path / "a.jsonl.zst", frame + block)
    ((problem,), _) = prepared(path)
    assert problem.kind == "long window"
    assert "--long=31" in str(problem)


def test_a_json_array_is_named_with_what_splits_it(tmp_path):
    path = write(tmp_path / "a.json", json.dumps([{"text": "one"}, {"text": "two"}]))
    ((problem,), _) = prepared(path)
    assert "jq -c '.[]'" in str(problem)
    with pytest.raises(UserError, match="jq -c"):
        finetuned(path)


def test_other_suffixes_and_files_of_other_kinds(tmp_path):
    write(tmp_path / "a.ndjson", '{"text": "one"}\n')
    write(tmp_path / "b.text", "two\n")
    write(tmp_path / "c.pdf", "three\n")
    (source,) = find_sources([tmp_path])
    assert [file.path.name for file in source.files] == ["a.ndjson", "b.text"]
    assert "1 files of other kinds, such as c.pdf" in source.note
    assert finetuned(tmp_path / "a.ndjson")[0] == [{"text": "one"}]


def test_a_pattern_below_a_folder_with_brackets(tmp_path):
    folder = tmp_path / "part[1]"
    folder.mkdir()
    write(folder / "a.txt", "one\n")
    (source,) = find_sources([f"{folder}/*.txt"])
    assert [file.path for file in source.files] == [folder / "a.txt"]
