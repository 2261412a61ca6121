"""A ModernBERT's whole way: byte-level BPE, training, a stock folder, and training from that."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from mosaicbert_jax import BertForMaskedLM, open_model
from mosaicbert_jax.commands.cli import main as commands
from mosaicbert_jax.conversion import export_run
from mosaicbert_jax.finetuning.classifier import Classifier
from mosaicbert_jax.prediction import FillMask
from mosaicbert_jax.preparation.preparation import PrepareOptions, prepare
from mosaicbert_jax.storage.target import TOKEN_CLASSIFICATION
from tests.conftest import ROOT
from tests.finetuning.cases import SHORT, finetune, metric_rows, sentences, write_csv
from tests.finetuning.test_tokens import tagged, write
from tests.training.test_pretrain import call, status_of

MODEL = (
    "model.num_hidden_layers=2", "model.hidden_size=64", "model.num_attention_heads=4",
    "model.intermediate_size=64", "model.sliding_window=4",
)  # fmt: skip


def train(workdir, data, *settings) -> int:
    words = [
        "train.py", f"--config={ROOT}/configs/quickstart.py:modernbert", f"--workdir={workdir}",
        f"--config.data.path={data}", *(f"--config.{word}" for word in (*MODEL, *settings)),
    ]  # fmt: skip
    return call(words)


@pytest.fixture(scope="module")
def data(corpus, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("bpe") / "set"
    options = PrepareOptions((str(corpus),), str(folder), vocab_size=320, tokenizer_model="bpe")
    assert prepare(options, say=lambda line: None).options["tokenizer"] == "trained BPE"
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("modernbert") / "run"
    lengths = ("train.duration=40ba", "eval.every=40ba", "checkpoint.every=40ba", "log.every=20")
    assert train(folder, data, *lengths) == 0
    return folder


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("stock") / "model"
    export_run(run, path)
    return path


def test_it_learns(run):
    losses = [row["loss"] for row in metric_rows(run) if "loss" in row]
    assert losses[-1] < losses[0] - 0.5


def test_a_run_from_its_stock_folder_starts_with_its_loss(run, data, folder, tmp_path):
    assert json.loads((folder / "config.json").read_text())["model_type"] == "modernbert"
    (before,) = (row["eval_loss"] for row in metric_rows(run) if "eval_loss" in row)
    again = ("train.duration=1ba", f"init_from={folder}", "optimizer.learning_rate=1e-30")
    assert train(tmp_path / "again", data, *again) == 0
    (after,) = (row["eval_loss"] for row in metric_rows(tmp_path / "again") if "eval_loss" in row)
    assert after == before


def test_guesses_are_words(run, folder):
    guesses = [FillMask.open(place)("The [MASK] of the union.")[0] for place in (run, folder)]
    assert guesses[0] == guesses[1]
    assert not any("Ġ" in guess.token for guess in guesses[0])


@pytest.mark.one_end
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_classifier_from_it(folder, tmp_path, pooling):
    folder = pathlib.Path(shutil.copytree(folder, tmp_path / "origin"))
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"cls"', f'"{pooling}"'))
    texts = write_csv(tmp_path / "texts.csv", sentences(200))
    assert finetune(tmp_path / "run", folder, texts, *SHORT) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["scores"]["accuracy"] > 0.9
    # The head of the masked language model is where the classifier's starts.
    stored = open_model(folder)
    assert stored.heads == ("head",)
    assert open_model(tmp_path / "run").heads == ("head", "classifier")
    export_run(tmp_path / "run", tmp_path / "exported")
    stored = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert stored["classifier_pooling"] == pooling
    answers = []
    for place in ("run", "exported"):
        classifier = Classifier(tmp_path / place)
        (some,) = [next(iter(classifier.read(texts)))]
        answers.append([prediction.label for prediction in classifier(some)])
    assert answers[0] == answers[1]


@pytest.mark.one_end
def test_words_are_labeled_by_their_first_pieces(folder, tmp_path):
    data = write(tmp_path / "tags.jsonl", tagged(200))
    settings = (
        *SHORT, f"task={TOKEN_CLASSIFICATION}", "data.text=words", "data.label=tags",
        "data.max_seq_len=96",
    )  # fmt: skip
    assert finetune(tmp_path / "run", folder, data, *settings) == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["scores"]["entity_f1"] > 0.9


def test_a_tokenizer_of_another_family_is_taken(corpus, folder, tmp_path, capsys):
    """`prepare --tokenizer` with the model's own, and with roles that are told."""
    out = tmp_path / "own"
    words = ["prepare", "--input", str(corpus), "--output", str(out), "--tokenizer", str(folder)]
    assert commands(words) in (0, None)
    entries = json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    path = tmp_path / "told.json"
    text = (folder / "tokenizer.json").read_text().replace("[MASK]", "<hole>")
    path.write_text(text)
    for told, status in (([], 2), (["--special-tokens", "mask=<hole>"], 0)):
        words = ["prepare", "--input", str(corpus), "--output", str(tmp_path / "told")]
        assert status_of(commands, [*words, "--tokenizer", str(path), *told]) == status
    assert "--special-tokens mask=ENTRY" in capsys.readouterr().err
    assert json.loads((tmp_path / "told" / "tokenizer.json").read_text())["added_tokens"] == entries
    one, other = (np.load(place / "train-00000.tokens.npy") for place in (out, tmp_path / "told"))
    np.testing.assert_array_equal(one, other)
    assert BertForMaskedLM.from_pretrained(folder).config.position_embedding == "rope"
