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
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.text.vocabulary import MAX_VOCAB_SIZE, SpecialTokenIds, token_dtype

FORMAT_VERSION = 1
METADATA_FILE = "dataset.json"
_DIGEST = "digest"  # in it, of all else in it


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

    `skipped` counts by kind what could not be read and was skipped.
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
                "make one with `mosaicbert prepare`"
            ) from None
        except ValueError as error:
            raise _damaged(path, f"it is not JSON ({error})") from None
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: format_version is {version!r} and this release reads {FORMAT_VERSION}; "
                "prepare the data set again"
            )
        digest = record.pop(_DIGEST, None)  # earlier releases wrote none
        try:
            found = cls(folder=Path(folder), **_typed_fields(record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from None
        if digest is not None and digest != found.digest:
            raise _damaged(path, "it is not what its own digest says")
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
        """The tokenizer's file."""
        return self.folder / self.tokenizer.file


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
    """One split of a data set, memory-mapped. Sequences have indices 0 … len - 1.

    Copies that are sent to worker processes open the files again.

    Args:
      folder: of the data set.
      split: which of its parts.
      without: names of shards to skip, as they are damaged. Their sequences keep their
        indices, and `is_there` tells them apart.

    Attributes:
      metadata: what dataset.json says.
      without: as given.
      missing: how many sequences are skipped.

    Raises:
      UserError: no data set, no such split, or a file that is missing or of another size than
        dataset.json says; the message names the file.
    """

    metadata: DatasetMetadata

    def __init__(
        self, folder: str | os.PathLike, split: str = "train", without: Collection[str] = ()
    ):
        self.metadata = DatasetMetadata.load(folder)
        self.without = frozenset(without)
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
        self._is_there = np.array([shard.name not in self.without for shard in shards], bool)
        self.missing = sum(shard.sequences for shard in shards if shard.name in self.without)
        for shard in shards:
            if shard.name in self.without:
                self._tokens.append(np.empty(0, dtype))
                self._offsets.append(np.empty(0, np.uint64))
                continue
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
        return TokenDataset, (self.metadata.folder, self._split, self.without)

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
            self._check_spans(shard, begins_S[chosen], ends_S[chosen])
        return begins_S, ends_S - begins_S, by_shard

    def _check_spans(self, shard: int, begins_S: np.ndarray, ends_S: np.ndarray) -> None:
        """Raises UserError for offsets that no whole shard has."""
        lengths_S = ends_S - begins_S
        longest = self.metadata.max_seq_len
        tokens = len(self._tokens[shard])
        if (lengths_S < 1).any() or (lengths_S > longest).any() or (ends_S > tokens).any():
            name = self.metadata.splits[self._split].shards[shard].name
            path = shard_paths(self.metadata.folder, name)[1]
            raise _damaged(path, f"it has sequences of no or more than {longest} tokens")


def shard_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of tokens and of offsets of a shard."""
    return folder / f"{name}.tokens.npy", folder / f"{name}.offsets.npy"


def _map_array(path: Path, dtype: np.dtype, size: int) -> np.ndarray:
    try:
        with warnings.catch_warnings(action="error"):  # of a header that NumPy had to guess
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        file_bytes = path.stat().st_size
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except Exception as error:  # its header is read as Python, which fails in many ways
        raise _damaged(path, f"it cannot be read as an array ({type(error).__name__})") from None
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
