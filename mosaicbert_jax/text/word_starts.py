"""Which tokens of a sequence begin a word, by the marks that the vocabulary's entries bear.

WordPiece marks what continues a word (##), SentencePiece's Unigram and BPE the space before one
(▁). Byte-level BPE marks the space too (Ġ), and cuts between letters, digits and other characters
as its pre-tokenizer does. Shape letter: V entries of the vocabulary.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, UInt8
from tokenizers import Tokenizer

from mosaicbert_jax.text.tokenizer import SPACE_MARKS, is_wordpiece, special_token_ids, vocab_size

_LETTER, _DIGIT, _OTHER = 1, 2, 3
_CONTINUES = "##"


@dataclasses.dataclass(frozen=True)
class WordStarts:
    """What decides whether a token begins a word.

    Attributes:
      begins_V: whether it does wherever it stands.
      first_V, last_V: the kinds of an entry's first and last character; a token whose first is not
        of the kind of the last before it begins a word. All 0 where that does not count.
    """

    begins_V: Bool[np.ndarray, "V"]
    first_V: UInt8[np.ndarray, "V"]
    last_V: UInt8[np.ndarray, "V"]

    def __call__(self, tokens_T: Int[np.ndarray, "T"]) -> Bool[np.ndarray, "T"]:
        """Whether each token begins a word; the first one does."""
        begins_T = self.begins_V[tokens_T]
        begins_T[1:] |= self.first_V[tokens_T[1:]] != self.last_V[tokens_T[:-1]]
        begins_T[:1] = True
        return begins_T


def word_starts(tokenizer: Tokenizer, entries: int) -> WordStarts:
    """Of a tokenizer, for ids below `entries`, which may be more than it has.

    Special tokens are words of their own.
    """
    begins_V = np.ones(entries, bool)
    first_V, last_V = np.zeros((2, entries), np.uint8)
    special = {*dataclasses.astuple(special_token_ids(tokenizer))}
    by_bytes = "ByteLevel" in repr(tokenizer.pre_tokenizer)
    byte_of = _byte_of_character()
    for number in range(vocab_size(tokenizer)):
        entry = tokenizer.id_to_token(number)
        if entry is None or number in special:
            continue
        if is_wordpiece(tokenizer):
            begins_V[number] = not entry.startswith(_CONTINUES)
            continue
        begins_V[number] = entry.startswith(SPACE_MARKS)
        if by_bytes:
            text = bytes(byte_of.get(char, 0) for char in entry).decode("utf-8", "replace")
            begins_V[number] |= text[:1].isspace()
            kinds = [_kind(char) for char in text.lstrip() or text]
            first_V[number], last_V[number] = kinds[0], kinds[-1]
    return WordStarts(begins_V, first_V, last_V)


def _kind(char: str) -> int:
    # What is no whole character is a piece of a letter, of most scripts.
    if char.isalpha() or char == "\N{REPLACEMENT CHARACTER}":
        return _LETTER
    return _DIGIT if char.isnumeric() else _OTHER


def _byte_of_character() -> dict[str, int]:
    """The byte for which each character of byte-level BPE stands (Radford et al., 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
