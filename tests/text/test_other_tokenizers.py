"""BPE and Unigram: trained here and brought along, with the special tokens of several families."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.interop.writing import write_tokenizer
from mosaicbert_jax.text.encoding import encode_documents
from mosaicbert_jax.text.tokenizer import (
    WordEncoder,
    encode_texts,
    first_piece,
    is_lowercase,
    load_tokenizer,
    of_plain_text,
    special_token_ids,
    special_token_names,
    tokenizer_files,
    words_in_text,
)
from mosaicbert_jax.text.tokenizer_training import BPE_MODEL, train_tokenizer
from tests.conftest import ROOT

TEXTS = [
    "The state of the union is strong, and the people of the United States know it.",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ และโมเดลต้องอ่านได้",
    "ACGTTGCAACGTACGGTTACGATCGATCGGATC",
    "def read(path):\n    with open(path) as file:\n        return file.read()\n\n\nprint(1)\n",
    "naïve café — 中国 🙂\t\ttabs  and   runs of spaces \n\n and lines",
] * 4
FAMILIES = {
    "ModernBERT": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "RoBERTa": ("<pad>", "<unk>", "<s>", "</s>", "<mask>"),
    "Gemma": ("<pad>", "<unk>", "<bos>", "<eos>", "<mask>"),
}


def byte_level(names) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(names), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def unigram(names) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=list(names), unk_token=names[1], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def fallback(names) -> Tokenizer:
    """BPE over characters with bytes for unknown ones, as Gemma's."""
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    vocab = {name: i for i, name in enumerate([*names, *bytes_, "▁", *"abcdefghij", "▁a", "ab"])}
    model = models.BPE(
        vocab, [("▁", "a"), ("a", "b")], unk_token=names[1], byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_special_tokens(list(names))
    return tokenizer


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS, 600, lowercase=False, model=BPE_MODEL)


def saved(tokenizer, path):
    tokenizer.save(str(path / "tokenizer.json"))
    return path / "tokenizer.json"


def test_training_repeats_itself_in_another_process(trained):
    script = (
        "import sys; from tests.text.test_other_tokenizers import *; "
        "sys.stdout.write(train_tokenizer(TEXTS, 600, False, BPE_MODEL).to_str())"
    )
    again = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert again.stdout == trained.to_str()


def test_no_text_is_unknown_to_bpe(trained):
    unseen = ["ქართული ენა", "\x00\x01 ยินดีต้อนรับ", "αβγ 🚀🚀"]
    plain = of_plain_text(trained)
    unknown = special_token_ids(trained).unk
    for text, ids_T in zip(unseen + TEXTS, encode_texts(plain, unseen + TEXTS), strict=True):
        assert unknown not in ids_T
        assert plain.decode(ids_T.tolist(), skip_special_tokens=False) == text


def test_a_mask_in_text_takes_the_space_before_it(trained):
    encoded = trained.encode("state [MASK] and [MASK].")
    assert "Ġ" not in encoded.tokens
    assert encoded.ids.count(special_token_ids(trained).mask) == 2


def test_lower_case_is_a_choice_of_bpe():
    assert is_lowercase(train_tokenizer(TEXTS, 300, True, BPE_MODEL))
    assert not is_lowercase(train_tokenizer(TEXTS, 300, False, BPE_MODEL))


def test_bpe_needs_an_entry_a_byte():
    with pytest.raises(UserError, match="at least 261 entries"):
        train_tokenizer(TEXTS, 260, model=BPE_MODEL)


@pytest.mark.parametrize("make", [byte_level, unigram, fallback])
@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_are_known_by_their_names(tmp_path, family, make):
    names = FAMILIES[family]
    tokenizer = load_tokenizer(saved(make(names), tmp_path))
    assert tuple(special_token_names(tokenizer).values()) == names
    ids = special_token_ids(tokenizer)
    # In text they are text, with no byte lost.
    text = f"a {names[4]} b"
    (ids_T,) = encode_texts(of_plain_text(tokenizer), [text])
    assert ids.mask not in ids_T
    assert "vocab.txt" not in tokenizer_files(tokenizer)


