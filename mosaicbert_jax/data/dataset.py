"""Token sequences on disk: what `prepare` writes and what training reads.

A data set is a folder:

    dataset.json              what it is made of: options, sources, splits, digests
    tokenizer.json, vocab.txt the tokenizer that made the ids
    train-00000.tokens.npy    all sequences of a shard, one after another ([CLS] … [SEP] each);
                              uint16 where the padded vocabulary has at most 65,536 entries,
                              else uint32
    train-00000.offsets.npy   uint64[sequences + 1]: sequence i is tokens[offsets[i]:offsets[i+1]]

Nothing is kept per sequence in Python, so that opening costs the same for a thousand sequences
as for a hundred million (it grows with the number of shards only).

Shape letters: S sequences, T tokens.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from mosaicbert_jax.errors import UserError

FORMAT_VERSION = 1
METADATA_FILE = "dataset.json"


@dataclasses.dataclass(frozen=True)
class SpecialTokenIds:
    """The ids of [PAD], [UNK], [CLS], [SEP] and [MASK]."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """One shard: two files, `name`.tokens.npy and `name`.offsets.npy, and their digests."""

    name: str
    sequences: int
    tokens: int
    tokens_sha256: str
    offsets_sha256: str


@dataclasses.dataclass(frozen=True)
class SplitRecord:
    """One split. `tokens` counts [CLS] and [SEP]; `documents` those with at least one sequence."""

    documents: int
    sequences: int
    tokens: int
    truncated_documents: int
    shards: tuple[ShardRecord, ...]


@dataclasses.dataclass(frozen=True)
class SourceRecord:
    """One input as it was read: `documents` before anything was dropped.

    `sha256` is that of the file, or where there are several, that of their sha256s, one a line.
    """

    name: str
    bytes: int
    sha256: str
    documents: int
    files: int = 1
    license: str | None = None
    attribution: str | None = None


@dataclasses.dataclass(frozen=True)
class TokenizerRecord:
    """`vocab_size` counts entries; `padded_vocab_size` is the model's, a multiple of 64."""

    file: str
    sha256: str
    vocab_size: int
    padded_vocab_size: int
    special_token_ids: SpecialTokenIds


