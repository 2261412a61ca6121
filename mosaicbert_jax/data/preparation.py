"""From text to a data set on disk: the function behind `python -m mosaicbert_jax prepare`.

The inputs are streamed several times (digests and characters, words, ids) instead of once with
everything in memory: what is held per document is a 16-byte digest.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from mosaicbert_jax.data.corpora import Corpus, Source, find_sources
from mosaicbert_jax.data.dataset import (
    METADATA_FILE,
    DatasetMetadata,
    ShardWriter,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    token_dtype,
)
from mosaicbert_jax.data.tokenizer import (
    encode_texts,
    is_lowercase,
    load_tokenizer,
    padded_vocab_size,
    special_token_ids,
    train_tokenizer,
    vocab_size,
    vocab_text,
)
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.files import new_folder, write_synced

DEFAULT_VOCAB_SIZE = 30_522  # bert-base-uncased's
MIN_PIECE_TOKENS = 8
_BATCH_CHARS = 2**21
_BATCH_DOCUMENTS = 4096


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What to prepare, and how.

    Attributes:
      inputs: "embedded", .txt, .jsonl and .json files; see `corpora.read_documents`.
      output: the folder of the data set.
      field: the key that holds the text in JSON Lines.
      max_seq_len: most tokens of a sequence, [CLS] and [SEP] included.
      validation_fraction: the share of documents held out, drawn by the digest of their text. 5 %
        gives a small corpus enough for a steady loss; a large one needs less. 0: no such split.
      tokenizer: a vocab.txt, a tokenizer.json or a Hugging Face folder; None trains one.
      vocab_size: entries of the tokenizer trained here; None: 30,522.
      lowercase: whether the tokenizer trained here lower-cases. One that is given decides itself.
      long_documents: "truncate" keeps the first max_seq_len tokens of a document, as the recipe
        does; "split" makes consecutive sequences of them all.
    """

    inputs: tuple[str, ...]
    output: str
    field: str = "text"
    max_seq_len: int = 128
    validation_fraction: float = 0.05
    tokenizer: str | None = None
    vocab_size: int | None = None
    lowercase: bool = True
    long_documents: str = "truncate"


def prepare(options: PrepareOptions, report: Callable[[str], None] = print) -> DatasetMetadata:
    """Write a data set (see `dataset`), whole or not at all, and report on it in a few lines.

    Exact duplicates and documents without text are dropped and counted. Documents are held out
    by the digest of their text, so that the choice depends on no order and all pieces of a
    document lie in one split; the tokenizer is trained on the others only. Equal options and
    inputs give equal bytes. An output that holds this very data set already is kept.

    Returns:
      The metadata of the data set, new or kept.

    Raises:
      UserError: an option or input is wrong, no training document is left, the output holds
        something else, or it can't be written.
    """
    _check(options)
    sources = find_sources(options.inputs)
    given = load_tokenizer(options.tokenizer) if options.tokenizer is not None else None
    if given is not None and is_lowercase(given) and not options.lowercase:
        raise UserError(
            f"lowercase=False: the tokenizer {options.tokenizer} lower-cases; give a cased one"
        )
    recorded = _recorded_options(options, given)
    output = Path(os.path.abspath(options.output))
    existing = _existing(output, recorded, sources)
    if existing is not None:
        report(f"{output} is up to date: same options, same inputs")
        return existing
    try:
        with new_folder(output) as folder:
            metadata = _build(folder, options, recorded, sources, given)
        metadata = dataclasses.replace(metadata, folder=output)
    except OSError as error:
        raise UserError(
            f"{error.filename or output}: {error.strerror}; {output} was not written"
        ) from None
    for line in _summary(metadata, options):
        report(line)
    return metadata

    return dataclasses.replace(metadata, folder=output)


