"""Documents from CSV, Parquet and ArrayRecord, and what is wrong with such files."""

import contextlib
import csv
import gzip
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaicbert_jax.text.readers import Problem, blocks, documents
from mosaicbert_jax.text.sources import InputFile, find_sources, input_bytes
from mosaicbert_jax.text.streams import Follower, Tally
from tests.text.test_readers import block_bytes, read, texts, write


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.csv", "id,text\n1,one\n2,two", [("one", 2), ("two", 3)]),
        ("a.csv", 'text\r\n"a\r\n\n\n""b,c"""\r\n\r\nd\r\n', [('a\r\n\n\n"b,c"', 2), ("d", 7)]),
        ("a.csv", "\ufefftext,id\none,\n,2\n", [("one", 2), ("", 3)]),
        ("a.csv", "\n\ntext\na\0b\n\u2028c\x85\n", [("a\0b", 4), ("\u2028c\x85", 5)]),
        ("a.csv", "text\rone\rtwo", [("one", 2), ("two", 3)]),  # as in old spreadsheets
        ("a.tsv", 'id\ttext\n1\tone, two\n2\t"a\tb"\n', [("one, two", 2), ("a\tb", 3)]),
    ],
)  # fmt: skip
def test_csv(tmp_path, name, data, expected):
    path = write(tmp_path / name, data)
    for length in (1, 10, 1000):
        with block_bytes(length):
            assert [(document.text, document.place) for document in read(path)] == [
                (text, f"{path}:{line}") for text, line in expected
            ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("id,body\n1,2\n", ["no field: no column 'text', only 'id', 'body'; name the column"]),
        ("text,n\na,1\nb\nc,3\n", ["a", "ragged row:3: fields: 1 in this row, 2 in the head", "c"]),
        ("n,text\n1,a, b\n2,c\n", ["ragged row:2: fields: 3 in this row, 2 in the head", "c"]),
        (
            b"text,n\na\xe9,1\nb,\xe9\n",
            ["not UTF-8:2: byte 2 of field 'text' is not UTF", "b"],
        ),
        ('text\n"a"b\nc\n', ["bad quotes:2: the row that begins here can't be read (',' exp", "c"]),
        ('text\na\n"b\nc\nd', ["a", "bad quotes:3: the row that begins here can't be read (un"]),
        ('text\n"b\nc"d\ne\n', ["bad quotes:2: the row that begins here"]),  # where does e belong?
        ('"text', ["bad quotes:1: the row that begins here can't be read"]),
        ("text\n", ["empty file: no text in it"]),
        ("", ["empty file: no text in it"]),
        ("\n\n", ["empty file: no text in it"]),
    ],
)
def test_mistakes_in_csv(tmp_path, data, expected):
    path = write(tmp_path / "a.csv", data)
    for length in (1, 1000):
        with block_bytes(length):
            found = [
                f"{each.kind}{str(each).removeprefix(str(path))}"
                if isinstance(each, Problem)
                else each.text
                for each in read(path)
            ]
            starts = [text[: len(start)] for text, start in zip(found, expected, strict=True)]
            assert starts == expected


def test_a_quote_that_is_never_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("mosaicbert_jax.text.table_readers._FIELD_CHARACTERS", 200_000)
    path = write(tmp_path / "a.csv", 'text\na\n"b\n' + "c\n" * 200_000)
    document, problem = read(path)
    assert document.text == "a"
    assert "a.csv:3: " in str(problem)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from('a,"\n\r\té'), max_size=8), min_size=1), st.integers(1, 50))
def test_csv_survives_its_own_writer(tmp_path_factory, rows, length):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([["id", "text"], *([i, row] for i, row in enumerate(rows))])
    with block_bytes(length):
        assert texts(path) == rows


_ROWS = ["one", "", "trois\né", "a\0b", *(f"row {i}" * 20 for i in range(3000))]


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_parquet(tmp_path, kind):
    column = pa.array(_ROWS)
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    path = tmp_path / "a.parquet"
    table = pa.table({"id": list(range(len(_ROWS))), "text": column, "text.more": column})
    pq.write_table(table, path, row_group_size=1000)
    assert pq.read_schema(path).field("text").type == column.type
    for length in (50, 1000, 2**20):
        with block_bytes(length):
            found = read(path)
    assert [document.text for document in found] == _ROWS
    assert [found[0].place, found[-1].place] == [f"{path}: row 1", f"{path}: row {len(_ROWS)}"]
    assert texts(path, "text.more") == _ROWS


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_compressed_parquet(tmp_path, suffix):
    pq.write_table(pa.table({"text": _ROWS}), tmp_path / "a.parquet")
    path = tmp_path / f"b.parquet.{suffix}"
    with pa.CompressedOutputStream(str(path), {"gz": "gzip"}.get(suffix, "zstd")) as file:
        file.write((tmp_path / "a.parquet").read_bytes())
    assert texts(path) == _ROWS
    path.write_bytes(path.read_bytes()[:-20])
    (problem,) = read(path)
    assert problem.kind == "truncated file"


def test_nulls_and_bad_bytes_in_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    bad = pa.array([b"a", None, b"b\xe9", b"c"]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), path)
    a, null, not_utf8, c = read(path)
    assert (a.text, c.text) == ("a", "c")
    assert null.kind == "not a string"
    assert str(null).startswith(f"{path}: row 2: field 'text' holds null, not a string; name")
    assert not_utf8.kind == "not UTF-8"
    assert str(not_utf8).startswith(f"{path}: row 3: byte 2 of field 'text' is not UTF-8")


