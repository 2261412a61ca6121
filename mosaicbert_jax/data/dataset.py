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

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int64, Integer

from mosaicbert_jax import buckets
from mosaicbert_jax.buckets import BucketPath, Place
from mosaicbert_jax.data.order import ShardGroups
from mosaicbert_jax.data.shard_files import (
    Cache,
    FetchedShards,
    LocalShards,
    ShardRecord,
    Shards,
    damaged,
    shard_paths,
)
from mosaicbert_jax.errors import UserError, call_it
from mosaicbert_jax.text.vocabulary import MAX_VOCAB_SIZE, SpecialTokenIds, token_dtype

FORMAT_VERSION = 1
METADATA_FILE = "dataset.json"
VOCABULARY_FILE = "vocab.txt"
_DIGEST = "digest"  # in it, of all else in it


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

    Of a data set in a bucket, the tokenizer is copied to the local cache.

    `skipped` counts by kind what could not be read and was skipped.
    """

    folder: Place
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
    def load(cls, folder: str | os.PathLike | BucketPath) -> "DatasetMetadata":
        """Read dataset.json in `folder`.

        Raises:
          UserError: there is none, it is damaged, or another version of the format wrote it.
          OSError: the bucket can't be read.
        """
        folder = buckets.place(folder)
        path = folder / METADATA_FILE
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{path}: no such file, so {folder} is not a data set; "
                "make one with `mosaicbert prepare`"
            ) from None
        except ValueError as error:
            raise damaged(path, f"it is not JSON ({error})") from None
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: format_version is {version!r} and this release reads {FORMAT_VERSION}; "
                "prepare the data set again"
            )
        digest = record.pop(_DIGEST, None)  # earlier releases wrote none
        try:
            found = cls(folder=folder, **_typed_fields(record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(path, f"{type(error).__name__}: {error}") from None
        if digest is not None and digest != found.digest:
            raise damaged(path, "it is not what its own digest says")
        if isinstance(folder, BucketPath):
            _fetch_tokenizer(folder, found.tokenizer)
        return found

    def to_json(self) -> str:
        """The text of dataset.json: keys sorted, so that equal data sets have equal bytes."""
        return _canonical({**self._record(), _DIGEST: self.digest})

    @property
    def digest(self) -> str:
        """sha256 of the rest of dataset.json, which holds the digests of all other files."""
        return hashlib.sha256(_canonical(self._record()).encode()).hexdigest()

    def _record(self) -> dict[str, Any]:
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "folder"
        }

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer."""
        return self.tokenizer.vocab_size

    @property
    def padded_vocab_size(self) -> int:
        """The same, padded to a multiple of 64."""
        return self.tokenizer.padded_vocab_size

    @property
    def special_token_ids(self) -> SpecialTokenIds:
        """Of the tokenizer."""
        return self.tokenizer.special_token_ids

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file, in the local cache if the data set is in a bucket."""
        return _local_folder(self.folder) / self.tokenizer.file


def _fetch_tokenizer(folder: BucketPath, record: TokenizerRecord) -> None:
    """Copies the tokenizer to the local cache, unless this very one is there."""
    local = _local_folder(folder)
    call_it(local, folder)
    path = local / record.file
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256:
        return
    with contextlib.suppress(FileNotFoundError):  # WordPiece alone has one
        (folder / VOCABULARY_FILE).download(local / VOCABULARY_FILE)
    with contextlib.suppress(FileNotFoundError):  # who reads it tells
        (folder / record.file).download(path)


def _local_folder(folder: Place) -> Path:
    if isinstance(folder, BucketPath):
        return buckets.cache_folder() / "data" / folder.local_part()
    return folder


def _canonical(record: dict[str, Any]) -> str:
    text = json.dumps(
        record, default=dataclasses.asdict, indent=2, sort_keys=True, ensure_ascii=False
    )
    return text + "\n"


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
    records = [fields["tokenizer"], fields["tokenizer"].special_token_ids, *fields["sources"]]
    for split in fields["splits"].values():
        records += [split, *split.shards]
    for record in records:
        _check_types(record)
    tokenizer = fields["tokenizer"]
    entries = (tokenizer.vocab_size, tokenizer.padded_vocab_size, MAX_VOCAB_SIZE)
    ids = dataclasses.astuple(tokenizer.special_token_ids)
    if sorted(entries) != list(entries) or max(ids) >= tokenizer.vocab_size:
        raise TypeError("the tokenizer's sizes do not fit each other")
    shards = (shard.name for split in fields["splits"].values() for shard in split.shards)
    for name in (fields["tokenizer"].file, *shards):
        if name in (".", "..") or Path(name).name != name:
            raise TypeError(f"{name!r} is not the name of a file of this folder")
    return fields


def _check_types(record: Any) -> None:
    """Raises TypeError for a text that is a number, or a number that is none or below 0."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.type is int and (type(value) is not int or value < 0):
            raise TypeError(f"{field.name} is not a whole number from 0 on")
        if field.type is str and type(value) is not str:
            raise TypeError(f"{field.name} is not a text")