def test_roles_may_be_told(tmp_path):
    names = ("<p>", "[UNK]", "<begin>", "<end>", "<hole>")
    path = saved(byte_level(names), tmp_path)
    with pytest.raises(UserError, match=r"lacks \[PAD\] .*--special-tokens pad=ENTRY"):
        load_tokenizer(path)
    told = {"pad": "<p>", "cls": "<begin>", "sep": "<end>", "mask": "<hole>"}
    tokenizer = load_tokenizer(path, special_tokens=told)
    assert special_token_ids(tokenizer) == special_token_ids(byte_level(FAMILIES["ModernBERT"]))
    for wrong, message in (
        ({"start": "<begin>"}, "'start' is not one of pad"),
        (told | {"mask": "<m>"}, "no entry '<m>', which is given for mask"),
        (told | {"unk": "<p>"}, r"unk is \[UNK\], and '<p>' is given for it"),
    ):
        with pytest.raises(UserError, match=message):
            load_tokenizer(path, special_tokens=wrong)


def test_html_tags_of_gemma_are_no_special_tokens(tmp_path):
    tokenizer = fallback(FAMILIES["Gemma"])
    tokenizer.add_tokens(["<s>", "</s>"])
    names = special_token_names(load_tokenizer(saved(tokenizer, tmp_path)))
    assert (names["cls"], names["sep"]) == ("<bos>", "<eos>")


