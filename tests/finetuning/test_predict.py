"""Predictions: lengths travel with the model, pairs only where they can be, labels of all kinds."""

import json

import numpy as np
import pytest

from mosaicbert_jax import BertConfig, BertForSequenceClassification
from mosaicbert_jax.commands import cli
from mosaicbert_jax.interop.writing import save_model
from mosaicbert_jax.storage.opening import open_model
from tests.conftest import standard_input
from tests.finetuning.cases import TINY, finetune, pretrained, write_csv
from tests.interop.model_cases import SMALL, random_model

pytestmark = pytest.mark.one_end


def predicted(capsys, *words) -> tuple[list[list[str]], str]:
    """The rows that `predict` prints, and what it says beside."""
    capsys.readouterr()
    cli.main(["predict", *map(str, words)])
    told = capsys.readouterr()
    return [line.split("\t") for line in told.out.splitlines()], told.err


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """A classifier whose texts differ behind their 300th word."""
    place = tmp_path_factory.mktemp("long")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(60):
        words = rng.choice(["the", "of", "union", "state"], 300)
        end = ("war", "peace")[number % 2]
        rows.append((" ".join([*words, *[end] * 60]), end))
    data = write_csv(place / "long.csv", rows)
    origin = pretrained(place / "origin", dataset, TINY)
    settings = ("data.max_seq_len=400", "train.duration=2ba", "train.batch_size=4")
    assert finetune(place / "run", origin, data, *settings) == 0
    return place / "run"


def test_an_exported_model_reads_as_much_as_the_run(run, tmp_path, capsys):
    data = run.parent / "long.csv"
    ours, told = predicted(capsys, run, data)
    assert not told
    cli.main(["convert", str(run), "--output", str(tmp_path / "exported")])
    settings = json.loads((tmp_path / "exported" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 400
    assert predicted(capsys, tmp_path / "exported", data) == (ours, "")
    stored = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert stored["problem_type"] == "single_label_classification"


def test_texts_that_are_cut_are_counted(run, tmp_path, capsys):
    cli.main(["convert", str(run), "--output", str(tmp_path / "exported")])
    path = tmp_path / "exported" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 100}))
    write_csv(
        tmp_path / "some.csv", [("war " * 200, "war"), ("peace", "peace"), ("war " * 99, "war")]
    )
    _, told = predicted(capsys, tmp_path / "exported", tmp_path / "some.csv")
    assert "100 tokens: 2 of the texts" in told


def test_a_run_says_how_many_examples_it_cuts(run, dataset, tmp_path, capsys):
    settings = ("data.max_seq_len=32", "train.duration=1ba", "train.batch_size=4")
    assert (
        finetune(tmp_path / "run", run.parent / "origin", run.parent / "long.csv", *settings) == 0
    )
    assert "data.max_seq_len=32: 60 of the examples" in capsys.readouterr().out


def test_a_tab_is_white_space_to_a_model_of_single_texts(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", standard_input(b"the war\tof the union\n"))
    (row,), _ = predicted(capsys, run)
    monkeypatch.setattr("sys.stdin", standard_input(b"the war of the union\n"))
    assert predicted(capsys, run)[0] == [row]


def test_empty_input_is_said(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", standard_input(b"\n"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", str(run)])
    assert ended.value.code == 2
    assert "standard input is empty" in capsys.readouterr().err


def test_several_labels_have_a_probability_each(run, tmp_path, capsys):
    tokenizer = open_model(run).place / "tokenizer"
    config = BertConfig(**{**SMALL, "vocab_size": open_model(run).config.vocab_size})
    model = random_model(BertForSequenceClassification, config, num_labels=3)
    save_model(
        model, tmp_path / "model", tokenizer=tokenizer, labels=("a", "b", "c"),
        problem_type="multi_label_classification",
    )  # fmt: skip
    write_csv(tmp_path / "some.csv", [("the war", "")])
    ((*pairs, text),), _ = predicted(capsys, tmp_path / "model", tmp_path / "some.csv")
    assert text == "the war"
    assert sorted(pairs[::2]) == ["a", "b", "c"]
    probabilities = [float(value) for value in pairs[1::2]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert abs(sum(probabilities) - 1) > 0.01  # of a softmax they would add up to 1
