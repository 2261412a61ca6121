"""Texts in parts give the tokens of the whole, and blocks the sequences of their documents."""

import hashlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mosaicbert_jax.text import encoding
from mosaicbert_jax.text.encoding import (
    Encoder,
    cut_point,
    document_digest,
    encode_documents,
    split_lengths,
)
from mosaicbert_jax.text.readers import Problem
from mosaicbert_jax.text.tokenizer import encode_texts
from mosaicbert_jax.text.tokenizer_training import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox, the lazy dog! é ß 中国 ά"] * 3, 90)


TEXTS = st.text(alphabet="the foxé,\n\t\u0301\u00a0中ß\x00", max_size=300)


@given(texts=st.lists(TEXTS, max_size=4), most=st.none() | st.integers(1, 30))
@settings(deadline=None, max_examples=150)
def test_parts_have_the_tokens_of_the_whole(tokenizer, texts, most):
    """With parts of some 40 characters; no word is longer than that but by chance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_PART_CHARS", 10_000)
        patch.setattr(encoding, "_CHARS_PER_TOKEN", 1)
        found = encode_documents(partial(encode_texts, tokenizer), texts, most)
        split = [part for text in texts for part in parts(text, 7)]
    whole = encode_texts(tokenizer, texts)
    assert "".join(texts) == "".join(split)
    for found_T, whole_T in zip(found, whole, strict=True):
        if most is None:
            assert found_T.tolist() == whole_T.tolist()
        else:
            assert found_T[:most].tolist() == whole_T[:most].tolist()
            assert (len(found_T) > most) == (len(whole_T) > most)


def parts(text: str, size: int) -> list[str]:
    """A text cut as `encode_documents` cuts it."""
    cut, begin = [], 0
    while begin < len(text):
        end = cut_point(text, begin, size)
        assert end > begin
        cut.append(text[begin:end])
        begin = end
    return cut


def test_parts_end_between_words():
    assert parts("the quick brown fox", 9) == ["the", " quick", " brown", " fox"]
    assert parts("a\nb c", 4) == ["a\nb", " c"]
    assert parts("no-space-here then one", 5) == ["no-space-here", " then", " one"]
    assert parts("    ", 2) == [" ", " ", " ", " "] or "".join(parts("    ", 2)) == "    "


def test_a_word_without_end_is_cut(monkeypatch):
    monkeypatch.setattr(encoding, "_PART_CHARS", 10)
    assert list(map(len, parts("x" * 25, 4))) == [10, 10, 5]


def test_long_text_is_encoded_in_parts(tokenizer, monkeypatch):
    text = "the quick brown fox, " * 500
    (whole_T,) = encode_texts(tokenizer, [text])
    sizes = []

    def watched(texts):
        sizes.extend(map(len, texts))
        return encode_texts(tokenizer, texts)

    monkeypatch.setattr(encoding, "_PART_CHARS", 1000)
    assert encode_documents(watched, [text])[0].tolist() == whole_T.tolist()
    assert max(sizes) <= 1000
    sizes.clear()
    (found_T,) = encode_documents(watched, [text], most=20)
    assert found_T[:20].tolist() == whole_T[:20].tolist()
    assert len(found_T) > 20
    assert sum(sizes) < 300  # not the 10,500 characters of it all


def test_digest_depends_on_the_text_alone():
    key, rank = document_digest("é")
    digest = hashlib.blake2b("é".encode(), digest_size=16).digest()
    assert key.to_bytes(8, "big") + rank.to_bytes(8, "big") == digest


def test_a_problem_becomes_a_block_of_its_own(tokenizer):
    problem = Problem("a.txt:3", "not UTF-8", "a.txt:3: no")
    summary, tokens = Encoder(tokenizer.to_str(), "text", 16, split_long=False)(problem)
    assert summary.problems == (problem,)
    assert summary.documents == len(summary.keys_D) == len(tokens.tokens_T) == 0
    assert tokens.tokens_T.dtype == np.uint16


@pytest.mark.parametrize("room", [6, 14, 126])
def test_split_lengths(room):
    for tokens in range(1, 5 * room):
        pieces = split_lengths(tokens, room)
        assert sum(pieces) == tokens
        assert max(pieces) <= room
        assert len(pieces) == -(-tokens // room)
        assert len(pieces) == 1 or min(pieces) >= min(8, room // 2)
        assert all(piece == room for piece in pieces[:-2])
    assert split_lengths(0, room) == []
