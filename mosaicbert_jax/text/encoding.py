"""From a block of text to token sequences: what each worker of `prepare` does.

Shape letters: D documents, S sequences, T tokens.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int, UInt, UInt64
from tokenizers import Tokenizer

from mosaicbert_jax.text.readers import Block, Problem, documents
from mosaicbert_jax.text.tokenizer import (
    WordEncoder,
    of_plain_text,
    padded_vocab_size,
    special_token_ids,
    vocab_size,
)
from mosaicbert_jax.text.vocabulary import SpecialTokenIds, token_dtype

MIN_PIECE_TOKENS = 8
_BATCH_CHARS = 2**19
_BATCH_DOCUMENTS = 4096
_PART_CHARS = 2**16
_CHARS_PER_TOKEN = 6  # more than English has


def document_digest(text: str) -> tuple[int, int]:
    """Two numbers of 64 bits that depend on the text alone.

    The first names a document: it tells duplicates and draws what is held out. The second ranks
    documents for samples, independently of the first.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


@dataclasses.dataclass(frozen=True)
class BlockSummary:
    """What is decided on without the tokens. D counts the documents that have a token.

    Attributes:
      keys_D: see `document_digest`.
      tokens_D: how many tokens each document has, [CLS] and [SEP] of its sequences included.
      unknown_D: how many of them are [UNK].
      truncated_D: whether it was cut.
      documents: that were read, those without a token included.
      problems: what could not be read.
    """

    keys_D: UInt64[np.ndarray, "D"]
    tokens_D: Int[np.ndarray, "D"]
    unknown_D: Int[np.ndarray, "D"]
    truncated_D: Bool[np.ndarray, "D"]
    documents: int
    problems: tuple[Problem, ...]


