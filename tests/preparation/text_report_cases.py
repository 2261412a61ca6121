"""Data sets made by hand, and what a report says of them, for test_text_report.py."""

import hashlib
import re
from pathlib import Path

import numpy as np

from mosaicbert_jax.data.dataset import (
    DatasetMetadata,
    ShardRecord,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
)
from mosaicbert_jax.text.tokenizer import (
    load_tokenizer,
    padded_vocab_size,
    special_token_ids,
    vocab_size,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPELLING = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *"0123456789.,'[]", "##1"]


def a_tokenizer(folder: Path, entries: list[str], lowercase: bool = True):
    """Special tokens in an odd place, then the entries."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = dict.fromkeys(["the", "[PAD]", "[MASK]", "[SEP]", "[CLS]", "[UNK]", *entries])
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    return load_tokenizer(folder / "vocab.txt", lowercase)


def a_data_set(folder: Path, tokenizer, max_seq_len: int = 16, a_shard: int = 7, **splits):
    """Truncated documents of each split, `a_shard` of them a shard; the sequences by split."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = special_token_ids(tokenizer)
    sequences: dict[str, list[list[int]]] = {}
    records = {}
    for split, texts in splits.items():
        encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        room = max_seq_len - 2
        sequences[split] = [[ids.cls, *document[:room], ids.sep] for document in encoded]
        shards = []
        for first in range(0, len(texts), a_shard):
            some = sequences[split][first : first + a_shard]
            name = f"{split}-{len(shards):05d}"
            tokens = np.concatenate(some).astype(np.uint16)
            np.save(folder / f"{name}.tokens.npy", tokens)
            lengths = [len(sequence) for sequence in some]
            np.save(folder / f"{name}.offsets.npy", np.cumsum([0, *lengths]).astype(np.uint64))
            shards.append(ShardRecord(name, len(some), len(tokens), "", ""))
        records[split] = SplitRecord(
            documents=len(texts),
            sequences=len(texts),
            tokens=sum(map(len, sequences[split])),
            truncated_documents=sum(len(document) > room for document in encoded),
            shards=tuple(shards),
        )
    text = tokenizer.to_str()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    entries = vocab_size(tokenizer)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    metadata = DatasetMetadata(
        folder=folder,
        max_seq_len=max_seq_len,
        tokenizer=TokenizerRecord(
            "tokenizer.json", sha256, entries, padded_vocab_size(entries), ids
        ),
        options={},
        sources=(SourceRecord("in.txt", 2_500_000, "ab", 1234),),
        splits=records,
        dropped_duplicates=1,
        dropped_empty=2,
    )
    (folder / "dataset.json").write_text(metadata.to_json(), encoding="utf-8")
    return sequences


def cells(report: str, label: str) -> list[str]:
    """The other cells of the one table row that begins with `label`."""
    (row,) = [line for line in report.split("\n") if line.startswith(f"| {label}")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[2:-1]]


def table_below(report: str, line: str) -> list[list[str]]:
    """The rows of the table that follows the line, without its header."""
    (table,) = re.findall(rf"^{re.escape(line)}.*\n\n((?:\|.*\n)+)", report, re.MULTILINE)
    return [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in table.strip().split("\n")[2:]
    ]


def block_below(report: str, line: str) -> str:
    (block,) = re.findall(rf"^{re.escape(line)}[^\n]*\n\n```text\n(.*?)\n```", report, re.M | re.S)
    return block


def share(cell: str) -> float:
    return float(cell.removesuffix("%")) / 100
