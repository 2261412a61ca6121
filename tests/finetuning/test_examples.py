"""Reading labeled files and encoding them, and what is said of files that are wrong."""

import gzip
import json

import numpy as np
import pytest
from tokenizers import processors

from mosaicbert_jax import UserError
from mosaicbert_jax.finetuning.encoded import encode, pair_lengths
from mosaicbert_jax.finetuning.examples import Columns, Example, held_out, read_examples
from mosaicbert_jax.storage.target import CLASSIFICATION, REGRESSION, Target
from mosaicbert_jax.text.tokenizer import load_tokenizer, special_token_ids

PAIR = Columns("a", "b", "y")
FIELDS = [{"a": 'The "war", ended.', "b": "Peace\tcame", "y": 1}, {"a": "Ü", "b": "x", "y": -2.5}]


def test_the_same_examples_from_every_format(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, FIELDS)))
    (tmp_path / "x.csv").write_text(
        'y,a,b\r\n1,"The ""war"", ended.",Peace\tcame\r\n-2.5,Ü,x\r\n', encoding="utf-8"
    )
    (tmp_path / "x.tsv").write_text(
        '\ufeffb\ta\ty\n"Peace\tcame"\t"The ""war"", ended."\t1\nx\tÜ\t-2.5\n', encoding="utf-8"
    )
    (tmp_path / "y.csv.gz").write_bytes(gzip.compress((tmp_path / "x.csv").read_bytes()))
    for path in tmp_path.iterdir():
        found = [(e.first, e.second, e.label) for e in read_examples(path, PAIR)]
        assert found == [(FIELDS[0]["a"], FIELDS[0]["b"], "1"), ("Ü", "x", "-2.5")], path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "text,y\na,b\n", "x.csv:2: no column 'label', only 'text', 'y'"),
        ("x.csv", "text,label\na,1\n ,0\n", "x.csv:3: the text in column 'text' is empty"),
        ("x.csv", "text,label\na,1\nb,\n", "x.csv:3: there is no label in column 'label', but"),
        ("x.csv", "text,label\na,1,2\n", "x.csv:2: fields: 3 in this row, 2 in the header"),
        ("x.csv", b"text,label\na,1\n\xff,1\n", "x.csv:3: byte 1 of column"),
        ("x.csv", "text,label\n", "x.csv: no row with an example"),
        ("x.jsonl", '{"text": 3, "label": 1}\n', "x.jsonl:1: column 'text' holds 3, not a text"),
        ("x.jsonl", '{"text": "a", "label": 1}\n[]\n', "x.jsonl:2: the line is a JSON array"),
        ("x.jsonl", '{"text": "a", "label": null}\n', "x.jsonl:1: there is no label"),
        ("x.xls", "", "x.xls: tables are read from files that end in .csv"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_examples(path, Columns("text", None, "label"))
    assert message in str(caught.value)


def test_labels_as_the_loss_takes_them():
    target = Target.of_classes(CLASSIFICATION, ["10", "9", "10"])
    assert target.labels == ("9", "10")
    assert target.number("10", "here") == 1
    with pytest.raises(UserError, match="x:7: unknown label '11'; there are the classes '9', '10'"):
        target.number("11", "x:7")
    stars = Target(REGRESSION, (), (0, 5))
    assert stars.number("4.5", "here") == 4.5
    with pytest.raises(UserError, match=r"x:7: the label 5.5 is outside the range, 0 to 5"):
        stars.number("5.5", "x:7")
    with pytest.raises(UserError, match="x:7: the label 'good' is not a number"):
        stars.number("good", "x:7")


def test_copies_of_a_text_are_held_out_together():
    examples = [Example(f"text {i % 300}", None, "1", str(i)) for i in range(900)]
    kept, out = held_out(examples, 0.2)
    assert len(kept) + len(out) == 900
    assert not {e.first for e in kept} & {e.first for e in out}
    assert 100 < len(out) < 260


def test_pairs_are_cut_as_the_original_bert_does():
    for first in range(1, 20):
        for second in range(1, 20):
            a, b = first, second
            while a + b > 11:
                a, b = (a - 1, b) if a > b else (a, b - 1)
            assert pair_lengths(first, second, 11) == (a, b)


def test_tokens_and_types_are_those_of_the_tokenizers_library(dataset):
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    texts = [("the war", "great people of the union"), ("[SEP] law", None), ("year", "a")]
    examples = [Example(*pair, "x", "here") for pair in texts]
    found = encode(examples, tokenizer, Target(CLASSIFICATION, ("x",)), 40)
    ids = special_token_ids(tokenizer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids.sep), ("[CLS]", ids.cls))
    tokenizer.encode_special_tokens = True
    expected = [tokenizer.encode(*pair) for pair in texts]
    assert found.tokens_T.tolist() == [i for one in expected for i in one.ids]
    assert found.types_T.tolist() == [i for one in expected for i in one.type_ids]
    np.testing.assert_array_equal(found.lengths(np.arange(3)), [len(one.ids) for one in expected])
    assert (found.tokens_T == ids.sep).sum() == 5  # the one in the text is text

    long = [
        Example("the war " * 30, "great " * 9, "x", "here"),
        Example("law " * 99, None, "x", ""),
    ]
    cut = encode(long, tokenizer, Target(CLASSIFICATION, ("x",)), 24)
    assert cut.lengths(np.arange(2)).tolist() == [24, 24]
    assert cut.types_T[:24].sum() == 10