@pytest.mark.parametrize(
    ("table", "kind", "message"),
    [
        ({"body": ["a"], "id": [1]}, "no field", "no column 'text', only 'body', 'id'; name the"),
        ({"text": [1]}, "not a string", "column 'text' holds int64, not strings; name the column"),
        ({"text": [["a"]]}, "not a string", "column 'text' holds list<"),
        ({"text": [{"a": "b"}]}, "not a string", "column 'text' holds struct<"),
        ({"text": pa.array([], pa.string())}, "empty file", "no text in it"),
    ],
)
def test_mistakes_in_parquet(tmp_path, table, kind, message):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(table), path)
    (problem,) = read(path)
    assert problem.kind == kind
    assert str(problem).startswith(f"{path}: {message}")


def test_broken_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": _ROWS}), path, row_group_size=1000, compression="snappy")
    whole = path.read_bytes()
    for data, kind in [
        (b"", "empty file"),
        (whole[:-100], "damaged file"),
        (whole[:10], "damaged file"),
        (b"text\n" * 100, "damaged file"),
    ]:
        (problem,) = read(write(path, data))
        assert problem.kind == kind
    # Damage in the last row group: what comes before is there.
    start = pq.ParquetFile(write(path, whole)).metadata.row_group(2).column(0).data_page_offset
    write(path, whole[:start] + bytes(100) + whole[start + 100 :])
    *found, problem = read(path)
    assert problem.kind == "damaged file"
    assert [document.text for document in found] == _ROWS[: len(found)]
    assert len(found) >= 1792  # whole batches


def test_parquet_is_streamed(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": _ROWS * 20}), path, compression="none", use_dictionary=False)
    size = input_bytes(InputFile(path, "parquet"))
    tally = Tally()
    seen = []
    with block_bytes(size // 20):
        seen = [tally.bytes / size for _ in blocks(InputFile(path, "parquet"), "text", tally)]
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert 0 < seen[1] < 0.2
    assert 0.8 < seen[-1] <= tally.bytes / size == 1


@pytest.fixture(scope="module")
def tfds_root(tmp_path_factory):
    """A data set as tensorflow-datasets prepares it."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # else looked for in a package of that name

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(num_classes=2),
                    "words": tfds.features.Sequence(tfds.features.Text()),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for i in range(1000):
                yield i, {"text": f"texte {i} é\0" * 50, "label": i % 2, "words": ["a", "b"]}

    root = tmp_path_factory.mktemp("tfds")
    Tiny(data_dir=root, file_format="array_record").download_and_prepare()
    path = root / "tiny/1.0.0/dataset_info.json"
    info = json.loads(path.read_text()) | {"moduleName": "no.such.module"}
    path.write_text(json.dumps(info))
    return root


def read_tfds(field: str = "text"):
    """The blocks' documents of "tfds:tiny", and the tally."""
    ((file,),) = (source.files for source in find_sources(["tfds:tiny"]))
    tally = Tally()
    found = []
    for block in blocks(file, field, tally):
        found += [block] if isinstance(block, Problem) else documents(block, field)
    with contextlib.suppress(OSError):
        whole = Tally()
        Follower(sorted(file.path.glob("tiny-train*")), whole).advance(1)
        assert (tally.bytes, tally.sha256) == (whole.bytes, whole.sha256)
        assert tally.bytes == input_bytes(file)
    return found


def test_tensorflow_data_set(tfds_root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_root))
    found = read_tfds()
    assert {document.text for document in found} == {f"texte {i} é\0" * 50 for i in range(1000)}
    assert len(found) == 1000
    assert found[6].place == f"{tfds_root}/tiny/1.0.0: row 7"
    with block_bytes(500):
        assert read_tfds() == found


@pytest.mark.parametrize(
    ("field", "kind", "message"),
    [
        ("body", "no field", "no column 'body', only 'label', 'text', 'words'; name the column"),
        ("label", "not a string", "column 'label' holds ClassLabel("),
        ("words", "not a string", "column 'words' holds Sequence("),
    ],
)
def test_features_that_are_no_text(tfds_root, monkeypatch, field, kind, message):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_root))
    (problem,) = read_tfds(field)
    assert problem.kind == kind
    assert str(problem).startswith(f"{tfds_root}/tiny/1.0.0: {message}")


def test_a_data_set_that_was_converted(tfds_root, tmp_path, monkeypatch):
    shutil.copytree(tfds_root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    path = tmp_path / "tiny/1.0.0/dataset_info.json"
    info = json.loads(path.read_text())
    info |= {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    path.write_text(json.dumps(info))
    assert len(read_tfds()) == 1000


def test_broken_tensorflow_data_sets(tfds_root, tmp_path, monkeypatch):
    shutil.copytree(tfds_root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (path,) = (tmp_path / "tiny/1.0.0").glob("*-train*")
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", whole[:100] + bytes(1000) + whole[1100:]):
        path.write_bytes(data)
        *found, problem = read_tfds()
        assert problem.kind == "damaged file"
        assert "ArrayRecord (" in str(problem)
        assert len(found) < 1000
    write(path, whole)
    (path.parent / "features.json").unlink()
    (problem,) = read_tfds()
    assert problem.kind == "damaged file"
    write(path.parent / "features.json", "{")
    (problem,) = read_tfds()
    assert problem.kind == "damaged file"


def test_compressed_csv(tmp_path):
    path = write(tmp_path / "a.csv.gz", gzip.compress(b'text\none\n"two\nlines"\n'))
    assert texts(path) == ["one", "two\nlines"]