@dataclasses.dataclass(frozen=True)
class BlockTokens:
    """The sequences of a block's documents, D of them.

    Attributes:
      sequences_D: how many sequences each document has.
      lengths_S: tokens of each sequence.
      tokens_T: [CLS] … [SEP] of all sequences, one after another, in the data set's dtype.
    """

    sequences_D: Int[np.ndarray, "D"]
    lengths_S: Int[np.ndarray, "S"]
    tokens_T: UInt[np.ndarray, "T"]

    def part(self, chosen_D: Bool[np.ndarray, "D"]) -> tuple[np.ndarray, np.ndarray]:
        """tokens_T and lengths_S of some of the documents."""
        chosen_S = np.repeat(chosen_D, self.sequences_D)
        return self.tokens_T[np.repeat(chosen_S, self.lengths_S)], self.lengths_S[chosen_S]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Makes token sequences of a block, and a summary; of a problem, one with nothing but that.

    Attributes:
      tokenizer_json: the tokenizer, as it can be sent to another process.
      field: the key that holds the text.
      max_seq_len: most tokens of a sequence, [CLS] and [SEP] included.
      split_long: whether a longer document becomes several sequences, or is cut.
    """

    tokenizer_json: str
    field: str
    max_seq_len: int
    split_long: bool

    def __call__(self, block: Block | Problem) -> tuple[BlockSummary, BlockTokens]:
        """The token sequences of a block, and what is to be known of them and of the block."""
        items = [block] if isinstance(block, Problem) else list(documents(block, self.field))
        texts = [item.text for item in items if not isinstance(item, Problem)]
        room = self.max_seq_len - 2
        kept: list[tuple[int, int, bool, list[int]]] = []  # key, [UNK], whether cut, lengths
        parts: list[np.ndarray] = []
        for text, ids_T in self._encoded(texts, None if self.split_long else room):
            if not len(ids_T):
                continue
            truncated = not self.split_long and len(ids_T) > room
            ids_T = ids_T[:room] if truncated else ids_T
            pieces = split_lengths(len(ids_T), room)
            for begin, end in pairwise(np.cumsum([0, *pieces])):
                parts += [self._cls, ids_T[begin:end].astype(self._dtype), self._sep]
            unknown = int(np.count_nonzero(ids_T == self._special_ids.unk))
            kept.append((document_digest(text)[0], unknown, truncated, [n + 2 for n in pieces]))
        keys, unknown_D, truncated_D, lengths = zip(*kept, strict=True) if kept else ((),) * 4
        summary = BlockSummary(
            keys_D=np.array(keys, np.uint64),
            tokens_D=np.array([sum(of_one) for of_one in lengths], np.int64),
            unknown_D=np.array(unknown_D, np.int64),
            truncated_D=np.array(truncated_D, bool),
            documents=len(texts),
            problems=tuple(item for item in items if isinstance(item, Problem)),
        )
        return summary, BlockTokens(
            sequences_D=np.array([len(of_one) for of_one in lengths], np.int64),
            lengths_S=np.array([length for of_one in lengths for length in of_one], np.int32),
            tokens_T=np.concatenate(parts) if parts else np.empty(0, self._dtype),
        )

    def _encoded(
        self, texts: Sequence[str], most: int | None
    ) -> Iterator[tuple[str, Int[np.ndarray, "T"]]]:
        for batch in _batches(texts):
            yield from zip(batch, encode_documents(self._encode, batch, most), strict=True)

    # Built where they are used: a tokenizer is not sent to another process, its JSON is.
    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return of_plain_text(Tokenizer.from_str(self.tokenizer_json))

    @functools.cached_property
    def _encode(self) -> WordEncoder:
        return WordEncoder(self._tokenizer)

    @functools.cached_property
    def _dtype(self) -> np.dtype:
        return token_dtype(padded_vocab_size(vocab_size(self._tokenizer)))

    @functools.cached_property
    def _special_ids(self) -> SpecialTokenIds:
        return special_token_ids(Tokenizer.from_str(self.tokenizer_json))

    @functools.cached_property
    def _cls(self) -> np.ndarray:
        return np.array([self._special_ids.cls], self._dtype)

    @functools.cached_property
    def _sep(self) -> np.ndarray:
        return np.array([self._special_ids.sep], self._dtype)


def encode_documents(
    encode: Callable[[Sequence[str]], list[Int[np.ndarray, "T"]]],
    texts: Sequence[str],
    most: int | None = None,
) -> list[Int[np.ndarray, "T"]]:
    """The ids of each text, int32[T], without [CLS] and [SEP].

    A text goes to the tokenizer in parts that end between words, so that one of any length takes
    little memory; a longer stretch than 65,536 characters without white space is cut anywhere.

    Args:
      encode: `encode_texts` of a tokenizer, or a `WordEncoder`.
      most: stop after this many tokens: T is above `most` exactly if the text has more of them.
    """
    size = _PART_CHARS if most is None else min(_PART_CHARS, _CHARS_PER_TOKEN * (most + 1))
    parts: list[list[np.ndarray]] = [[] for _ in texts]
    begins = [0] * len(texts)
    found = [0] * len(texts)
    unfinished = list(range(len(texts)))
    while unfinished:
        ends = [cut_point(texts[i], begins[i], size) for i in unfinished]
        some = [texts[i][begins[i] : end] for i, end in zip(unfinished, ends, strict=True)]
        for i, end, ids_T in zip(unfinished, ends, encode(some), strict=True):
            parts[i].append(ids_T)
            begins[i] = end
            found[i] += len(ids_T)
        unfinished = [
            i
            for i in unfinished
            if begins[i] < len(texts[i]) and (most is None or found[i] <= most)
        ]
        size = min(2 * size, _PART_CHARS)
    return [some[0] if len(some) == 1 else np.concatenate(some) for some in parts]


def cut_point(text: str, begin: int, size: int) -> int:
    """Where a part of about `size` characters that begins at `begin` ends: between two words."""
    end = begin + size
    if end >= len(text):
        return len(text)
    # At a single space, as BPE has several in one token; else at any.
    before = text.rfind(" ", begin + 1, end)
    while before > begin and (
        text[before - 1].isspace() or text[before + 1 : before + 2].isspace()
    ):
        before = text.rfind(" ", begin + 1, before)
    if before > begin:
        return before
    before = max(text.rfind(" ", begin + 1, end), text.rfind("\n", begin + 1, end))
    if before > begin:
        return before
    last = begin + _PART_CHARS
    after = [
        place for place in (text.find(" ", end, last), text.find("\n", end, last)) if place > 0
    ]
    return min(after, default=min(last, len(text)))


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


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    chars = 0
    for text in texts:
        batch.append(text)
        chars += len(text)
        if chars >= _BATCH_CHARS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
