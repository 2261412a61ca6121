"""The tokenizer that goes along gives through AutoTokenizer the ids that training sees."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mosaicbert_jax import BertConfig, BertModel
from mosaicbert_jax.text.tokenizer import WordEncoder, load_tokenizer, special_token_ids
from mosaicbert_jax.text.tokenizer_training import train_tokenizer
from tests.interop.model_cases import SMALL, random_model
from tests.interop.torch_cases import transformers

TEXTS = [
    "The congress of the united states, in 1898: a treaty of peace!",
    "naïve café Ångström STRASSE straße ﬁne ½ £5 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "日本語 中文字符 한국어 русский ελληνικά עברית العربية हिन्दी",
    "🙂 👩‍👩‍👧 🇫🇷 e\u0301 a\u200bb \u00a0 \x00\x07\ufeff",
] * 2


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def pair(request, tmp_path_factory):
    """Ours with [CLS] and [SEP] as in `prepare`; and AutoTokenizer's, of the folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 250, lowercase=request.param).save(str(folder / "tokenizer.json"))
    model = random_model(BertModel, BertConfig(**{**SMALL, "vocab_size": 256}))
    model.save_pretrained(folder / "exported", tokenizer=folder / "tokenizer.json")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    tokenizer.encode_special_tokens = True  # as in `prepare`
    special, encode = special_token_ids(tokenizer), WordEncoder(tokenizer)

    def ours(text):
        return [special.cls, *encode([text])[0].tolist(), special.sep]

    theirs = transformers.AutoTokenizer.from_pretrained(folder / "exported", trust_remote_code=True)
    return ours, theirs


@given(text=st.one_of(st.text(), st.text(st.sampled_from("".join(TEXTS))), st.text(min_size=120)))
@settings(max_examples=300, deadline=None)
@example("x" * 101 + " " + "y" * 99 + " " + "é" * 300)
@example("Crème brûlée à la carte, ça va ? \x00\x1f\x7f\u0085 日本語テキスト 🙂👩‍👩‍👧")
@example("\r\n\t a\u00a0b\u2028c\u3000d ")
@example("")
def test_any_text_has_the_same_ids(pair, text):
    ours, theirs = pair
    assert theirs(text, split_special_tokens=True)["input_ids"] == ours(text)


def test_special_tokens_in_a_text_are_special_there_unless_told_otherwise(pair):
    """Which fill-mask needs."""
    ours, theirs = pair
    text = "the [MASK] of [SEP]"
    assert theirs.mask_token_id in theirs(text)["input_ids"]
    assert theirs.mask_token_id not in ours(text)


def test_pairs_padding_and_names(pair):
    _, theirs = pair
    found = theirs(["peace", "the congress"], ["a treaty", "peace"], padding=True)
    for tokens, types, mask in zip(
        found["input_ids"], found["token_type_ids"], found["attention_mask"], strict=True
    ):
        real = int(np.sum(mask))
        first = tokens.index(theirs.sep_token_id) + 1
        assert tokens[0] == theirs.cls_token_id
        assert tokens[real - 1] == theirs.sep_token_id
        assert types[:real] == [0] * first + [1] * (real - first)
        assert set(tokens[real:]) <= {theirs.pad_token_id}
    assert theirs.unk_token == "[UNK]"


def test_the_length_is_limited_only_for_the_baseline(pair, tmp_path, tmp_path_factory):
    _, mosaic = pair
    assert mosaic.model_max_length > 10**9
    train_tokenizer(TEXTS, 250).save(str(tmp_path / "tokenizer.json"))
    model = random_model(BertModel, BertConfig.bert_base(**{**SMALL, "vocab_size": 256}))
    model.save_pretrained(tmp_path / "bert", tokenizer=tmp_path / "tokenizer.json")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "bert").model_max_length == 32
    settings = json.loads((tmp_path / "bert" / "tokenizer_config.json").read_text())
    assert settings["do_lower_case"] is True
