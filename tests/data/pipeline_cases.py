"""A data set in memory, and what the tests of the stream of batches ask of it."""

import itertools
import types

import numpy as np

from mosaicbert_jax.data.dataset import DatasetMetadata, ShardRecord, SplitRecord, TokenizerRecord
from mosaicbert_jax.data.masking import ORDER_BITS
from mosaicbert_jax.data.order import shuffled
from mosaicbert_jax.data.pipeline import PackedBatches
from mosaicbert_jax.text.vocabulary import SpecialTokenIds

PAD, CLS, SEP, MASK = 0, 2, 3, 4
MAX_SEQ_LEN = 16
ARRAY_NAMES = {"tokens_BL", "segment_ids_BL", "positions_BP", "labels_BP", "weights_BP"}


class MemoryDataset:
    """[CLS] two tokens that tell the index, noise, [SEP]; what the pipeline uses of a reader."""

    def __init__(self, sequences, *, min_length=4):
        generator = np.random.default_rng(sequences)
        self.lengths_read = []
        self.indices_gathered = []
        self.sequences = []
        for index in range(sequences):
            noise = generator.integers(5, 1000, generator.integers(min_length - 4, MAX_SEQ_LEN - 3))
            name = [5 + index % 900, 5 + index // 900]
            self.sequences.append(np.array([CLS, *name, *noise, SEP], np.int32))
        self.metadata = types.SimpleNamespace(
            max_seq_len=MAX_SEQ_LEN,
            vocab_size=1000,
            padded_vocab_size=1024,
            special_token_ids=SpecialTokenIds(pad=PAD, unk=1, cls=CLS, sep=SEP, mask=MASK),
        )

    def __len__(self):
        return len(self.sequences)

    def lengths(self, indices_S):
        self.lengths_read.append(len(indices_S))
        return np.array([len(self.sequences[i]) for i in indices_S], np.int32)

    missing = 0

    def shuffled(self, places_S, seed, *which):
        return shuffled(places_S, len(self), seed, ORDER_BITS, *which)

    def gather(self, indices_S):
        self.indices_gathered.extend(indices_S.tolist())
        chosen = [self.sequences[i] for i in indices_S]
        tokens_T = np.concatenate([np.zeros(0, np.int32), *chosen])
        return tokens_T, np.array([len(tokens) for tokens in chosen], np.int32)


def write_data_set(
    folder,
    sequences,
    *,
    name=0,
    validation=0,
    max_seq_len=MAX_SEQ_LEN,
    tokenizer="the one",
    validation_fraction=0.05,
):
    """A data set on disk; each sequence is [CLS] name index split, noise, [SEP]."""
    folder.mkdir()
    splits = {}
    for split, count in (("train", sequences), ("validation", validation)):
        if count or split == "train":
            splits[split] = _write_split(folder, split, count, name)
    metadata = DatasetMetadata(
        folder=folder,
        max_seq_len=max_seq_len,
        tokenizer=TokenizerRecord(
            "tokenizer.json", tokenizer, 1000, 1024, SpecialTokenIds(PAD, 1, CLS, SEP, MASK)
        ),
        options={"validation_fraction": validation_fraction},
        sources=(),
        splits=splits,
        dropped_duplicates=0,
        dropped_empty=0,
    )
    (folder / "dataset.json").write_text(metadata.to_json(), encoding="utf-8")
    return folder


def _write_split(folder, split, count, name):
    generator = np.random.default_rng([count, name])
    found = [
        [CLS, 5 + name, 5 + index, 5 + len(split), *generator.integers(5, 1000, length), SEP]
        for index, length in enumerate(generator.integers(1, MAX_SEQ_LEN - 4, count))
    ]
    offsets = np.cumsum([0, *(len(tokens) for tokens in found)], dtype=np.uint64)
    tokens = np.concatenate([np.zeros(0), *found]).astype(np.uint16)
    np.save(folder / f"{split}-00000.offsets.npy", offsets)
    np.save(folder / f"{split}-00000.tokens.npy", tokens)
    record = ShardRecord(f"{split}-00000", count, len(tokens), split, f"{name}")
    return SplitRecord(count, count, len(tokens), 0, (record,))


SETTINGS = {
    "row_length": 24,
    "rows_per_batch": 4,
    "seed": 17,
    "masking_rate": 0.3,
    "window_size": 20,
}


def stream(dataset, count=None, **settings):
    return list(itertools.islice(iter(PackedBatches(dataset, **SETTINGS | settings)), count))


def assert_same_arrays(found, expected):
    assert set(found) == set(expected) == ARRAY_NAMES
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_same_batches(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_same_arrays(one.arrays, other.arrays)
        assert (one.sequences, one.tokens, one.overflowed, one.position) == (
            other.sequences,
            other.tokens,
            other.overflowed,
            other.position,
        )


def original_tokens(arrays):
    """The rows before masking: the labels put back where they were taken from."""
    tokens_BL = arrays["tokens_BL"].copy()
    used_BP = arrays["weights_BP"] == 1
    rows = np.nonzero(used_BP)[0]
    tokens_BL[rows, arrays["positions_BP"][used_BP]] = arrays["labels_BP"][used_BP]
    return tokens_BL


def unpacked(batch):
    """(index, original tokens, masked tokens) of each sequence of a batch, in order of reading."""
    found = []
    original_BL = original_tokens(batch.arrays)
    for original_L, masked_L, segments_L in zip(
        original_BL, batch.arrays["tokens_BL"], batch.arrays["segment_ids_BL"], strict=True
    ):
        for segment in range(1, segments_L.max() + 1):
            tokens = original_L[segments_L == segment]
            index = int(tokens[1] - 5 + 900 * (tokens[2] - 5))
            found.append((index, tokens, masked_L[segments_L == segment]))
    return found
