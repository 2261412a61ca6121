"""The report on a data set: every number against a count by brute force, and what it looks like."""

import dataclasses
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest

from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.markdown import columns, percent
from mosaicbert_jax.preparation import text_report as module
from mosaicbert_jax.preparation import tokenizer_figures as figures_module
from mosaicbert_jax.preparation.text_report import _histogram_bins, text_report
from mosaicbert_jax.preparation.tokenizer_figures import count_words, tokenizer_figures
from mosaicbert_jax.text.tokenizer import (
    SPECIAL_TOKENS,
    load_tokenizer,
    special_token_ids,
)
from tests.preparation.text_report_cases import (
    SPELLING,
    a_data_set,
    a_tokenizer,
    block_below,
    cells,
    share,
    table_below,
)


@pytest.fixture
def tokenizer(tmp_path):
    return a_tokenizer(tmp_path / "tokenizer", [*SPELLING, "cat", "##ing", "never"])


@pytest.fixture
def texts() -> list[str]:
    """60 texts of 1 to 20 words; é is no letter of theirs, and Q none of the vocabulary."""
    random = np.random.default_rng(0)
    words = ["the", "The", "cat", "cats", "catting", "a1", "xyz", ".", "don't", "ж", "[SEP]", "12"]
    return [" ".join(random.choice(words, random.integers(1, 21))) for _ in range(60)]


