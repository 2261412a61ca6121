"""Where words begin, by the ids of a sequence alone; and masks of whole words."""

import dataclasses
import itertools

import numpy as np
import pytest

from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.masking import TokenMasking
from mosaicbert_jax.data.pipeline import PackedBatches
from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare
from mosaicbert_jax.text.tokenizer import (
    encode_texts,
    of_plain_text,
    padded_vocab_size,
    special_token_ids,
    vocab_size,
)
from mosaicbert_jax.text.tokenizer_training import train_tokenizer
from mosaicbert_jax.text.word_starts import WordStarts, word_starts
from tests.text.test_other_tokenizers import FAMILIES, TEXTS, byte_level, fallback, unigram

SENTENCE = "The unions' (1990) re-election, naïve คำ of 中国\n\tcafé x99 a  b."
# By the pre-tokenizer of each kind; spaces aside.
BY_BYTES = [
    "The", "unions", "'", "(", "1990", ")", "re", "-", "election", ",", "naïve", "คำ", "of",
    "中国", "café", "x", "99", "a", "b", ".",
]  # fmt: skip


def words_of(tokenizer, starts: WordStarts, text: str) -> list[str]:
    """The text cut where words begin, without the space before them."""
    (ids_T,) = encode_texts(tokenizer, [text])
    begins = [*np.flatnonzero(starts(ids_T)), len(ids_T)]
    pieces = [ids_T[a:b].tolist() for a, b in itertools.pairwise(begins)]
    words = [tokenizer.decode(piece, skip_special_tokens=False).strip() for piece in pieces]
    return [word for word in words if word]


@pytest.mark.parametrize("size", [270, 600])
def test_words_of_byte_level_bpe_are_its_pre_tokenizers(size):
    tokenizer = of_plain_text(train_tokenizer(TEXTS, size, False, "bpe"))
    starts = word_starts(tokenizer, padded_vocab_size(size))
    found = words_of(tokenizer, starts, SENTENCE)
    # A vowel sign of Thai is a mark, which the pre-tokenizer parts from letters.
    assert [w for w in found if w.isascii()] == [w for w in BY_BYTES if w.isascii()]


def test_words_of_wordpiece():
    tokenizer = of_plain_text(train_tokenizer(TEXTS, 200))
    starts = word_starts(tokenizer, 256)
    found = words_of(tokenizer, starts, "The unitedness (know) it.")
    assert found == ["the", "unitedness", "(", "know", ")", "it", "."]


@pytest.mark.parametrize("make", [unigram, fallback])
def test_words_of_sentencepieces_begin_at_spaces(make):
    tokenizer = of_plain_text(make(FAMILIES["Gemma"]))
    starts = word_starts(make(FAMILIES["Gemma"]), 512)
    (ids_T,) = encode_texts(tokenizer, [" a ab, cab a"])
    marks = [tokenizer.id_to_token(i).startswith("▁") for i in ids_T]
    assert starts(ids_T).tolist() == [True, *marks[1:]]
    assert sum(marks) == 4


def test_special_tokens_are_words():
    tokenizer = byte_level(FAMILIES["ModernBERT"])
    ids = special_token_ids(tokenizer)
    starts = word_starts(tokenizer, 512)
    (word_T,) = encode_texts(of_plain_text(tokenizer), ["zq"])
    tokens_T = np.array([ids.cls, *word_T, ids.mask, *word_T, ids.sep], np.int32)
    begins_T = starts(tokens_T)
    assert begins_T[[0, 1, 1 + len(word_T), 2 + len(word_T), -1]].all()
    assert begins_T.sum() == 5


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def data(request, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "set"
    options = PrepareOptions(
        (str(corpus),), str(folder), vocab_size=275, tokenizer_model=request.param
    )
    prepare(options, say=lambda line: None)
    return TokenDataset(folder)


def test_masks_take_all_of_a_word_or_nothing(data):
    from mosaicbert_jax.text.tokenizer import load_tokenizer

    metadata = data.metadata
    tokenizer = load_tokenizer(metadata.tokenizer_path)
    starts = word_starts(tokenizer, metadata.padded_vocab_size)
    settings = {
        "seed": 3,
        "rate": 0.3,
        "vocab_size": vocab_size(tokenizer),
        "padded_vocab_size": metadata.padded_vocab_size,
        "special_token_ids": metadata.special_token_ids,
    }
    sequences_S = np.arange(len(data))
    tokens_T, lengths_S = data.gather(sequences_S)
    tokens_T = tokens_T.astype(np.int32)
    where = lengths_S, sequences_S, np.zeros(len(data), np.int64)
    _, chosen_T, _ = TokenMasking(**settings, unit="word", word_starts=starts)(tokens_T, *where)
    special_T = np.isin(tokens_T, dataclasses.astuple(metadata.special_token_ids))
    word_T = np.cumsum(starts(tokens_T)) - 1
    for word in np.unique(word_T[~special_T]):
        assert len(np.unique(chosen_T[(word_T == word) & ~special_T])) == 1
    assert not chosen_T[special_T].any()
    assert 0.25 < chosen_T[~special_T].mean() < 0.35
    # Words of several pieces there are, which masking by token cuts up.
    _, by_token_T, _ = TokenMasking(**settings)(tokens_T, *where)
    cut = [len(np.unique(by_token_T[word_T == word])) > 1 for word in np.unique(word_T[~special_T])]
    assert any(cut)


def test_batches_of_whole_words(data):
    settings = {"row_length": 128, "rows_per_batch": 4, "seed": 1, "masking_rate": 0.3}
    plain, whole = (
        next(iter(PackedBatches(data, **settings, masking_unit=unit))).arrays
        for unit in ("token", "word")
    )
    np.testing.assert_array_equal(plain["segment_ids_BL"], whole["segment_ids_BL"])
    assert (plain["positions_BP"] != whole["positions_BP"]).any()