@dataclasses.dataclass(frozen=True)
class DatasetMetadata:
    """dataset.json, field by field; `folder` is where it lies and no part of it.

    `skipped` counts by kind what could not be read and was left out.
    """

    folder: Path
    max_seq_len: int
    tokenizer: TokenizerRecord
    options: Mapping[str, Any]
    sources: tuple[SourceRecord, ...]
    splits: Mapping[str, SplitRecord]
    dropped_duplicates: int
    dropped_empty: int
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "DatasetMetadata":
        """Read dataset.json in `folder`.

        Raises:
          UserError: there is none, it is damaged, or another version of the format wrote it.
        """
        path = Path(folder) / METADATA_FILE
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{path}: no such file, so {folder} is not a data set; "
                "make one with `python -m mosaicbert_jax prepare`"
            ) from None
        except ValueError as error:
            raise _damaged(path, f"it is not JSON ({error})") from None
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: format_version is {version!r} and this release reads {FORMAT_VERSION}; "
                "prepare the data set again"
            )
        try:
            return cls(folder=Path(folder), **_typed_fields(record))
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from None

    def to_json(self) -> str:
        """The text of dataset.json: keys sorted, so that equal data sets have equal bytes."""
        record = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "folder"
        }
        text = json.dumps(
            record, default=dataclasses.asdict, indent=2, sort_keys=True, ensure_ascii=False
        )
        return text + "\n"

    @property
    def digest(self) -> str:
        """sha256 of the canonical dataset.json, which holds the digests of all other files."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def padded_vocab_size(self) -> int:
        return self.tokenizer.padded_vocab_size

    @property
    def special_token_ids(self) -> SpecialTokenIds:
        return self.tokenizer.special_token_ids

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / self.tokenizer.file


def _typed_fields(record: dict[str, Any]) -> dict[str, Any]:
    """The JSON objects of dataset.json as the dataclasses above; a wrong key is a TypeError."""
    fields = dict(record)
    if type(fields["max_seq_len"]) is not int:
        raise TypeError("max_seq_len is not a whole number")
    tokenizer = dict(fields["tokenizer"])
    tokenizer["special_token_ids"] = SpecialTokenIds(**tokenizer["special_token_ids"])
    fields["tokenizer"] = TokenizerRecord(**tokenizer)
    fields["sources"] = tuple(SourceRecord(**source) for source in fields["sources"])
    fields["splits"] = {
        name: SplitRecord(**{**split, "shards": tuple(ShardRecord(**s) for s in split["shards"])})
        for name, split in fields["splits"].items()
    }
    shards = (shard.name for split in fields["splits"].values() for shard in split.shards)
    for name in (fields["tokenizer"].file, *shards):
        if name in (".", "..") or Path(name).name != name:
            raise TypeError(f"{name!r} is not the name of a file of this folder")
    return fields


def token_dtype(padded_vocab_size: int) -> np.dtype:
    """The narrowest dtype of the two that the format knows: uint16 or uint32."""
    return np.dtype(np.uint16 if padded_vocab_size <= 2**16 else np.uint32)


class TokenDataset:
    """One split of a data set, memory-mapped. Sequences have indices 0 … len - 1.

    Copies that are sent to worker processes open the files again.

    Raises:
      UserError: no data set, no such split, or a file that is missing or of another size than
        dataset.json says; the message names the file.
    """

    metadata: DatasetMetadata

    def __init__(self, folder: str | os.PathLike, split: str = "train"):
        self.metadata = DatasetMetadata.load(folder)
        self._split = split
        if split not in self.metadata.splits:
            raise UserError(
                f"{folder}: the data set has no split {split!r}, only "
                f"{', '.join(sorted(self.metadata.splits))}"
            )
        shards = self.metadata.splits[split].shards
        _allow_open_files(2 * len(shards))
        dtype = token_dtype(self.metadata.padded_vocab_size)
        self._tokens: list[np.ndarray] = []
        self._offsets: list[np.ndarray] = []
        for shard in shards:
            tokens_path, offsets_path = shard_paths(self.metadata.folder, shard.name)
            self._tokens.append(_map_array(tokens_path, dtype, shard.tokens))
            self._offsets.append(_map_array(offsets_path, np.dtype(np.uint64), shard.sequences + 1))
            if self._offsets[-1][-1] != shard.tokens:
                raise _damaged(offsets_path, "its last offset is not the number of tokens")
        # The index of each shard's first sequence, and behind them the number of sequences.
        self._starts = np.cumsum([0, *(shard.sequences for shard in shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self):
        # Pickling a memory map would copy its contents.
        return TokenDataset, (self.metadata.folder, self._split)

    def lengths(self, indices_S: Integer[np.ndarray, "S"]) -> Int[np.ndarray, "S"]:
        """The number of tokens of each sequence, int32[S], [CLS] and [SEP] included.

        Reads offsets alone. Raises IndexError for an index outside 0 … len - 1.
        """
        return self._locate(indices_S)[1].astype(np.int32)

    def gather(
        self, indices_S: Integer[np.ndarray, "S"]
    ) -> tuple[Int[np.ndarray, "T"], Int[np.ndarray, "S"]]:
        """The tokens of the sequences, int32[T], one after another in the order of the indices,
        and their lengths, int32[S].

        Raises IndexError for an index outside 0 … len - 1, and UserError for a damaged shard.
        """
        begins_S, lengths_S, by_shard = self._locate(indices_S)
        places_S = np.cumsum(lengths_S) - lengths_S
        tokens_T = np.empty(int(lengths_S.sum()), np.int32)
        for shard, chosen in by_shard:
            source_T = self._tokens[shard]
            # Slices in file order: as fast as one fancy index, in an eighth of the memory.
            order = chosen[np.argsort(begins_S[chosen], kind="stable")]
            spans = zip(
                begins_S[order].tolist(),
                lengths_S[order].tolist(),
                places_S[order].tolist(),
                strict=True,
            )
            for begin, length, place in spans:
                tokens_T[place : place + length] = source_T[begin : begin + length]
        if tokens_T.size and tokens_T.max() >= self.metadata.padded_vocab_size:
            shards = self.metadata.splits[self._split].shards
            names = ", ".join(shards[shard].name for shard, _ in by_shard)
            raise UserError(
                f"{self.metadata.folder}: a token is not in the vocabulary, so one of the shards "
                f"{names} is damaged; restore it or prepare the data set again"
            )
        return tokens_T, lengths_S.astype(np.int32)

    def verify(self) -> None:
        """Read every file of this split, and the tokenizer, and compare the digests.

        Raises:
          UserError: a file is damaged; the message names it.
        """
        expected = {self.metadata.tokenizer_path: self.metadata.tokenizer.sha256}
        for shard in self.metadata.splits[self._split].shards:
            tokens_path, offsets_path = shard_paths(self.metadata.folder, shard.name)
            expected |= {tokens_path: shard.tokens_sha256, offsets_path: shard.offsets_sha256}
        for path, sha256 in expected.items():
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                raise _damaged(path, "it is missing") from None
            if found != sha256:
                raise _damaged(path, "its sha256 is not the one in dataset.json")

    def _locate(
        self, indices_S: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[tuple[int, np.ndarray]]]:
        """Begin (within its shard) and length of each sequence, int64[S]; and for each shard that
        has any, the places in `indices_S` of its sequences."""
        indices_S = np.asarray(indices_S)
        if indices_S.size and not 0 <= indices_S.min() <= indices_S.max() < len(self):
            raise IndexError(f"sequence index outside 0 … {len(self) - 1}")
        shard_S = np.searchsorted(self._starts, indices_S, side="right") - 1
        order_S = np.argsort(shard_S, kind="stable")
        cuts = np.flatnonzero(np.diff(shard_S[order_S])) + 1
        by_shard = [
            (int(shard_S[chosen[0]]), chosen) for chosen in np.split(order_S, cuts) if chosen.size
        ]
        begins_S = np.empty(len(indices_S), np.int64)
        ends_S = np.empty(len(indices_S), np.int64)
        for shard, chosen in by_shard:
            local = indices_S[chosen] - self._starts[shard]
            begins_S[chosen] = self._offsets[shard][local]
            ends_S[chosen] = self._offsets[shard][local + 1]
        return begins_S, ends_S - begins_S, by_shard


def shard_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of tokens and of offsets of a shard."""
    return folder / f"{name}.tokens.npy", folder / f"{name}.offsets.npy"


def _map_array(path: Path, dtype: np.dtype, size: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        file_bytes = path.stat().st_size
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except (ValueError, EOFError) as error:
        raise _damaged(path, str(error)) from None
    if array.dtype != dtype or array.shape != (size,) or file_bytes != array.offset + array.nbytes:
        raise _damaged(
            path, f"it holds {array.dtype}{list(array.shape)}, dataset.json says {dtype}[{size}]"
        )
    # A plain view: memmap's own slicing is several times slower.
    return array.view(np.ndarray)


def _allow_open_files(files: int) -> None:
    """Raise the soft limit for `files` and those of other data sets, of which nothing is known
    here: Python's mmap keeps a descriptor a file."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    most = 2**16 if hard == resource.RLIM_INFINITY else min(hard, max(soft, 2**16))
    if files + 128 > most:
        raise UserError(
            f"the data set needs {files} open files and this machine allows {most} in all; "
            "raise the limit (ulimit -Hn)"
        )
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path}: {why}; restore the file or prepare the data set again")
