"""Writing the token shards of a data set; `dataset` says what is in them.

Shape letters: S sequences, T tokens.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from mosaicbert_jax import buckets
from mosaicbert_jax.buckets import BucketPath, Place
from mosaicbert_jax.data.shard_files import ShardRecord, shard_paths


class ShardWriter:
    """Collects the sequences of one split and writes them as shards. Usage:

        writer = ShardWriter(folder, "train", token_dtype(padded_vocab_size))
        writer.add(tokens_T, lengths_S)         # as often as there are batches
        writer.flush()                          # a shard of all that was added since the last one
        records = writer.close()                # tuple of ShardRecord, for dataset.json

    Args:
      folder: of the data set, which may be in a bucket.
      split: "train" or "validation".
      dtype: of the tokens on disk.
      records: the shards that are there already.
    """

    def __init__(
        self,
        folder: str | os.PathLike | BucketPath,
        split: str,
        dtype: np.dtype | type,
        records: Iterable[ShardRecord] = (),
    ):
        self._folder = buckets.place(folder)
        self._split = split
        self._dtype = np.dtype(dtype)
        self._records = list(records)
        self._tokens: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self.buffered_bytes = 0

    @property
    def records(self) -> tuple[ShardRecord, ...]:
        """The shards that are written, in order."""
        return tuple(self._records)

    def add(self, tokens_T: Integer[np.ndarray, "T"], lengths_S: Integer[np.ndarray, "S"]) -> None:
        """Append S sequences that lie one after another in `tokens_T`.

        Raises:
          ValueError: the lengths don't add up to T, one is not positive, or a token id does not
            fit the dtype.
        """
        lengths_S = np.asarray(lengths_S, np.int64)
        if not len(lengths_S):
            return
        if lengths_S.min() < 1 or lengths_S.sum() != len(tokens_T):
            raise ValueError(f"lengths sum to {lengths_S.sum()} over {len(tokens_T)} tokens")
        if tokens_T.dtype != self._dtype:
            if tokens_T.min() < 0 or tokens_T.max() > np.iinfo(self._dtype).max:
                raise ValueError(f"token ids do not fit {self._dtype}")
            tokens_T = tokens_T.astype(self._dtype)
        self._tokens.append(tokens_T)
        self._lengths.append(lengths_S)
        self.buffered_bytes += tokens_T.nbytes

    def flush(self) -> ShardRecord | None:
        """Write what was added since the last flush as one shard; nothing if there is nothing."""
        if not self._lengths:
            return None
        name = shard_name(self._split, len(self._records))
        record = write_shard(self._folder, name, self._tokens, self._lengths)
        self._records.append(record)
        self._tokens, self._lengths, self.buffered_bytes = [], [], 0
        return record

    def close(self) -> tuple[ShardRecord, ...]:
        """Write what is left; the records of all shards, in order."""
        self.flush()
        return self.records


def shard_name(split: str, number: int) -> str:
    """Of a split's shard, numbered from 0."""
    return f"{split}-{number:05d}"


def write_shard(
    folder: Place, name: str, tokens: Sequence[np.ndarray], lengths: Sequence[np.ndarray]
) -> ShardRecord:
    """Writes the two files of a shard, and waits until the disk or the bucket has them.

    Args:
      tokens: parts of the shard's tokens, in the dtype that they have on disk.
      lengths: of the sequences in each part.
    """
    if isinstance(folder, BucketPath):
        with tempfile.TemporaryDirectory(prefix="mosaicbert-") as local:
            record = write_shard(Path(local), name, tokens, lengths)
            buckets.upload_all(Path(local), folder, os.listdir(local))
        return record
    lengths_S = np.concatenate(lengths)
    offsets = np.zeros(len(lengths_S) + 1, np.uint64)
    np.cumsum(lengths_S, out=offsets[1:])
    tokens_path, offsets_path = shard_paths(folder, name)
    return ShardRecord(
        name=name,
        sequences=len(lengths_S),
        tokens=int(offsets[-1]),
        tokens_sha256=_write_array(tokens_path, tokens),
        offsets_sha256=_write_array(offsets_path, [offsets]),
    )


def _write_array(path: Path, parts: Sequence[np.ndarray]) -> str:
    """Write a .npy file of the parts one after another, wait until the disk has it; its sha256."""
    header = io.BytesIO()
    description = np.lib.format.header_data_from_array_1_0(parts[0])
    description["shape"] = (sum(len(part) for part in parts),)
    np.lib.format.write_array_header_1_0(header, description)
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for data in (header.getvalue(), *(memoryview(part).cast("B") for part in parts)):
            file.write(data)
            digest.update(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