def test_figures_of_the_text_are_exact(tmp_path, tokenizer, texts, monkeypatch):
    monkeypatch.setattr(module, "_TOKENS_A_READ", 5 * 16)  # so that reads end within shards
    tokenizer.encode_special_tokens = True
    sequences = a_data_set(tmp_path / "d", tokenizer, train=texts[:47], validation=texts[47:])
    report = text_report(tmp_path / "d", texts)
    ids = special_token_ids(tokenizer)
    for column, of_split in enumerate(sequences.values()):
        lengths = np.array([len(sequence) for sequence in of_split])
        tokens = Counter(i for sequence in of_split for i in sequence)
        own = lengths.sum() - 2 * len(lengths)
        documents = (texts[:47], texts[47:])[column]
        cut = sum(
            len(tokenizer.encode(text, add_special_tokens=False).ids) > 14 for text in documents
        )
        for label, expected in {
            "documents": f"{len(documents)}",
            "sequences": f"{len(of_split)}",
            "tokens, with": f"{lengths.sum()}",
            "tokens a sequence: mean": f"{lengths.mean():.1f}",
            "… half have": f"{np.quantile(lengths, 0.5, method='inverted_cdf')}",
            "… 90%": f"{np.quantile(lengths, 0.9, method='inverted_cdf')}",
        }.items():
            assert cells(report, label)[column] == expected
        for label, expected in {
            "… cut at 16": cut / len(documents),
            "share of [UNK]": tokens[ids.unk] / own,
            "real tokens in rows of 16, one": lengths.sum() / (16 * len(lengths)),
            # So few tokens that best-fit decreasing leaves a gap in the last row alone.
            "real tokens in rows of 512, packed": lengths.sum() / (-(-lengths.sum() // 512) * 512),
        }.items():
            assert 0 < expected < 1
            assert share(cells(report, label)[column]) == pytest.approx(expected, abs=0.00051)
    assert "in.txt: 1,234 documents, 2.5 MB" in report
    assert "1 duplicate and 2 empty" in report


def test_packed_rows_are_as_long_as_sequences(tmp_path, tokenizer):
    a_data_set(tmp_path / "d", tokenizer, max_seq_len=1000, train=["the " * 598, "the " * 498])
    report = text_report(tmp_path / "d", [])
    assert cells(report, "real tokens in rows of 1,000, packed") == ["55.0%"]


def test_unreadable_inputs_are_told(tmp_path, tokenizer):
    a_data_set(tmp_path / "d", tokenizer, train=["the"])
    path = tmp_path / "d" / "dataset.json"
    metadata = DatasetMetadata.load(tmp_path / "d")
    metadata = dataclasses.replace(metadata, skipped={"not JSON": 1200, "bad": 0})
    path.write_text(metadata.to_json())
    report = text_report(tmp_path / "d", [])
    assert "not JSON (1,200)" in report
    assert "bad (0)" not in report


def test_histogram_is_exact_and_drawn_to_scale(tmp_path, tokenizer, texts):
    sequences = a_data_set(tmp_path / "d", tokenizer, max_seq_len=40, train=texts)
    lengths = [len(sequence) for sequence in sequences["train"]]
    header, *lines = block_below(text_report(tmp_path / "d", []), "Length of").split("\n")
    assert header.split() == ["tokens", "train"]
    bars, shares = [], []
    for line in lines:
        first, last = map(int, re.match(r" *(\d+)–(\d+)", line).groups())
        expected = sum(first <= length <= last for length in lengths) / len(lengths)
        drawn = share(line.split("  ")[-1].strip()) if expected else 0
        assert drawn == pytest.approx(expected, abs=0.00051)
        assert line.endswith("·") == (expected == 0)
        bars.append(8 * line.count("█") + sum(" ▏▎▍▌▋▊▉".index(c) for c in line if c in "▏▎▍▌▋▊▉"))
        shares.append(expected)
    assert sum(shares) == pytest.approx(1)
    np.testing.assert_allclose(bars, 320 * np.array(shares) / max(shares), atol=1)


@pytest.mark.parametrize("max_seq_len", [8, 10, 13, 64, 100, 127, 128, 512, 1024, 4099])
def test_histogram_bins_cover_all_lengths(max_seq_len):
    starts = _histogram_bins(max_seq_len)
    widths = np.diff([*starts, max_seq_len + 1])
    assert starts[0] == 1
    assert len(set(widths[:-1])) == 1
    assert 0 < widths[-1] <= widths[0]
    assert 7 <= len(starts) <= 12


def test_histogram_bins_are_round():
    assert _histogram_bins(128) == [1, 17, 33, 49, 65, 81, 97, 113]
    assert _histogram_bins(100) == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91]


def test_quantiles_at_the_boundary(tmp_path, tokenizer):
    a_data_set(tmp_path / "d", tokenizer, 128, train=["a " * n for n in range(1, 101)])
    report = text_report(tmp_path / "d", [])
    assert cells(report, "… half have") == ["52"]  # [CLS], 50 tokens and [SEP]
    assert cells(report, "… 90%") == ["92"]


def test_figures_of_the_tokenizer_are_exact(tmp_path, tokenizer, texts):
    tokenizer.encode_special_tokens = True
    sequences = a_data_set(tmp_path / "d", tokenizer, train=texts[:30], validation=["never"])
    report = text_report(tmp_path / "d", texts)
    words = [word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)]
    pieces = [tokenizer.encode(word, add_special_tokens=False).tokens for word in words]
    tokens = [
        piece for text in texts for piece in tokenizer.encode(text, add_special_tokens=False).tokens
    ]
    characters = sum(map(len, texts))
    assert f"60 documents, {characters:,} characters, {len(words)} words." in report
    entries = set(tokenizer.get_vocab()) - set(SPECIAL_TOKENS)
    in_data = {tokenizer.id_to_token(i) for split in sequences.values() for s in split for i in s}
    assert "never" in in_data - set(tokens)  # the two shares differ
    assert cells(report, "entries") == [f"{len(entries)}"]
    assert cells(report, "tokens of the sample") == [f"{len(tokens):,}"]
    assert cells(report, "tokens a word") == [f"{len(tokens) / len(words):.3f}"]
    assert cells(report, "characters a token") == [f"{characters / len(tokens):.2f}"]
    for label, expected in {
        "… that occur in the data set": len(in_data & entries) / len(entries),
        "… that occur in the sample": len(set(tokens) & entries) / len(entries),
        "words of one piece": sum(len(p) == 1 and p != ["[UNK]"] for p in pieces) / len(words),
        "words with [UNK]": sum("[UNK]" in p for p in pieces) / len(words),
    }.items():
        assert 0 < expected < 1
        assert share(cells(report, label)[0]) == pytest.approx(expected, abs=0.00051)
    unknown = Counter(word for word, p in zip(words, pieces, strict=True) if "[UNK]" in p)
    assert block_below(report, "Words with [UNK]") == "  ".join(
        f"{word} ({count})" for word, count in unknown.most_common()
    )


@pytest.mark.parametrize("lowercase", [True, False])
def test_words_add_up_to_the_text(tmp_path, lowercase):
    """A word alone has the pieces that it has in its text, whatever stands around it."""
    tokenizer = a_tokenizer(tmp_path, [*SPELLING, "é", "你", "##ing", "S", "##S"], lowercase)
    sample = [
        "[SEP] The [MASK] [CLS]. Don't…",
        "你好世界 x你y a\u200bb\u0000c\x85d\u2028e\u00a0f \u0301g e\u0301 É é Ⅳ İ ΣΑΣ",
        "a" * 101 + " " + "b" * 100 + "\tcatting",
    ]
    words = count_words(sample)
    figures = tokenizer_figures(tokenizer, "", sample, words)
    assert {"[", "SEP", "你", "好", "abcd", "Don", "…"} < words.keys()
    assert sum(len(figures.pieces[word]) * words[word] for word in words) == figures.tokens
    tokenizer.encode_special_tokens = True
    assert figures.tokens == sum(
        len(tokenizer.encode(text, add_special_tokens=False).ids) for text in sample
    )


