"""What a tokenizer makes of a sample of text, for `text_report`.

A word is a run of text between white space, in which each punctuation mark and each Chinese
character is a word of its own: what BERT's pre-tokenizer yields, here before anything is
lower-cased, so that two tokenizers are measured with the same words.
"""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from mosaicbert_jax.markdown import columns, shortened
from mosaicbert_jax.text.tokenizer import (
    encode_texts,
    is_wordpiece,
    of_plain_text,
    special_token_ids,
)

# A word is frequent if one in so many of the sample is this word, and it is there twice at least.
_FREQUENT_ONE_IN = 50_000

Pieces = tuple[int, ...]


def count_words(sample: Iterable[str]) -> Counter[str]:
    """How often each word (see the module) occurs in the texts."""
    clean = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    cut = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in sample:
        words.update(word for word, _ in cut.pre_tokenize_str(clean.normalize_str(text)))
    return words


@dataclasses.dataclass(frozen=True)
class TokenizerFigures:
    """What a tokenizer makes of the sample.

    Attributes:
      entries: the vocabulary by id, without the five special tokens.
      used: how many of them occur in the sample.
      tokens: of the whole sample, without [CLS] and [SEP].
      pieces: the ids of each word. A word that it can't spell has `unknown_id` in them.
      unknown: the share of words with [UNK], of all words as often as they occur.
      whole: the share of words that are one piece, and it isn't [UNK].
    """

    name: str
    entries: dict[int, str]
    unknown_id: int
    used: int
    tokens: int
    tokens_a_word: float
    characters_a_token: float
    pieces: dict[str, Pieces]
    unknown: float
    whole: float

    def knows(self, word: str) -> bool:
        """Whether a word has no unknown piece."""
        return self.unknown_id not in self.pieces[word]

    def spelt(self, word: str, width: int) -> str:
        """The pieces of a word; where they need more than `width`, what fits and their number."""
        pieces = [self.entries.get(i, "?") for i in self.pieces[word]]
        if columns(text := " ".join(pieces)) <= width:
            return text
        ending = f" ({len(pieces)})"
        return shortened(text, width - len(ending)) + ending


def tokenizer_figures(
    tokenizer: Tokenizer, name: str, sample: Sequence[str], words: Counter[str]
) -> TokenizerFigures:
    """Measure a tokenizer, which stays as it is, on the sample and on the words in it."""
    special_ids = special_token_ids(tokenizer)
    tokenizer = of_plain_text(tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids_of_texts = encode_texts(tokenizer, sample)
    tokens = sum(map(len, ids_of_texts))
    used_ids = {int(i) for ids_T in ids_of_texts for i in np.unique(ids_T)}
    # As within a text, where but for WordPiece a space before a word is part of it.
    space = "" if is_wordpiece(tokenizer) else " "
    ids_of_words = encode_texts(tokenizer, [space + word for word in words])
    pieces = {word: tuple(ids.tolist()) for word, ids in zip(words, ids_of_words, strict=True)}
    unknown_id = special_ids.unk
    unknown = sum(count for word, count in words.items() if unknown_id in pieces[word])
    single = sum(count for word, count in words.items() if len(pieces[word]) == 1)
    lost = sum(count for word, count in words.items() if pieces[word] == (unknown_id,))
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    special = {*dataclasses.astuple(special_ids)}
    entries = {i: entry for entry, i in vocabulary.items() if i not in special}
    return TokenizerFigures(
        name=name,
        entries=entries,
        unknown_id=unknown_id,
        used=len(used_ids & entries.keys()),
        tokens=tokens,
        tokens_a_word=tokens / max(1, words.total()),
        characters_a_token=sum(map(len, sample)) / max(1, tokens),
        pieces=pieces,
        unknown=unknown / max(1, words.total()),
        whole=(single - lost) / max(1, words.total()),
    )


def frequent_words(words: Counter[str], *tokenizers: TokenizerFigures) -> list[tuple[str, int]]:
    """Frequent words of letters that all the tokenizers know, with their counts.

    Spellings that no tokenizer tells apart, as The and the, are one word under its commonest one.
    """
    spellings: dict[tuple[Pieces, ...], Counter[str]] = {}
    for word, count in words.items():
        if _is_plain(word) and all(tokenizer.knows(word) for tokenizer in tokenizers):
            key = tuple(tokenizer.pieces[word] for tokenizer in tokenizers)
            spellings.setdefault(key, Counter())[word] = count
    least = max(2, words.total() / _FREQUENT_ONE_IN)
    return [
        (min(counts, key=lambda word: (-counts[word], word)), counts.total())
        for counts in spellings.values()
        if counts.total() >= least
    ]


def _is_plain(word: str) -> bool:
    """Whether a word is letters alone, and marks, with which many scripts write vowels."""
    return all(unicodedata.category(char)[0] in "LM" for char in word)
