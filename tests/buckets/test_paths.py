"""Files in buckets: whole or an error in one line, whatever happens between client and server."""

import io
import os

import pytest

from campaigns.bucket_servers import Rules
from mosaicbert_jax import buckets

DATA = os.urandom(2_000_000)


def often(fault, every=2):
    """Every other request fails, the first one too."""
    first = []

    def rule(number, method, path):
        first.append(number)
        return fault if (number - first[0]) % every == 0 else None

    return Rules(fault=rule)


def test_what_was_written_is_read(place, tmp_path):
    assert not place.exists()
    assert place.files() == {}
    (place / "one.txt").write_bytes(b"one")
    (place / "in" / "two.bin").write_bytes(DATA)
    assert place.is_dir()
    assert not place.is_file()
    assert (place / "one.txt").is_file()
    assert [(name, stat.st_size) for name, stat in place.files().items()] == [
        ("in/two.bin", len(DATA)),
        ("one.txt", 3),
    ]
    assert (place / "one.txt").read_text() == "one"
    (place / "in" / "two.bin").download(tmp_path / "new" / "two.bin")
    assert (tmp_path / "new" / "two.bin").read_bytes() == DATA
    assert os.listdir(tmp_path / "new") == ["two.bin"]
    (place / "three").upload(tmp_path / "new" / "two.bin")
    assert (place / "three").read_bytes() == DATA
    before = (place / "three").stat()
    (place / "three").write_bytes(DATA[:-1] + b"x")
    assert (place / "three").stat() != before
    (place / "three").unlink()
    (place / "three").unlink(missing_ok=True)
    assert not (place / "three").exists()


def test_what_is_there_is_not_made_anew(place):
    (place / "one").write_bytes(b"1", new=True)
    with pytest.raises(FileExistsError):
        (place / "one").write_bytes(b"2", new=True)
    assert (place / "one").read_bytes() == b"1"


@pytest.mark.parametrize("store", ["gs"], indirect=True)  # S3's clients mend such names
def test_names_that_lead_out_of_a_folder_are_skipped(place, tmp_path):
    (place / "one").write_bytes(b"1")
    (place / ".." / ".." / "two").write_bytes(b"2")
    (place / "in" / ".." / ".." / "three").write_bytes(b"3")
    assert place.files().keys() == {"one"}
    copy = buckets.local_copy(place)
    assert [path.name for path in copy.rglob("*")] == ["one"]


def test_patterns(place):
    for name in ("a.txt", "b/c.txt", "b/d.jsonl"):
        (place / name).write_bytes(b"x")
    assert (place / "*.txt").glob() == [place / "a.txt"]
    assert (place / "**" / "*.txt").glob() == [place / "a.txt", place / "b/c.txt"]


def test_a_file_is_read_in_pieces(place, monkeypatch):
    monkeypatch.setattr(buckets, "_READ_BYTES", 300_000)
    (place / "file").write_bytes(DATA)
    with io.BufferedReader((place / "file").open()) as file:
        assert file.read() == DATA
        assert file.seek(-5, io.SEEK_END) == len(DATA) - 5
        assert file.read() == DATA[-5:]
        file.seek(1_000_000)
        assert file.read(700_000) == DATA[1_000_000:1_700_000]


@pytest.mark.parametrize("fault", ["500", "reset", "truncate", "slow"])
def test_what_may_pass_is_tried_again(store, place, tmp_path, fault, monkeypatch):
    monkeypatch.setattr(buckets, "PATIENCE", 30.0)
    (place / "file").write_bytes(DATA)
    store.proxy.rules = often(fault, every=4)
    assert (place / "file").read_bytes() == DATA
    (place / "file").download(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    (place / "other").write_bytes(DATA[::-1])
    with io.BufferedReader((place / "file").open()) as file:
        assert file.read() == DATA
    assert place.files().keys() == {"file", "other"}
    store.proxy.rules = Rules()
    assert (place / "other").read_bytes() == DATA[::-1]
    assert store.proxy.faults.count(fault) >= 2


def test_what_does_not_pass_is_told(store, place, tmp_path):
    store.proxy.rules = Rules(fault=lambda number, method, path: "403")
    with pytest.raises(PermissionError) as denied:
        (place / "file").read_bytes()
    assert denied.value.filename == str(place / "file")
    assert "access is denied" in denied.value.strerror
    assert "\n" not in denied.value.strerror
    store.proxy.rules = Rules()
    for action in (
        lambda: (place / "none").read_bytes(),
        lambda: (place / "none").stat(),
        lambda: (place / "none").download(tmp_path / "none"),
        lambda: (place / "none").open(),
        lambda: (place / "none").unlink(),
        lambda: buckets.place(f"{store.scheme}://no-such-bucket/file").write_bytes(b"x"),
        lambda: buckets.place(f"{store.scheme}://no-such-bucket").files(),
    ):
        if store.scheme == "s3" and action.__code__.co_names[-1] == "unlink":
            continue  # S3 deletes what is not there too
        with pytest.raises(FileNotFoundError, match="no such"):
            action()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError) as missing:
        (place / "file").upload(tmp_path / "none")
    assert missing.value.filename == str(tmp_path / "none")


@pytest.mark.parametrize("text", ["s3://", "gs:///"])
def test_a_url_without_a_bucket(text):
    with pytest.raises(buckets.UserError, match="no bucket"):
        buckets.place(text)


def test_places_tell_local_paths_from_buckets(tmp_path):
    assert buckets.place(tmp_path) is not None
    assert buckets.place(str(tmp_path)) == tmp_path
    assert str(buckets.place("s3://b//c/./d/")) == "s3://b/c/./d"
    assert buckets.place("gs://b/c").name == "c"
    assert buckets.place("gs://b/c.txt.gz").suffix == ".gz"
    assert str(buckets.place("gs://b/c").parent) == "gs://b"
    assert str(buckets.place("s3://b/../c").local_part()) == "s3/b/c"


def test_a_package_that_is_missing(monkeypatch):
    import sys

    buckets.forget_connections()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(buckets.UserError, match=r"pip install 'mosaicbert-jax\[s3\]'"):
        buckets.place("s3://bucket/x").exists()
