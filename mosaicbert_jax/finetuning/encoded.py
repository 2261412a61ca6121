"""Labeled examples as tokens: [CLS] text [SEP], or [CLS] text [SEP] other text [SEP]."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Integer, Num
from tokenizers import Tokenizer

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.finetuning.examples import Example, TaggedExample
from mosaicbert_jax.storage.target import REGRESSION, Target
from mosaicbert_jax.text.encoding import encode_documents
from mosaicbert_jax.text.tokenizer import (
    WordEncoder,
    first_piece,
    of_plain_text,
    special_token_ids,
    words_in_text,
)


@dataclasses.dataclass(frozen=True)
class EncodedExamples:
    """S examples, one after another.

    Attributes:
      tokens_T: int32, of all.
      types_T: int32, 1 on the second text of a pair and the [SEP] behind it, else 0.
      starts_S: int64, where each begins, and T at the end.
      labels_S: int32 classes or float32 values; zeros where there are no labels.
      pad_id: what stands where nothing does.
      word_labels_T: int32 where words are labeled: the class of each word at its first token, 0 if
        it has none, and -1 on all other tokens.
      cut: how many examples lost tokens, for they were too long.
    """

    tokens_T: Int[np.ndarray, "T"]
    types_T: Int[np.ndarray, "T"]
    starts_S: Int[np.ndarray, "S+1"]
    labels_S: Num[np.ndarray, "S"]
    pad_id: int
    word_labels_T: Int[np.ndarray, "T"] | None = None
    cut: int = 0

    def __len__(self) -> int:
        return len(self.labels_S)

    def lengths(self, indices_S: Integer[np.ndarray, "S"]) -> Int[np.ndarray, "S"]:
        """The number of tokens of each, special ones included."""
        return np.diff(self.starts_S)[indices_S]

    def words(self, indices_S: Integer[np.ndarray, "S"]) -> Int[np.ndarray, "S"]:
        """The number of labeled words of each."""
        before = np.concatenate([[0], np.cumsum(self.word_labels_T >= 0)])
        return np.diff(before[self.starts_S])[indices_S]

    def part(self, indices_S: Integer[np.ndarray, "S"]) -> "EncodedExamples":
        """Some examples, in the order of the indices."""
        spans = [slice(self.starts_S[i], self.starts_S[i + 1]) for i in indices_S]

        def joined(array_T: np.ndarray) -> np.ndarray:
            return np.concatenate([array_T[span] for span in spans])

        return EncodedExamples(
            joined(self.tokens_T),
            joined(self.types_T),
            np.cumsum([0, *self.lengths(indices_S)], dtype=np.int64),
            self.labels_S[indices_S],
            self.pad_id,
            None if self.word_labels_T is None else joined(self.word_labels_T),
        )

    @property
    def digest(self) -> str:
        """sha256 of everything."""
        sha256 = hashlib.sha256()
        words = [] if self.word_labels_T is None else [self.word_labels_T]
        for array in (self.tokens_T, self.types_T, self.starts_S, self.labels_S, *words):
            sha256.update(array.tobytes())
        return sha256.hexdigest()


def encode(
    examples: Sequence[Example], tokenizer: Tokenizer, target: Target, max_seq_len: int
) -> EncodedExamples:
    """Tokens and labels of examples, at most `max_seq_len` tokens each.

    Where a pair is too long, its longer text gives up tokens from its end until both are as long,
    and then both in turn (BERT's own way).

    Raises:
      UserError: a label that is not the target's, or a labeled text without a token; names the
        place.
    """
    ids, words = special_token_ids(tokenizer), WordEncoder(of_plain_text(tokenizer))
    cls, sep = np.array([ids.cls], np.int32), np.array([ids.sep], np.int32)
    firsts = encode_documents(words, [example.first for example in examples], max_seq_len)
    seconds = encode_documents(words, [example.second or "" for example in examples], max_seq_len)
    tokens, lengths, types, cut = [], [], [], 0
    for example, first_T, second_T in zip(examples, firsts, seconds, strict=True):
        is_pair = example.second is not None
        if example.label is not None and not (len(first_T) and (len(second_T) or not is_pair)):
            raise UserError(f"{example.place}: a text without a single token")
        room = max_seq_len - 3 if is_pair else max_seq_len - 2
        first, second = pair_lengths(len(first_T), len(second_T), room)
        cut += len(first_T) + len(second_T) > room
        tokens += [cls, first_T[:first], sep]
        of_first, of_second = first + 2, second + 1 if is_pair else 0
        if is_pair:
            tokens += [second_T[:second], sep]
        types += [np.zeros(of_first, np.int32), np.ones(of_second, np.int32)]
        lengths.append(of_first + of_second)
    return EncodedExamples(
        tokens_T=np.concatenate(tokens).astype(np.int32),
        types_T=np.concatenate(types),
        starts_S=np.cumsum([0, *lengths], dtype=np.int64),
        labels_S=_labels(examples, target),
        pad_id=ids.pad,
        cut=cut,
    )


def encode_tagged(
    examples: Sequence[TaggedExample], tokenizer: Tokenizer, target: Target, max_seq_len: int
) -> EncodedExamples:
    """Tokens of words, each word's label at its first token, at most `max_seq_len` tokens each.

    Words that no longer fit are cut off with their labels.

    Raises:
      UserError: a label that is not the target's, or a word without a token; names the place.
    """
    ids, encode_words = special_token_ids(tokenizer), WordEncoder(of_plain_text(tokenizer))
    tokens, labels, lengths, cut = [], [], [], 0
    for example in examples:
        pieces, firsts = [np.array([ids.cls], np.int32)], [np.array([-1], np.int32)]
        names = example.labels or (None,) * len(example.words)
        in_text = words_in_text(tokenizer, example.words)
        words = zip(example.words, names, encode_words(in_text), strict=True)
        for number, (word, name, word_T) in enumerate(words, 1):
            place = f"{example.place}, word {number}"
            if not len(word_T):
                raise UserError(f"{place}: {word!r} has no token")
            pieces.append(word_T)
            firsts.append(np.full(len(word_T), -1, np.int32))
            firsts[-1][first_piece(tokenizer, word_T)] = (
                0 if name is None else target.number(name, place)
            )
        kept = slice(max_seq_len - 1)
        tokens += [np.concatenate(pieces)[kept], np.array([ids.sep], np.int32)]
        labels += [np.concatenate(firsts)[kept], np.array([-1], np.int32)]
        lengths.append(len(tokens[-2]) + 1)
        cut += sum(map(len, pieces)) > max_seq_len - 1
    tokens_T = np.concatenate(tokens).astype(np.int32)
    return EncodedExamples(
        tokens_T,
        np.zeros_like(tokens_T),
        np.cumsum([0, *lengths], dtype=np.int64),
        np.zeros(len(examples), np.int32),
        ids.pad,
        np.concatenate(labels),
        cut,
    )


def pair_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair are kept, so that both fit."""
    if first + second <= room:
        return first, second
    if second <= room // 2:
        return room - second, second
    if first <= room - room // 2:
        return first, room - first
    return room - room // 2, room // 2


def _labels(examples: Sequence[Example], target: Target) -> np.ndarray:
    dtype = np.float32 if target.kind == REGRESSION else np.int32
    return np.array(
        [0 if e.label is None else target.number(e.label, e.place) for e in examples], dtype
    )
