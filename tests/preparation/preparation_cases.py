"""Small preparations and what came of them, for the tests of `prepare`."""

import dataclasses
import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.integrity import examine, shards_of
from mosaicbert_jax.preparation.preparation import PrepareOptions


def silent(line: str) -> None:
    """Nothing is printed in most tests."""


def small_options(tmp_path: Path) -> PrepareOptions:
    """300 short documents of words that name them, with which nothing is cut."""
    path = tmp_path / "in.txt"
    path.write_text("\n".join(f"document {i} of many" for i in range(300)))
    return PrepareOptions((str(path),), str(tmp_path / "out"), validation_fraction=0.2)


def with_vocab(options: PrepareOptions, folder: Path, words: str, **changes) -> PrepareOptions:
    """The options with a given tokenizer: a special layout, then the words."""
    vocab = ["the", "[PAD]", "[MASK]", "[SEP]", "[CLS]", "[UNK]", *words.split()]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    return dataclasses.replace(options, tokenizer=str(folder / "vocab.txt"), **changes)


def assert_whole(folder: str | Path) -> None:
    """All files are there and have the digests in dataset.json."""
    assert not examine(shards_of(folder), {}).damaged


def decoded(folder: str, split: str = "train") -> list[list[str]]:
    dataset = TokenDataset(folder, split)
    tokenizer = Tokenizer.from_file(str(dataset.metadata.tokenizer_path))
    tokens_T, lengths_S = dataset.gather(np.arange(len(dataset)))
    ends = np.cumsum([0, *lengths_S])
    return [
        [tokenizer.id_to_token(int(i)) for i in tokens_T[begin:end]]
        for begin, end in pairwise(ends)
    ]


def sentences(folder: str, split: str = "train") -> list[str]:
    return [" ".join(entries[1:-1]).replace(" ##", "") for entries in decoded(folder, split)]


def contents(folder: str | Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()
    }