def split_lengths(tokens: int, room: int) -> list[int]:
    """The lengths of the consecutive pieces, at most `room` each, of a document of `tokens`.

    All pieces are full but the last; if that would be shorter than 8 tokens (or half of `room`,
    where that is less), the one before it gives up what is missing. No token is lost.
    """
    pieces = [room] * (tokens // room)
    rest = tokens % room
    if rest:
        pieces.append(rest)
        missing = min(MIN_PIECE_TOKENS, room // 2) - rest
        if missing > 0 and len(pieces) > 1:
            pieces[-2] -= missing
            pieces[-1] += missing
    return pieces


def _check(options: PrepareOptions) -> None:
    if options.max_seq_len < 8:
        raise UserError(f"max_seq_len {options.max_seq_len}: at least 8 tokens are needed")
    if not 0 <= options.validation_fraction < 1:
        raise UserError(
            f"validation_fraction {options.validation_fraction}: give a share from 0 to below 1"
        )
    if options.long_documents not in ("truncate", "split"):
        raise UserError(f'long_documents {options.long_documents!r}: give "truncate" or "split"')
    if options.tokenizer is not None and options.vocab_size is not None:
        raise UserError("vocab_size is for a tokenizer trained here; leave it or tokenizer out")


def _recorded_options(options: PrepareOptions, given: Tokenizer | None) -> dict[str, Any]:
    """All that changes the result besides the inputs' bytes."""
    recorded = {
        "field": options.field,
        "validation_fraction": options.validation_fraction,
        "long_documents": options.long_documents,
        "max_seq_len": options.max_seq_len,
    }
    if given is None:
        return recorded | {
            "tokenizer": "trained",
            "vocab_size": DEFAULT_VOCAB_SIZE if options.vocab_size is None else options.vocab_size,
            "lowercase": options.lowercase,
        }
    return recorded | {
        "tokenizer": hashlib.sha256(given.to_str().encode()).hexdigest(),
        "vocab_size": None,
        "lowercase": is_lowercase(given),
    }


def _existing(
    output: Path, recorded: dict[str, Any], sources: list[Source]
) -> DatasetMetadata | None:
    """The data set at `output` if it is the one asked for; None if there is nothing.

    Raises:
      UserError: there is something else; nothing is ever overwritten.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    advice = "choose another output, or remove it"
    if not output.is_dir():
        raise UserError(f"{output}: a file with this name exists; {advice}")
    if not (output / METADATA_FILE).is_file():
        raise UserError(f"{output}: the folder has other files and no data set; {advice}")
    metadata = DatasetMetadata.load(output)
    for name, value in recorded.items():
        if metadata.options.get(name) != value:
            raise UserError(
                f"{output}: a data set with {name} = {metadata.options.get(name)!r} is there, and "
                f"{value!r} is asked for; {advice}"
            )
    there = [source.sha256 for source in metadata.sources]
    asked = [source.sha256() for source in sources]
    if asked == there:
        return metadata
    changed = [
        source.name for source, digest in zip(sources, asked, strict=True) if digest not in there
    ]
    if changed:
        why = f"{', '.join(changed)} is not in it, or has changed since"
    else:
        why = f"it is made of {', '.join(source.name for source in metadata.sources)} in this order"
    raise UserError(f"{output}: a data set from other inputs is there ({why}); {advice}")


def _build(
    folder: Path,
    options: PrepareOptions,
    recorded: dict[str, Any],
    sources: list[Source],
    given: Tokenizer | None,
) -> DatasetMetadata:
    corpus = Corpus(sources, options.field, options.validation_fraction)
    tokenizer = given
    if tokenizer is None:
        tokenizer = train_tokenizer(
            _TrainingTexts(corpus), recorded["vocab_size"], options.lowercase
        )
    splits, without_tokens = _encode(corpus, tokenizer, options, folder)
    tokenizer_json = tokenizer.to_str(pretty=True).encode() + b"\n"
    write_synced(folder / "tokenizer.json", tokenizer_json)
    write_synced(folder / "vocab.txt", vocab_text(tokenizer).encode())
    entries = vocab_size(tokenizer)
    metadata = DatasetMetadata(
        folder=folder,
        max_seq_len=options.max_seq_len,
        tokenizer=TokenizerRecord(
            file="tokenizer.json",
            sha256=hashlib.sha256(tokenizer_json).hexdigest(),
            vocab_size=entries,
            padded_vocab_size=padded_vocab_size(entries),
            special_token_ids=special_token_ids(tokenizer),
        ),
        options=recorded,
        sources=_source_records(corpus),
        splits=splits,
        dropped_duplicates=corpus.duplicates,
        dropped_empty=corpus.empty + without_tokens,
    )
    write_synced(folder / METADATA_FILE, metadata.to_json().encode())
    return metadata


def _source_records(corpus: Corpus) -> tuple[SourceRecord, ...]:
    return tuple(
        SourceRecord(
            name=source.name,
            bytes=tally.bytes,
            sha256=tally.sha256,
            documents=tally.documents,
            license=source.license,
            attribution=source.attribution,
        )
        for source, tally in zip(corpus.sources, corpus.tallies, strict=True)
    )


class _TrainingTexts:
    """What the tokenizer may see, read afresh by each iteration."""

    def __init__(self, corpus: Corpus):
        self._corpus = corpus

    def __iter__(self) -> Iterator[str]:
        return (text for text, held_out in self._corpus.kept("training tokenizer") if not held_out)


class _Split:
    """Turns the ids of documents into sequences of one split, and counts."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer, options: PrepareOptions):
        ids = special_token_ids(tokenizer)
        self._cls, self._sep = np.array([ids.cls], np.int32), np.array([ids.sep], np.int32)
        self._room = options.max_seq_len - 2
        self._splits_long = options.long_documents == "split"
        dtype = token_dtype(padded_vocab_size(vocab_size(tokenizer)))
        self._writer = ShardWriter(folder, name, dtype)
        self.documents = self._truncated = 0

    def add(self, documents: list[Int[np.ndarray, "T"]]) -> None:
        parts: list[np.ndarray] = []
        lengths: list[int] = []
        for ids_T in documents:
            if not self._splits_long:
                self._truncated += len(ids_T) > self._room
                ids_T = ids_T[: self._room]
            pieces = split_lengths(len(ids_T), self._room)
            for begin, end in pairwise(np.cumsum([0, *pieces])):
                parts += [self._cls, ids_T[begin:end], self._sep]
            lengths += [piece + 2 for piece in pieces]
        self.documents += len(documents)
        if parts:
            self._writer.add(np.concatenate(parts), np.array(lengths))

    def close(self) -> SplitRecord:
        shards = self._writer.close()
        return SplitRecord(
            documents=self.documents,
            sequences=self._writer.sequences,
            tokens=self._writer.tokens,
            truncated_documents=self._truncated,
            shards=shards,
        )


def _encode(
    corpus: Corpus, tokenizer: Tokenizer, options: PrepareOptions, folder: Path
) -> tuple[dict[str, SplitRecord], int]:
    """Write all shards; the splits' records, and how many documents had no token.

    A split in which no document fell is left out.
    """
    # As in the original BERT, "[SEP]" in a text is text; the library would take it for the token.
    tokenizer.encode_special_tokens = True
    train = _Split(folder, "train", tokenizer, options)
    validation = _Split(folder, "validation", tokenizer, options)
    without_tokens = 0
    for batch in _batches(corpus.kept("encoding")):
        ids = encode_texts(tokenizer, [text for text, _ in batch])
        without_tokens += sum(len(ids_T) == 0 for ids_T in ids)
        for split, in_split in ((train, False), (validation, True)):
            split.add(
                [
                    ids_T
                    for ids_T, (_, held_out) in zip(ids, batch, strict=True)
                    if len(ids_T) and held_out is in_split
                ]
            )
    tokenizer.encode_special_tokens = False
    if not train.documents:
        raise UserError(
            f"no training document is left: {corpus.held_out} held out for validation, "
            f"{corpus.empty + without_tokens} empty, {corpus.duplicates} duplicates; add text, "
            "or lower validation_fraction"
        )
    splits = {"train": train.close()}
    if validation.documents:
        splits["validation"] = validation.close()
    return splits, without_tokens


def _batches(documents: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document[0])
        if chars >= _BATCH_CHARS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _summary(metadata: DatasetMetadata, options: PrepareOptions) -> list[str]:
    lines = [
        f"read {source.documents:,} documents from {source.name}" for source in metadata.sources
    ]
    lines.append(
        f"dropped {metadata.dropped_duplicates:,} duplicates and {metadata.dropped_empty:,} empty"
    )
    for name, split in metadata.splits.items():
        share = split.truncated_documents / split.documents
        lines.append(
            f"{name}: {split.documents:,} documents, {split.sequences:,} sequences, "
            f"{split.tokens:,} tokens; {share:.1%} of the documents truncated"
        )
    if options.validation_fraction and "validation" not in metadata.splits:
        lines.append(
            "no validation split: no document fell in the held-out share; raise validation_fraction"
        )
    kind = "given" if options.tokenizer is not None else "trained"
    lines.append(
        f"vocabulary: {metadata.vocab_size:,} entries ({kind}), "
        f"padded to {metadata.padded_vocab_size:,}"
    )
    lines.append(f"data set: {metadata.folder}")
    return lines