def test_roles_in_tokenizer_config_are_told_roles(tmp_path):
    saved(byte_level(("<p>", "[UNK]", "<begin>", "[SEP]", "<hole>")), tmp_path)
    settings = {"pad_token": "<p>", "cls_token": "<begin>", "mask_token": {"content": "<hole>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ids = special_token_ids(load_tokenizer(tmp_path))
    assert ids == special_token_ids(byte_level(FAMILIES["ModernBERT"]))


def test_without_unknown_tokens_padding_stands_for_them(tmp_path):
    names = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer = load_tokenizer(saved(byte_level(names), tmp_path))
    assert special_token_ids(tokenizer).unk == special_token_ids(tokenizer).pad
    assert "unk" not in special_token_names(tokenizer)


@pytest.mark.parametrize("kind", ["WordLevel", "BPE", "Unigram"])
def test_what_would_lose_text_is_refused(tmp_path, kind):
    names = FAMILIES["ModernBERT"]
    vocab = {name: i for i, name in enumerate([*names, "a"])}
    model = {
        "WordLevel": lambda: models.WordLevel(vocab, unk_token="[UNK]"),
        "BPE": lambda: models.BPE(vocab, []),
        "Unigram": lambda: models.Unigram([(name, 0.0) for name in vocab], None, False),
    }[kind]()
    with pytest.raises(UserError, match=r"none of WordPiece|unk_token None|has no unk_id"):
        load_tokenizer(saved(Tokenizer(model), tmp_path))


def messy(rng) -> str:
    """Words with white space of all kinds between them, digits, marks and other scripts."""
    words = [
        "state",
        "it's",
        "1990,",
        "naïve",
        "e\u0301t",
        "คำ",
        "[MASK]",
        "中国",
        "(a)",
        "🙂x",
        "Ⅷ",
    ]
    gaps = [" "] * 6 + ["  ", "\n", " \n", "\n ", "\t", "\u00a0", " \u2003", "\x1c", "\u3000 ", ""]
    return "".join(rng.choice(words) + rng.choice(gaps) for _ in range(rng.integers(1, 40)))


@pytest.mark.parametrize("lowercase", [False, True])
def test_word_by_word_bpe_is_that_of_the_text(lowercase):
    tokenizer = train_tokenizer(TEXTS, 500, lowercase, BPE_MODEL)
    tokenizer.add_tokens(["|||NUMBER|||", "   "])
    plain = of_plain_text(tokenizer)
    rng = np.random.default_rng(0)
    texts = [messy(rng) for _ in range(400)] + ["a|||NUMBER||| b", "a    b   c", " a", "a ", ""]
    encoder = WordEncoder(plain)
    for ours_T, true_T in zip(encoder(texts), encode_texts(plain, texts), strict=True):
        np.testing.assert_array_equal(ours_T, true_T)
    assert len(encoder.ids_of_word) > 20
    plain.add_tokens(["New York"])
    encoder = WordEncoder(plain)
    encoder(["in New York now"])
    assert not encoder.ids_of_word


@pytest.mark.parametrize("make", [byte_level, unigram, fallback])
def test_long_texts_in_parts_are_the_text(make):
    """At single spaces, where no token reaches across."""
    tokenizer = of_plain_text(make(FAMILIES["ModernBERT"]))
    text = " ".join(TEXTS * 40)
    (whole_T,) = encode_texts(tokenizer, [text])
    (parts_T,) = encode_documents(WordEncoder(tokenizer), [text])
    np.testing.assert_array_equal(parts_T, whole_T)
    (some_T,) = encode_documents(WordEncoder(tokenizer), [text], 30)
    np.testing.assert_array_equal(some_T[:30], whole_T[:30])


@pytest.mark.parametrize("make", [byte_level, unigram, fallback])
@pytest.mark.parametrize("family", ["ModernBERT", "RoBERTa"])
def test_ids_are_those_of_autotokenizer(tmp_path, make, family):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = load_tokenizer(saved(make(FAMILIES[family]), tmp_path))
    folder = tmp_path / "out"
    folder.mkdir()
    write_tokenizer(tokenizer, folder, max_length=64, token_types=False)
    there = transformers.AutoTokenizer.from_pretrained(folder)
    ids = special_token_ids(tokenizer)
    for text, ids_T in zip(TEXTS, encode_texts(of_plain_text(tokenizer), TEXTS), strict=True):
        assert there(text)["input_ids"] == [ids.cls, *ids_T.tolist(), ids.sep]
    assert (there.mask_token, there.mask_token_id) == (FAMILIES[family][4], ids.mask)
    assert "token_type_ids" not in there("a")


@pytest.mark.parametrize("make", [byte_level, unigram, fallback])
def test_words_of_a_list_are_those_of_the_text(make):
    tokenizer = of_plain_text(make(FAMILIES["ModernBERT"]))
    words = ["The", "state", "of", "the", "union", "is", "strong,"]
    pieces = encode_texts(tokenizer, words_in_text(tokenizer, words))
    (whole_T,) = encode_texts(tokenizer, [" ".join(words)])
    np.testing.assert_array_equal(np.concatenate(pieces), whole_T)


def test_the_first_piece_is_not_the_space_alone():
    tokenizer = of_plain_text(fallback(FAMILIES["ModernBERT"]))
    (ids_T,) = encode_texts(tokenizer, [" c"])
    assert [tokenizer.id_to_token(i) for i in ids_T] == ["▁", "c"]
    assert first_piece(tokenizer, ids_T) == 1
    (ids_T,) = encode_texts(tokenizer, [" ab"])
    assert first_piece(tokenizer, ids_T) == 0


def test_a_template_that_names_renamed_tokens_goes(tmp_path):
    tokenizer = byte_level(("[PAD]", "[UNK]", "<b>", "<e>", "[MASK]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<b> $A <e>", special_tokens=[("<b>", 2), ("<e>", 3)]
    )
    path = saved(tokenizer, tmp_path)
    loaded = load_tokenizer(path, special_tokens={"cls": "<b>", "sep": "<e>"})
    assert json.loads(loaded.to_str())["post_processor"] is None
    assert special_token_names(loaded)["cls"] == "[CLS]"