def test_longest_pieces_are_those_in_use(tmp_path):
    tokenizer = a_tokenizer(
        tmp_path / "tokenizer", [*SPELLING, "transferase", "##transferase", "unusedandlong", "cats"]
    )
    a_data_set(tmp_path / "d", tokenizer, train=["cats cats transferase xtransferase", "the a x"])
    listed = block_below(text_report(tmp_path / "d", ["unusedandlong"]), "Longest pieces").split()
    assert listed == ["transferase", "##transferase", "cats", "the", "x", "a"]


def test_words_in_most_pieces(tmp_path, tokenizer):
    a_data_set(tmp_path / "d", tokenizer, train=["the"])
    sample = ["The xyz the Xyz cats CATS xyz. wxyz 123 123 1a 1a ab", "cats жжжж жжжж ab rare cat"]
    report = text_report(tmp_path / "d", sample)
    assert table_below(report, "Frequent words in the most") == [
        ["xyz", "3", "x ##y ##z"],
        ["cats", "3", "cat ##s"],
        ["ab", "2", "a ##b"],
    ]


def test_words_are_letters_and_marks(tmp_path):
    tokenizer = a_tokenizer(tmp_path / "tokenizer", ["क", "##ा", "1", "##a"], lowercase=False)
    a_data_set(tmp_path / "d", tokenizer, train=["the"])
    report = text_report(tmp_path / "d", ["का का 1a 1a"])
    assert table_below(report, "Frequent words in the most") == [["का", "2", "क ##ा"]]


def test_lists_end_after_a_few_words(tmp_path, tokenizer):
    words = [f"{first}{second}" for first in "abcd" for second in "wxyz"]
    other = a_tokenizer(tmp_path / "other", words)
    a_data_set(tmp_path / "d", tokenizer, 64, train=[" ".join(words), "the cat xing"])
    report = text_report(
        tmp_path / "d", [" ".join(words + words), "жb жc жd " * 9, *"ΑΒΓΔΕΖΗΘ"], other
    )
    assert [row[0] for row in table_below(report, "Frequent words")] == words[:10]
    assert [row[0] for row in table_below(report, "Words in which the two")] == words[:12]
    assert len(re.findall(r"\(\d\)", block_below(report, "Words with [UNK]"))) == 10
    assert len(block_below(report, "Longest pieces").split()) == 10


