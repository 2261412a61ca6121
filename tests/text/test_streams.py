"""Files that are read as they are, or through gzip and zstd, whole or broken."""

import gzip
import hashlib
import random

import pyarrow as pa
import pytest

from mosaicbert_jax.text.streams import BrokenStreamError, Follower, Tally, read_pieces
from tests.text.test_readers import read, texts, write

_NUMBERS = random.Random(0)
_LINES = [f"{i} {_NUMBERS.random()}" for i in range(40_000)]
_TEXT = "\n".join(_LINES).encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


_COMPRESS = {"gz": gzip.compress, "zst": zstd}
both = pytest.mark.parametrize("suffix", list(_COMPRESS))


@pytest.mark.parametrize("suffix", ["txt", *_COMPRESS])
@pytest.mark.parametrize("data", [b"", b"a", _TEXT])
def test_what_comes_out_and_what_is_counted(tmp_path, suffix, data):
    packed = _COMPRESS.get(suffix, bytes)(data)
    path = write(tmp_path / f"a.{suffix}", packed)
    tally = Tally()
    assert b"".join(read_pieces(path, tally)) == data
    assert b"".join(read_pieces(path)) == data
    assert tally.bytes == len(packed)
    assert tally.sha256 == hashlib.sha256(packed).hexdigest()


@both
def test_files_strung_together(tmp_path, suffix):
    compress = _COMPRESS[suffix]
    parts = [_TEXT[:1000], b"", _TEXT[1000:5_000], _TEXT[5_000:]]
    path = write(tmp_path / f"a.txt.{suffix.upper()}", b"".join(map(compress, parts)))
    assert texts(path) == _LINES


@both
def test_no_cut_goes_unnoticed(tmp_path, suffix):
    one = _COMPRESS[suffix](_TEXT)
    two = one + _COMPRESS[suffix](b"more\n" * 1000)
    lines = [*_LINES[:-1], _LINES[-1] + "more", *["more"] * 999]
    most = 0
    for length in (
        2, 3, 4, 5, 9, 10, 11, 100, 10_000, len(one) // 2, len(one) - 9, len(one) - 8,
        len(one) - 4, len(one) - 3, len(one) - 1, len(one) + 2, len(one) + 4, len(one) + 11,
        len(two) - 8, len(two) - 1,
    ):  # fmt: skip
        *found, problem = read(write(tmp_path / f"a.txt.{suffix}", two[:length]))
        assert problem.kind == "truncated file"
        assert f"a.txt.{suffix}: the compressed data break off; fetch" in str(problem)
        assert [document.text for document in found] == lines[: len(found)]
        most = max(most, len(found))
        # All but what one compressed block of 128 KiB may hold has come out.
        if length <= len(one):
            assert sum(len(d.text) + 1 for d in found) > len(_TEXT) * length / len(one) - 2**18
    assert most > 35_000


@both
def test_damage_is_told(tmp_path, suffix):
    packed = bytearray(_COMPRESS[suffix](_TEXT))
    # zstd has a checksum only where its writer asked for one; gzip always has.
    for start in (len(packed) // 2, 0) if suffix == "gz" else (0,):
        packed[start : start + 250] = bytes(range(250))
        *_, problem = read(write(tmp_path / f"a.txt.{suffix}", bytes(packed)))
        assert problem.kind == "damaged file"
        assert "damaged (" in str(problem)
    *found, problem = read(
        write(tmp_path / f"b.txt.{suffix}", _COMPRESS[suffix](b"a\nb\n") + b"junkjunkjunk")
    )
    assert [document.text for document in found] == ["a", "b"]
    assert problem.kind == "damaged file"


@both
def test_paragraphs_before_a_cut(tmp_path, suffix):
    paragraphs = [f"{a}\n{b}" for a, b in zip(_LINES[::2], _LINES[1::2], strict=True)]
    packed = _COMPRESS[suffix]("\n\n".join(paragraphs).encode())
    *found, problem = read(write(tmp_path / f"a.txt.{suffix}", packed[: len(packed) * 2 // 3]))
    assert problem.kind == "truncated file"
    assert [document.text for document in found] == paragraphs[: len(found)]
    assert len(found) > 8_000


@both
def test_a_disk_that_fails_is_not_the_data_s_fault(tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"a.{suffix}", _COMPRESS[suffix](_TEXT))

    def fail(self, buffer):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("mosaicbert_jax.text.streams._Counted.readinto", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        list(read_pieces(path, Tally()))
    assert not isinstance(caught.value, gzip.BadGzipFile)
    with pytest.raises(FileNotFoundError):
        next(read_pieces(tmp_path / "none"))


def test_broken_streams_say_their_kind(tmp_path):
    with pytest.raises(BrokenStreamError, match="break off") as caught:
        list(read_pieces(write(tmp_path / "a.gz", gzip.compress(_TEXT)[:-1])))
    assert caught.value.kind == "truncated file"


@pytest.mark.parametrize("start", [0, 2, 5, 6, 11])
def test_a_follower_counts_in_steps(tmp_path, start):
    parts = {"a": "12345", "b": "", "c": "6789AB"}
    paths = [write(tmp_path / name, data) for name, data in parts.items()]
    tally = Tally()
    tally.count(b"123456789AB"[:start])
    follower = Follower(paths, tally)
    follower.advance(0.4)
    assert tally.bytes == max(start, 5)
    follower.advance(1)
    assert tally.bytes == 11
    assert tally.sha256 == hashlib.sha256(b"123456789AB").hexdigest()