def test_a_text_without_a_token_is_named_where_it_has_a_label(dataset):
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    target = Target(CLASSIFICATION, ("x",))
    for example, length in (
        (Example("law", "", None, ""), 4),
        (Example("\u200b", None, None, ""), 2),
    ):
        assert encode([example], tokenizer, target, 9).lengths(np.arange(1)) == [length]
    with pytest.raises(UserError, match=r"f\.csv:3: a text without a single token"):
        encode(
            [Example("\u200b", None, "x", "f.csv:3")], tokenizer, Target(CLASSIFICATION, ("x",)), 9
        )


def test_classes_of_equal_numbers_have_one_order():
    """Whatever the order in which they come: a set's depends on the hash seed."""
    names = ["01", "1", "001", "2", "10"]
    expected = ("001", "01", "1", "2", "10")
    for turn in range(len(names)):
        turned = [*names[turn:], *names[:turn]]
        assert Target.of_classes(CLASSIFICATION, dict.fromkeys(turned)).labels == expected


@pytest.mark.parametrize("value", ["null", "NaN", '""', '" "', '"nan"', '"NULL"', "[1]"])
def test_no_label_is_one_thing(tmp_path, value):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"text": "a", "label": {value}}}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:1: there is no label"):
        read_examples(path, Columns("text", None, "label"))


def test_no_label_in_a_table(tmp_path):
    for value in ("", "NaN", "null"):
        (tmp_path / "x.csv").write_text(f"text,label\na,{value}\n")
        with pytest.raises(UserError, match=r"x\.csv:2: there is no label"):
            read_examples(tmp_path / "x.csv", Columns("text", None, "label"))


def test_a_number_has_one_spelling(tmp_path):
    labels = ["1", "1.0", '"1.0"', '"1"', "-2.00", '"1.50"', '"01"', "true"]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"text": "a", "label": {label}}}\n' for label in labels))
    found = [example.label for example in read_examples(path, Columns("text", None, "label"))]
    assert found == ["1", "1", "1", "1", "-2", "1.50", "01", "true"]


def test_a_label_beyond_float32_is_named():
    target = Target(REGRESSION)
    assert target.number("3e38", "x:1") == 3e38
    for label in ("1e39", "-1e39", "1e400", "nan"):
        with pytest.raises(UserError, match="x:1: the label"):
            target.number(label, "x:1")


def test_markers_of_the_tokenizer_stay_whole(dataset):
    tokenizer = load_tokenizer(dataset / "tokenizer.json")
    tokenizer.add_special_tokens(["[E1]"])
    found = encode(
        [Example("the [E1] war [SEP]", None, None, "x")], tokenizer, Target(REGRESSION), 64
    )
    ids = special_token_ids(tokenizer)
    assert (found.tokens_T == tokenizer.token_to_id("[E1]")).sum() == 1
    assert (found.tokens_T == ids.sep).sum() == 1  # the one at the end
