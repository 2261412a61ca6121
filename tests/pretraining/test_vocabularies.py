"""Text and model are of one vocabulary, and there is something in the text to learn."""

import shutil

import pytest

from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare, scaled_vocab_size
from mosaicbert_jax.text.tokenizer import load_tokenizer
from tests.finetuning.cases import TINY, pretrained
from tests.training.test_pretrain import train

SIZES = (
    "model.num_hidden_layers=1", "model.hidden_size=32", "model.num_attention_heads=2",
    "model.intermediate_size=64", "train.duration=1ba",
)  # fmt: skip


@pytest.fixture(scope="module")
def other(corpus, dataset, tmp_path_factory):
    """The corpus again, with the same entries in another order."""
    place = tmp_path_factory.mktemp("other")
    lines = (dataset / "vocab.txt").read_text().splitlines()
    (place / "vocab.txt").write_text("\n".join([*lines[:5], *lines[:4:-1]]) + "\n")
    options = PrepareOptions(
        inputs=(str(corpus),), output=str(place / "set"), tokenizer=str(place / "vocab.txt")
    )
    prepare(options, say=lambda line: None)
    return place / "set"


def test_a_model_of_another_vocabulary_is_refused(dataset, other, tmp_path, capsys):
    origin = pretrained(tmp_path / "origin", dataset, TINY)
    assert train(tmp_path / "same", dataset, *SIZES, f"init_from={origin}") == 0
    for place in ("run", "folder"):
        start = origin
        if place == "folder":
            from mosaicbert_jax.conversion import export_run

            start = tmp_path / "folder"
            export_run(origin, start)
        capsys.readouterr()
        assert train(tmp_path / f"from_{place}", other, *SIZES, f"init_from={start}") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(start) in error
        entry = load_tokenizer(dataset / "tokenizer.json").id_to_token(5)
        assert f"entry 5 is {entry!r} there" in error


def test_case_is_part_of_the_vocabulary(corpus, dataset, tmp_path, capsys):
    shutil.copy(dataset / "vocab.txt", tmp_path / "vocab.txt")
    cased = load_tokenizer(tmp_path / "vocab.txt", lowercase=False)
    cased.save(str(tmp_path / "cased.json"))
    options = PrepareOptions(
        inputs=(str(corpus),), output=str(tmp_path / "set"), lowercase=False,
        tokenizer=str(tmp_path / "cased.json"),
    )  # fmt: skip
    prepare(options, say=lambda line: None)
    origin = pretrained(tmp_path / "origin", dataset, TINY)
    assert train(tmp_path / "run", tmp_path / "set", *SIZES, f"init_from={origin}") == 2
    assert "lower-cases" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["ACGT" * 40, "ไม่มีช่องว่างระหว่างคำ" * 10])
def test_text_that_cannot_be_spelled(tmp_path, capsys, text):
    (tmp_path / "in.txt").write_text("\n".join(f"{text}{'acgt'[i % 4] * i}" for i in range(50)))
    said: list[str] = []
    options = PrepareOptions(
        inputs=(str(tmp_path / "in.txt"),), output=str(tmp_path / "set"), vocab_size=100
    )
    prepare(options, say=said.append)
    assert any("100.00% of the tokens [UNK]" in line for line in said)
    (warning,) = (line for line in said if line.startswith("warning"))
    assert "100.0% of the tokens of train" in warning
    assert train(tmp_path / "run", tmp_path / "set") == 2
    error = capsys.readouterr().err
    assert "nothing to predict" in error
    assert str(tmp_path / "set") in error


def test_the_share_of_unknown_words_is_always_told(dataset, corpus, tmp_path):
    said: list[str] = []
    prepare(
        PrepareOptions(inputs=(str(corpus),), output=str(tmp_path / "set"), vocab_size=192),
        say=said.append,
    )
    assert sum("0.00% of the tokens [UNK]" in line for line in said) == 2  # of both splits
    assert not any(line.startswith("warning") for line in said)


def test_the_vocabulary_follows_the_text():
    assert scaled_vocab_size(0) == scaled_vocab_size(100_000) == 512
    assert scaled_vocab_size(16_600_000) == 4096
    assert scaled_vocab_size(10**9) == scaled_vocab_size(10**12) == 30_522
    assert all(scaled_vocab_size(n) % 64 == 0 for n in (10**6, 10**7, 10**8))
