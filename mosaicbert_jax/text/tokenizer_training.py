"""Trains tokenizers: BERT's WordPiece, and byte-level BPE, to which no text is unknown."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.models import BPE, WordPiece

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.text.tokenizer import SPECIAL_TOKENS, bert_tokenizer
from mosaicbert_jax.text.vocabulary import MAX_VOCAB_SIZE

WORDPIECE, BPE_MODEL = "wordpiece", "bpe"
MODELS = (WORDPIECE, BPE_MODEL)
# Entries that a model can't do without: for BPE each byte, and the special tokens.
MIN_VOCAB_SIZE = {WORDPIECE: 32, BPE_MODEL: 256 + len(SPECIAL_TOKENS)}
# Rarer characters become [UNK], as in the vocabularies that Google trained.
_ALPHABET_LIMIT = 1000
_MIN_FREQUENCY = 2
_COUNTED_CHARS = 2**20


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, lowercase: bool = True, model: str = WORDPIECE
) -> Tokenizer:
    """Train a vocabulary of at most `vocab_size` entries; the same one on every run.

    Args:
      texts: iterated twice, so a collection, or an object whose __iter__ starts over; one pass
        counts characters, the other words. Neither holds the texts.
      vocab_size: entries asked for, special tokens included. Little text yields fewer.
      lowercase: lower-case first; for WordPiece, strip accents too, as bert-base-uncased does.
      model: of MODELS.

    Raises:
      UserError: see `check_vocab_size`.
      ValueError: `texts` is an iterator, which can't be read twice.
    """
    check_vocab_size(vocab_size, model)
    if iter(texts) is texts:
        raise ValueError("texts must be iterable twice; an iterator is not")
    return (_train_bpe if model == BPE_MODEL else _train_wordpiece)(texts, vocab_size, lowercase)


def _train_bpe(texts: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """Byte-level BPE as GPT-2 has it (Radford et al., 2019), with BERT's special tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        # A mask stands for a token that holds the space before a word, and takes that in text.
        special_tokens=[
            AddedToken(token, lstrip=token == "[MASK]", special=True) for token in SPECIAL_TOKENS
        ],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    cls, sep = ((token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]"))
    # For those who call the tokenizer themselves; `encode_texts` skips it.
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    return tokenizer


def _train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    blank = bert_tokenizer({token: i for i, token in enumerate(SPECIAL_TOKENS)}, lowercase)
    alphabet = _alphabet(blank, texts, min(_ALPHABET_LIMIT, (vocab_size - 5) // 2))
    # The library numbers ##x as it meets them in a hash map, another order on each run, and breaks
    # ties between merges by these numbers. Named as special tokens they are numbered in our order;
    # only the vocabulary of this trainer is used. As in BERT's own, x and ##x come together.
    continuing = [f"##{char}" for char in alphabet if _can_continue(blank, char)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[*SPECIAL_TOKENS, *continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix="##",
        show_progress=False,
    )
    learner = Tokenizer(WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    learner.train_from_iterator(texts, trainer)
    return bert_tokenizer(learner.get_vocab(with_added_tokens=False), lowercase)


def check_vocab_size(entries: int, model: str = WORDPIECE) -> None:
    """Raises UserError for a size that no tokenizer can be trained to."""
    if model not in MODELS:
        raise UserError(f"tokenizer_model {model!r} is not one of {', '.join(MODELS)}")
    if entries < MIN_VOCAB_SIZE[model]:
        least = MIN_VOCAB_SIZE[model]
        raise UserError(f"vocab_size {entries}: at least {least} entries are needed")
    if entries > MAX_VOCAB_SIZE:
        raise UserError(f"vocab_size {entries}: at most {MAX_VOCAB_SIZE:,} entries are allowed")


def _alphabet(tokenizer: Tokenizer, texts: Iterable[str], limit: int) -> list[str]:
    """The `limit` most frequent characters after normalisation, in the order of their code points.

    The trainer has a limit of its own, but which of equally rare characters it keeps is chance.
    """
    raw = np.zeros(sys.maxunicode + 1, np.int64)
    for text in _joined(texts, _COUNTED_CHARS):
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        raw += np.bincount(codes, minlength=len(raw))
    counts: Counter[str] = Counter()
    for code in np.flatnonzero(raw):
        for normalized in tokenizer.normalizer.normalize_str(chr(code)).split():
            for part in normalized:
                counts[part] += int(raw[code])
    ranked = sorted(counts, key=lambda char: (-counts[char], char))
    return sorted(ranked[:limit])


def _joined(texts: Iterable[str], chars: int) -> Iterator[str]:
    """The same characters in fewer texts, of about `chars`."""
    parts: list[str] = []
    found = 0
    for text in texts:
        parts.append(text)
        found += len(text)
        if found >= chars:
            yield "".join(parts)
            parts, found = [], 0
    yield "".join(parts)


def _can_continue(tokenizer: Tokenizer, char: str) -> bool:
    """Whether a word can continue with `char`: not with punctuation or a Chinese character."""
    text = tokenizer.normalizer.normalize_str(f"a{char}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1