class TokenDataset:
    """One split of a data set: memory-mapped, or fetched from a bucket ahead of its use. Sequences
    have indices 0 … len - 1.

    Copies that are sent to worker processes open the files again.

    Args:
      folder: of the data set, which may be in a bucket.
      split: which of its parts.
      without: names of shards to skip, as they are damaged. Their sequences keep their
        indices, and `is_there` tells them apart.
      together: how many shards are shuffled together at most; 0 is all of them. See `shuffled`.
      cache: for the shards of a bucket, which needs one.

    Attributes:
      metadata: what dataset.json says.
      without: as given.
      missing: how many sequences are skipped.

    Raises:
      UserError: no data set, no such split, a file that is missing or of another size than
        dataset.json says, which the message names; or a cache that is too small.
    """

    metadata: DatasetMetadata

    def __init__(
        self,
        folder: str | os.PathLike | BucketPath,
        split: str = "train",
        without: Collection[str] = (),
        together: int = 0,
        cache: Cache | None = None,
    ):
        self.metadata = DatasetMetadata.load(folder)
        self.without = frozenset(without)
        self._split, self._together, self._cache = split, together, cache
        if split not in self.metadata.splits:
            raise UserError(
                f"{folder}: the data set has no split {split!r}, only "
                f"{', '.join(sorted(self.metadata.splits))}"
            )
        shards = self.metadata.splits[split].shards
        self._is_there = np.array([shard.name not in self.without for shard in shards], bool)
        self.missing = sum(shard.sequences for shard in shards if shard.name in self.without)
        # The index of each shard's first sequence, and behind them the number of sequences.
        self._starts = np.cumsum([0, *(shard.sequences for shard in shards)])
        self._shards = self._open_shards(shards)

    def _open_shards(self, shards: tuple[ShardRecord, ...]) -> Shards:
        folder = self.metadata.folder
        dtype = token_dtype(self.metadata.padded_vocab_size)
        if not isinstance(folder, BucketPath):
            return LocalShards(folder, shards, dtype, self.without)
        if self._cache is None:
            raise ValueError(f"{folder}: a data set in a bucket needs a cache")
        sizes = [sum(file.bytes for file in each.files(folder, dtype)) for each in shards]
        groups = -(-len(shards) // self._together) if self._together else 1
        # Those that are read, and those that are fetched meanwhile.
        needed = sum(sorted(sizes)[-2 * -(-len(shards) // groups) :])
        if needed > self._cache.most_bytes:
            raise UserError(
                f"data.cache holds {self._cache.most_bytes / 1e9:.2f} GB, and two groups of "
                f"data.shuffle_shards={self._together} shards of {folder} have "
                f"{needed / 1e9:.2f} GB: raise the one or lower the other"
            )
        return FetchedShards(folder, shards, dtype, self._cache)

    def split(self, name: str) -> "TokenDataset":
        """Another split of the same data set."""
        return TokenDataset(self.metadata.folder, name, self.without, self._together, self._cache)

    @property
    def shuffled_together(self) -> int | None:
        """How many shards are shuffled together at most; None: all that there are."""
        shards = len(self.metadata.splits[self._split].shards)
        return self._together if 0 < self._together < shards else None

    def shuffled(
        self, places_S: Int64[np.ndarray, "S"], seed: int, *which: int
    ) -> Int64[np.ndarray, "S"]:
        """The sequences at some places of a random order of all; see `ShardGroups`.

        In a bucket, fetching their shards begins, and those of the group behind them.

        Args:
          which: the epoch, or whatever else tells one order from another.
        """
        order = ShardGroups.draw(self._starts, self._together, seed, *which)
        now, later = (
            [shard for shard in shards if self._is_there[shard]]
            for shards in order.shards(places_S)
        )
        self._shards.expect(now, later)
        return order.sequences(places_S)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self):
        # Pickling a memory map would copy its contents.
        return TokenDataset, (
            self.metadata.folder,
            self._split,
            self.without,
            self._together,
            self._cache,
        )

    def is_there(self, indices_S: Integer[np.ndarray, "S"]) -> Bool[np.ndarray, "S"]:
        """Which sequences are in shards that are not skipped. No index may be out of range."""
        if not self.missing:
            return np.ones(len(indices_S), bool)
        return self._is_there[np.searchsorted(self._starts, indices_S, side="right") - 1]

    def lengths(self, indices_S: Integer[np.ndarray, "S"]) -> Int[np.ndarray, "S"]:
        """The number of tokens of each sequence, int32[S], [CLS] and [SEP] included.

        Reads offsets alone. Raises IndexError for an index outside 0 … len - 1, or of a sequence
        that is skipped.
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
            source_T = self._shards.open(shard)[0]
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
            _, offsets = self._shards.open(shard)
            begins_S[chosen] = offsets[local]
            ends_S[chosen] = offsets[local + 1]
            self._check_spans(shard, begins_S[chosen], ends_S[chosen])
        return begins_S, ends_S - begins_S, by_shard

    def _check_spans(self, shard: int, begins_S: np.ndarray, ends_S: np.ndarray) -> None:
        """Raises UserError for offsets that no whole shard has."""
        lengths_S = ends_S - begins_S
        longest = self.metadata.max_seq_len
        tokens = self.metadata.splits[self._split].shards[shard].tokens
        if (lengths_S < 1).any() or (lengths_S > longest).any() or (ends_S > tokens).any():
            name = self.metadata.splits[self._split].shards[shard].name
            path = shard_paths(self.metadata.folder, name)[1]
            raise damaged(path, f"it has sequences of no or more than {longest} tokens")