def test_a_rare_word_is_not_frequent(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(figures_module, "_FREQUENT_ONE_IN", 10)
    a_data_set(tmp_path / "d", tokenizer, train=["the"])
    report = text_report(tmp_path / "d", ["ab ab xy xy xy " + "cat " * 25])
    assert table_below(report, "Frequent words in the most") == [["xy", "3", "x ##y"]]


def test_two_tokenizers_side_by_side(tmp_path, tokenizer):
    enzyme = "acetyltransferase"
    other = a_tokenizer(tmp_path / "other", [*SPELLING, "acetyl", "##transferase", "cats"])
    a_data_set(tmp_path / "d", tokenizer, max_seq_len=128, train=[enzyme])
    sample = [f"{enzyme} {enzyme} cats Cats cats cats cats cat cat the 12 once"]
    report = text_report(tmp_path / "d", sample, other, "mine | theirs")
    # Here cat is one piece and there cats; to both, 12 is [UNK] and once is spelt out.
    ours, theirs = 2 * 17 + 5 * 2 + 2 + 1 + 1 + 4, 2 * 2 + 5 + 2 * 3 + 1 + 1 + 4
    assert cells(report, "tokens of the sample") == [str(ours), str(theirs)]
    assert cells(report, "entries") == [str(len(SPELLING) + 4)] * 2
    assert cells(report, "… that occur in the data set")[1] == "–"
    assert [
        (row[:2], row[3])
        for row in table_below(report.replace(r"\|", "/"), "Words in which the two")
    ] == [
        ([enzyme, "2"], "acetyl ##transferase"),
        (["cats", "5"], "cats"),
        (["cat", "2"], "c ##a ##t"),
    ]
    assert "| a ##c ##e ##t ##y ##l … (17) |" in report
    fewer, more = 100 * (1 - theirs / ours), 100 * (ours / theirs - 1)
    for said in (
        f"mine | theirs needs {fewer:.1f}% fewer tokens",
        f"{more:.1f}% more",
        f"{126 * 12 / theirs:.0f} words instead of {126 * 12 / ours:.0f}",
    ):
        assert said in report
    assert "losing words" not in report


def test_the_same_tokenizer_twice(tmp_path, tokenizer, texts):
    a_data_set(tmp_path / "d", tokenizer, train=texts)
    report = text_report(tmp_path / "d", texts, tokenizer)
    assert "need as many tokens" in report
    assert "Words in which the two" not in report


def test_unknown_words_are_no_merit(tmp_path, tokenizer):
    other = a_tokenizer(tmp_path / "other", ["cat"])
    a_data_set(tmp_path / "d", tokenizer, train=["the"])
    report = text_report(tmp_path / "d", ["xyz xyz the cat"], other, "few")
    assert "few needs 50.0% fewer tokens" in report
    assert "losing words" in report
    assert "Words in which the two" not in report  # xyz is [UNK] to one


def test_a_cased_tokenizer_is_measured_with_the_same_words(tmp_path, tokenizer):
    other = a_tokenizer(tmp_path / "other", [*SPELLING, "T", "##s", "cats"], lowercase=False)
    a_data_set(tmp_path / "d", tokenizer, train=["the"])
    report = text_report(tmp_path / "d", ["The The cats cats cats the"], other)
    assert cells(report, "tokens a word") == ["1.500", f"{(2 * 3 + 3 + 1) / 6:.3f}"]
    assert table_below(report, "Words in which the two") == [
        ["The", "2", "the", "T ##h ##e"],
        ["cats", "3", "cat ##s", "cats"],
    ]


def test_tokenizers_are_left_as_they_are(tmp_path, tokenizer):
    a_data_set(tmp_path / "d", tokenizer, train=["the"])
    other = a_tokenizer(tmp_path / "other", SPELLING)
    other.enable_truncation(5)
    other.enable_padding(length=30)
    report = text_report(tmp_path / "d", ["the the the the the the the [SEP]"], other)
    assert cells(report, "tokens of the sample") == ["12", "12"]
    assert other.truncation["max_length"] == 5
    assert other.padding["length"] == 30
    assert not other.encode_special_tokens


@pytest.mark.parametrize("sample", [[], [""], [" \n", "\u200b"]])
@pytest.mark.parametrize("compared", [False, True])
def test_a_sample_without_words(tmp_path, tokenizer, sample, compared):
    a_data_set(tmp_path / "d", tokenizer, train=["the cat"])
    report = text_report(tmp_path / "d", sample, tokenizer if compared else None)
    assert "no words" in report
    assert "tokens a word" not in report
    assert cells(report, "documents") == ["1"]
    assert cells(report, "entries")[0] == f"{len(SPELLING) + 4}"
    assert "nan" not in report


def test_words_without_tokens(tmp_path, tokenizer):
    """A lone accent is stripped, and nothing is left of the word."""
    a_data_set(tmp_path / "d", tokenizer, train=["the cat"])
    report = text_report(tmp_path / "d", ["\u0301"], tokenizer)
    assert cells(report, "tokens a word") == ["0.000", "0.000"]
    assert cells(report, "words of one piece") == ["0%", "0%"]


def test_all_unknown(tmp_path):
    tokenizer = a_tokenizer(tmp_path / "tokenizer", [])
    a_data_set(tmp_path / "d", tokenizer, train=["xyz", "x y"])
    report = text_report(tmp_path / "d", ["xyz x y y"])
    assert cells(report, "share of [UNK]") == ["100%"]
    assert cells(report, "words with [UNK]") == ["100%"]
    assert cells(report, "words of one piece") == ["0%"]
    assert "100% of the tokens of train are [UNK]" in report
    assert block_below(report, "Longest pieces") == "none"
    assert block_below(report, "Words with [UNK]") == "y (2)  x (1)  xyz (1)"
    assert "Frequent words" not in report


def test_ids_that_no_entry_has(tmp_path):
    """A tokenizer.json may leave out ids; they are neither entries nor in use."""
    vocab = {"[PAD]": 0, "[UNK]": 7, "[CLS]": 9, "[SEP]": 70, "[MASK]": 11, "the": 100, "cat": 65}
    whole = a_tokenizer(tmp_path / "whole", [f"w{i}" for i in range(200)])
    text = whole.to_str()
    listed = re.search(r'"vocab":(\{.*?\})', text).group(1)
    gaps = str(vocab).replace("'", '"')
    added = re.sub(
        r'"id":\d+,(.*?"content":"(\[\w+\])")',
        lambda match: f'"id":{vocab[match[2]]},{match[1]}',
        text.replace(listed, gaps),
    )
    path = tmp_path / "tokenizer.json"
    path.write_text(added)
    tokenizer = load_tokenizer(path)
    a_data_set(tmp_path / "d", tokenizer, train=["the the"])
    report = text_report(tmp_path / "d", ["the"])
    assert cells(report, "entries") == ["2"]
    assert cells(report, "… that occur in the data set") == ["50.0%"]


@pytest.mark.parametrize(
    ("texts", "warnings"),
    [
        (["the a b aa"] * 4, []),
        (["the a b aa", "the a b"] * 2 + ["a " * 15], []),
        (["the a b aa"] * 3 + ["a " * 15], ["25.0% of the documents of train are cut at 16"]),
        (["the a b"], ["25.0% of the vocabulary never occurs"]),
        (["the a b aa"] * 19 + ["the the the the ж"], []),
        (["the a b aa ж"], ["16.7% of the tokens of train are [UNK]"]),
        (["ж " * 15], ["100% of the tokens", "100% of the documents", "100% of the voc"]),
    ],
)
def test_warnings(tmp_path, texts, warnings):
    a_data_set(tmp_path / "d", a_tokenizer(tmp_path, ["a", "##a", "b"]), train=texts)
    found = re.findall(r"^\*\*Warning:\*\* (.*)$", text_report(tmp_path / "d", []), re.MULTILINE)
    assert len(found) == len(warnings)
    assert all(line.startswith(warning) for line, warning in zip(found, warnings, strict=True))


def test_it_fits_a_terminal_and_is_markdown(tmp_path):
    wide = [
        "统" * 3,
        "漢字" * 20,
        "é" * 90,
        "क्षत्रिय",
        "x" * 120,
        "y" * 80,
        "カ" * 60,
        "|",
        "\u202e",
    ]
    tokenizer = a_tokenizer(tmp_path / "tokenizer", [*SPELLING, "漢", "##क", "カ" * 60, "##ee"])
    other = a_tokenizer(tmp_path / "other", [*SPELLING, "|", "e", "##e"])
    texts = [" ".join(wide)] * 30
    a_data_set(tmp_path / "d", tokenizer, train=texts * 7, validation=texts)
    report = text_report(tmp_path / "d", texts, other, "a|long\u202ename/of/a/tokenizer|" * 5)
    lines = report.split("\n")
    assert max(map(columns, lines)) <= 100
    assert all(line == line.rstrip() for line in lines)
    assert report.endswith("\n")
    assert not report.endswith("\n\n")
    for table in re.findall(r"(?:^\|.*\n)+", report, re.MULTILINE):
        rows = table.strip().split("\n")
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
        assert len({columns(row) for row in rows}) == 1
    text = report.replace("\n", "")
    assert not [char for char in text if unicodedata.category(char) in ("Cc", "Cf")]


def test_columns_of_a_terminal():
    assert columns("ab") == 2
    assert columns("漢カ") == 4
    assert columns("e\u0301") == 1


def test_a_vocabulary_moves_no_cursor(tmp_path):
    tokenizer = a_tokenizer(tmp_path / "tokenizer", ["a\x1bb"])
    tokenizer.normalizer = None
    a_data_set(tmp_path / "d", tokenizer, train=["a\x1bb"])
    assert block_below(text_report(tmp_path / "d", []), "Longest pieces") == "a\ufffdb"


def test_percent():
    for value, text in {
        0: "0%",
        1e-6: "< 0.001%",
        1e-5: "0.001%",
        0.00049: "0.049%",
        0.001: "0.1%",
        0.12345: "12.3%",
        0.9994: "99.9%",
        0.9999: "> 99.9%",
        1: "100%",
        1.5: "150.0%",
    }.items():
        assert percent(value) == text


def test_many_sources_are_summed(tmp_path, tokenizer):
    a_data_set(tmp_path / "data", tokenizer, train=["the cat"] * 3)
    path = tmp_path / "data" / "dataset.json"
    metadata = DatasetMetadata.load(tmp_path / "data")
    (source,) = metadata.sources
    sources = tuple(dataclasses.replace(source, name=f"{i}.txt") for i in range(13))
    documents = 3 * source.documents
    path.write_text(dataclasses.replace(metadata, sources=sources).to_json())
    report = text_report(tmp_path / "data", [])
    assert "- 9.txt:" in report
    assert "- 10.txt:" not in report
    assert f"- 3 more inputs: {documents:,} document" in report
