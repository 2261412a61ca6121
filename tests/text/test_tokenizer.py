"""WordPiece: BERT's rules, a training that repeats itself, and the files that are read."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.text.tokenizer import (
    SPECIAL_TOKENS,
    WordEncoder,
    encode_texts,
    is_lowercase,
    load_tokenizer,
    padded_vocab_size,
    special_token_ids,
    vocab_size,
    vocab_text,
)
from mosaicbert_jax.text.tokenizer_training import train_tokenizer
from mosaicbert_jax.text.vocabulary import SpecialTokenIds

# As in bert-base-uncased: [PAD], unused entries, the other special tokens, then words.
UNUSED = [f"[unused{i}]" for i in range(99)]
LAYOUT = ["[PAD]", *UNUSED, "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "resume",
    "the",
    "un",
    "##aff",
    "##able",
    "##s",
    "cafe",
    ".",
    ",",
    "!",
    "[",
    "]",
    "mask",
    "sep",
    "中",
    "国",
    "[unused99]",
    "naive",
    "#",
]


def write_vocab(path, words=WORDS, layout=LAYOUT):
    path.write_text("\n".join([*layout, *words]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def uncased(tmp_path) -> Tokenizer:
    return load_tokenizer(write_vocab(tmp_path / "vocab.txt"))


def entries(tokenizer: Tokenizer, text: str) -> list[str]:
    (ids_T,) = encode_texts(tokenizer, [text])
    return [tokenizer.id_to_token(int(i)) for i in ids_T]


def test_ids_are_looked_up_by_name(uncased):
    assert special_token_ids(uncased) == SpecialTokenIds(0, 100, 101, 102, 103)
    assert vocab_size(uncased) == len(LAYOUT) + len(WORDS)
    assert uncased.encode("the").ids == [101, 105, 102]
    assert encode_texts(uncased, ["the"])[0].tolist() == [105]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Résumé", ["resume"]),
        ("Re\u0301sume\u0301", ["resume"]),
        ("NAÏVE", ["naive"]),
        ("unaffables", ["un", "##aff", "##able", "##s"]),
        ("the,the!", ["the", ",", "the", "!"]),
        ("中国the", ["中", "国", "the"]),  # each Chinese character is a word
        ("the\u00a0the\u2003the\tthe", ["the"] * 4),
        ("t\x00h\ufffde\u200b", ["the"]),  # control and format characters vanish
        ("the\U0001f600 \U0001f600 the", ["[UNK]", "[UNK]", "the"]),
        ("resumexyz", ["[UNK]"]),  # a word is matched whole or not at all
        ("a" * 101, ["[UNK]"]),
        ("", []),
        ("\u200b \x07", []),
    ],
)
def test_berts_rules(uncased, text, expected):
    assert entries(uncased, text) == expected


def test_cased_vocabulary_keeps_case_and_accents(tmp_path):
    cased = load_tokenizer(write_vocab(tmp_path / "vocab.txt", ["The", "the", "Résumé"]))
    assert not is_lowercase(cased)
    assert entries(cased, "The the Résumé résumé") == ["The", "the", "Résumé", "[UNK]"]
    forced = load_tokenizer(tmp_path / "vocab.txt", lowercase=True)
    assert is_lowercase(forced)
    assert entries(forced, "The") == ["the"]


def test_a_vocabulary_without_capitals_is_uncased(uncased):
    assert is_lowercase(uncased)


def test_hugging_face_folders(tmp_path, uncased):
    write_vocab(tmp_path / "vocab.txt")
    assert is_lowercase(load_tokenizer(tmp_path))
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"do_lower_case": False, "strip_accents": True}))
    cased = load_tokenizer(tmp_path)
    assert not is_lowercase(cased)
    assert entries(cased, "résumé Résumé") == ["resume", "[UNK]"]
    # tokenizer.json goes first, and its truncation and padding are ignored.
    uncased.enable_truncation(4)
    uncased.enable_padding(length=9)
    uncased.save(str(tmp_path / "tokenizer.json"))
    # But not before what tokenizer_config.json says, if it is for this class.
    assert entries(load_tokenizer(tmp_path), "résumé Résumé") == ["resume", "[UNK]"]
    config.write_text(json.dumps({"do_lower_case": False, "tokenizer_class": "Other"}))
    loaded = load_tokenizer(tmp_path)
    assert is_lowercase(loaded)
    assert len(loaded.encode("the " * 50).ids) == 52
    assert loaded.encode("the").ids == [101, 105, 102]


def test_files_that_are_no_wordpiece_tokenizer(tmp_path):
    bpe = tmp_path / "tokenizer.json"
    Tokenizer(models.BPE()).save(str(bpe))
    with pytest.raises(UserError, match=r"lacks \[PAD\] by any of the names"):
        load_tokenizer(bpe)
    bpe.write_text("[]")
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        load_tokenizer(bpe)
    bpe.write_text('{"model": {"type": "WordPiece"}}')
    with pytest.raises(UserError, match=r"not a tokenizer\.json that can be read"):
        load_tokenizer(bpe)
    with pytest.raises(UserError, match="no such file"):
        load_tokenizer(tmp_path / "missing.txt")
    with pytest.raises(UserError, match="no such file"):
        load_tokenizer(tmp_path / "missing.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither tokenizer\.json nor vocab\.txt"):
        load_tokenizer(tmp_path / "empty")


@pytest.mark.parametrize("missing", SPECIAL_TOKENS)
def test_missing_special_token(tmp_path, missing):
    path = write_vocab(tmp_path / "vocab.txt", layout=[t for t in LAYOUT if t != missing])
    with pytest.raises(UserError, match=rf"vocab\.txt: the vocabulary lacks \[{missing[1:-1]}\]"):
        load_tokenizer(path)


def test_tokenizer_json_that_could_not_encode(tmp_path, uncased):
    path = tmp_path / "tokenizer.json"
    for change, message in (
        ({"unk_token": "<unk>"}, r"lacks its unk_token '<unk>'"),
        ({"vocab": {"the": 0}}, r"lacks its unk_token '\[UNK\]'"),  # an added token is not enough
        ({"vocab": {"[UNK]": 0, "the": 2**31}}, "an entry has id 2147483648"),
        ({"vocab": {"[UNK]": 0, "the": 1, "of": 1}}, "two entries of the vocabulary have one id"),
    ):
        settings = json.loads(uncased.to_str())
        settings["model"] |= change
        path.write_text(json.dumps(settings))
        with pytest.raises(UserError, match=message):
            load_tokenizer(path)


def test_damaged_vocab(tmp_path):
    with pytest.raises(UserError, match=r"vocab\.txt:105: an empty line"):
        load_tokenizer(write_vocab(tmp_path / "vocab.txt", ["", "the"]))
    with pytest.raises(UserError, match=r"vocab\.txt:106: 'the' is already on line 105"):
        load_tokenizer(write_vocab(tmp_path / "vocab.txt", ["the", "the"]))


def test_vocab_text_is_the_file_that_was_read(tmp_path, uncased):
    assert vocab_text(uncased) == (tmp_path / "vocab.txt").read_text(encoding="utf-8")


def words_with_ties() -> list[str]:
    """Random words: many pairs of equal frequency, whose order is where chance would come in."""
    random = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyzé0123456789")
    return [
        " ".join("".join(random.choice(letters, 6)) + "." for _ in range(20)) for _ in range(200)
    ]


def test_training_repeats_itself():
    texts = words_with_ties()
    first = train_tokenizer(texts, 600).to_str()
    assert all(train_tokenizer(texts, 600).to_str() == first for _ in range(3))
    assert vocab_size(Tokenizer.from_str(first)) == 600


def test_rare_characters_are_left_out_alike():
    # More characters than the alphabet may have, all equally rare.
    texts = ["".join(chr(0x4E00 + i) for i in reversed(range(2000)))] * 2
    first = train_tokenizer(texts, 400)
    assert first.to_str() == train_tokenizer(texts, 400).to_str()
    assert vocab_size(first) <= 400
    assert first.token_to_id("\u4e00") is not None
    assert first.token_to_id(chr(0x4E00 + 1999)) is None


def test_trained_tokenizer_is_berts():
    texts = ["The résumé of the unaffable, the affable!", "中国 the the \U0001f600"] * 10
    tokenizer = train_tokenizer(texts, 200)
    assert special_token_ids(tokenizer) == SpecialTokenIds(0, 1, 2, 3, 4)
    assert entries(tokenizer, "The RÉSUMÉ,") == ["the", "resume", ","]
    assert entries(tokenizer, "中国") == ["中", "国"]
    assert entries(tokenizer, "é\u4e01") == ["e", "[UNK]"]
    assert tokenizer.token_to_id("##中") is None
    assert tokenizer.token_to_id("##,") is None
    assert tokenizer.decode(tokenizer.encode("The unaffable!").ids) == "the unaffable!"
    cased = train_tokenizer(texts, 200, lowercase=False)
    assert entries(cased, "The résumé") == ["The", "résumé"]


def test_training_wants_enough_entries_and_two_passes():
    with pytest.raises(UserError, match="vocab_size 31"):
        train_tokenizer(["a"], 31)
    with pytest.raises(ValueError, match="iterable twice"):
        train_tokenizer(iter(["a"]), 100)
    tiny = train_tokenizer(["the quick brown fox jumps over the lazy dog, " * 3], 40)
    assert vocab_size(tiny) <= 40


def test_encode_texts_gives_int32_ids(uncased):
    encoded = encode_texts(uncased, ["the the", "", "the"])
    assert [ids_T.tolist() for ids_T in encoded] == [[105, 105], [], [105]]
    assert all(ids_T.dtype == np.int32 for ids_T in encoded)


def test_padded_vocab_size():
    assert [padded_vocab_size(n) for n in (1, 64, 65, 30522)] == [64, 64, 128, 30528]


AWKWARD = "aAéÉßΣσ中🙂'-[]., \t\n\r\x0b\x0c\x1c\x85\xa0\xad\u0301\u200b\u2028\u3000\ufffd\x00"


@pytest.mark.parametrize("lowercase", [True, False])
@given(texts=st.lists(st.text(alphabet=AWKWARD, max_size=40), max_size=5))
@settings(deadline=None, max_examples=200)
def test_word_by_word_gives_the_ids_of_whole_texts(lowercase, texts):
    tokenizer = train_tokenizer(["aé Éß Σσ 中🙂'-[]., a\u0301 aa AA"] * 3, 60, lowercase)
    tokenizer.encode_special_tokens = True
    encode = WordEncoder(tokenizer)
    for _ in range(2):  # the second time from its table
        for found, whole in zip(encode(texts), encode_texts(tokenizer, texts), strict=True):
            assert found.tolist() == whole.tolist()
            assert found.dtype == np.int32


def test_special_tokens_in_text_and_forgetting(monkeypatch):
    tokenizer = train_tokenizer(["the [SEP] cat"] * 3, 60)
    tokenizer.encode_special_tokens = True
    encode = WordEncoder(tokenizer)
    monkeypatch.setattr("mosaicbert_jax.text.tokenizer._REMEMBERED_CHARS", 8)
    texts = ["the cat", "[SEP] the cat [SEP]x", "x" * 200 + " the", "the cat sat"]
    for _ in range(3):
        for text in texts:
            assert encode([text])[0].tolist() == encode_texts(tokenizer, [text])[0].tolist()
        assert len(encode.ids_of_word) < 6


def test_a_tokenizer_of_another_kind_sees_whole_texts(tmp_path):
    """One whose normalizer joins words would give other ids word by word."""
    tokenizer = train_tokenizer(["new york", "newyork"] * 3, 60)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("new york", "newyork"), tokenizer.normalizer]
    )
    tokenizer.encode_special_tokens = True
    assert (
        WordEncoder(tokenizer)(["new york"])[0].tolist()
        == encode_texts(tokenizer, ["newyork"])[0].tolist()
    )
    adds = train_tokenizer(["new york"] * 3, 60)
    adds.encode_special_tokens = True
    adds.add_tokens(["new york"])
    (found,) = WordEncoder(adds)(["a new york"])
    assert adds.token_to_id("new york") in found.tolist()
    assert found.tolist() == encode_texts(adds, ["a new york"])[0].tolist()
