"""A finetuning run as a user meets it: what it starts from, leaves, refuses, and how it resumes."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest

from mosaicbert_jax import BertForSequenceClassification
from mosaicbert_jax.commands import config_line as command_line
from mosaicbert_jax.commands.cli import main as commands
from mosaicbert_jax.finetuning import configuration
from mosaicbert_jax.finetuning.classifier import Classifier
from mosaicbert_jax.finetuning.examples import Columns, Example, held_out, read_examples
from mosaicbert_jax.finetuning.finetuning import Finetuning
from mosaicbert_jax.interop.writing import save_model
from mosaicbert_jax.storage.opening import load_run
from mosaicbert_jax.text.encoding import document_digest
from mosaicbert_jax.training import checkpoints
from mosaicbert_jax.training.loop import fresh_start
from tests.finetuning.cases import (
    BASELINE,
    SHORT,
    TINY,
    finetune,
    metric_rows,
    params_of,
    pretrained,
    sentences,
    words,
    write_csv,
)
from tests.pretraining.test_data_settings import interrupted_at


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("finetuning")


@pytest.fixture(scope="module")
def origin(place, dataset):
    return pretrained(place / "origin", dataset)


@pytest.fixture(scope="module")
def data(place):
    return write_csv(place / "reviews.csv", sentences(200))


@pytest.fixture(scope="module")
def run(place, origin, data):
    folder = place / "run"
    assert finetune(folder, origin, data, *SHORT) == 0
    return folder


def command(*arguments) -> int:
    try:
        commands([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code
    return 0


def test_what_a_run_learns_and_leaves(run, origin, data):
    rows = metric_rows(run)
    training = [row for row in rows if "loss" in row]
    assert training[0]["learning_rate"] == 0
    kept, _ = held_out(read_examples(data, Columns("text", None, "label")), 0.2)
    assert training[-1]["samples"] >= 3 * len(kept) > training[-2]["samples"]
    assert [row["samples"] for row in training] == [8 * (i + 1) for i in range(len(training))]
    assert all(
        0 <= row["accuracy"] <= 1 and "overflowed_predictions" not in row for row in training
    )
    evaluations = [row for row in rows if "eval_loss" in row]
    assert len(evaluations) == 3
    assert evaluations[-1]["eval_accuracy"] > 0.9
    results = json.loads((run / "results.json").read_text())
    assert results["scores"]["accuracy"] == evaluations[-1]["eval_accuracy"]
    assert set(results["scores"]) == {"loss", "accuracy", "f1", "matthews"}
    record = json.loads((run / "config.json").read_text())
    assert record["classifier"] == {"kind": "classification", "labels": ["bad", "good"]}
    assert (run / "tokenizer" / "vocab.txt").read_bytes() == (
        origin / "tokenizer" / "vocab.txt"
    ).read_bytes()


def test_a_complete_run_is_left_alone(run, origin, data, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    assert finetune(run, origin, data, *SHORT) == 0
    out = capsys.readouterr().out
    assert "This run is complete" in out
    assert "\naccuracy" in out  # the table
    assert (run / "metrics.jsonl").read_bytes() == before


def last_state(folder):
    store = folder / "checkpoints"
    step = max(int(p.name) for p in store.iterdir())
    with checkpoints.ocp.StandardCheckpointer() as checkpointer:
        found = [
            checkpointer.restore((store / str(step) / i).absolute()) for i in ("model", "optimizer")
        ]
    return step, [np.asarray(x).tobytes() for x in jax.tree.leaves(found)]


def test_interrupted_runs_end_with_the_same_bits(run, origin, data, tmp_path, capsys):
    folder = tmp_path / "run"
    for batches in (5, 9, 20):  # before, shortly after, and long after a checkpoint
        with interrupted_at(batches):
            assert finetune(folder, origin, data, *SHORT) == 130
    assert finetune(folder, origin, data, *SHORT) == 0
    assert "Resuming from step" in capsys.readouterr().out
    assert last_state(folder) == last_state(run)
    assert (folder / "results.json").read_bytes() == (run / "results.json").read_bytes()

    def told(row):
        names = ("step", "loss", "accuracy", "eval_loss", "eval_accuracy")
        return {name: row[name] for name in names if name in row}

    numbers = [
        [told(row) for row in metric_rows(place) if "event" not in row] for place in (folder, run)
    ]
    assert numbers[0] == numbers[1]


def started(folder, origin, data, *overrides):
    """The parameters that a run begins with."""
    config, _, _ = command_line.read_flags(words(folder, origin, data, *SHORT, *overrides))
    run = Finetuning.prepare(config, folder)
    with jax.set_mesh(run.mesh):
        return jax.tree.map(np.asarray, fresh_start(run).state.params)


def same(a, b) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_pooler_and_classifier_start_anew_from_pretraining(origin, data, tmp_path):
    found = started(tmp_path / "run", origin, data)
    assert same(found["bert"], params_of(load_run(origin))["bert"])
    for head in ("pooler", "classifier"):
        assert 0.01 < found[head]["kernel"].std() < 0.03
        assert not found[head]["bias"].any()


def test_a_finetuned_model_keeps_its_heads_unless_asked(run, data, tmp_path, capsys):
    before = params_of(load_run(run))
    assert same(started(tmp_path / "kept", run, data), before)
    found = started(tmp_path / "renewed", run, data, "renew_classifier=True")
    assert same([found["bert"], found["pooler"]], [before["bert"], before["pooler"]])
    assert not same(found["classifier"], before["classifier"])

    other = write_csv(tmp_path / "other.csv", [(t, label * 2) for t, label in sentences(60)])
    assert finetune(tmp_path / "other", run, other, *SHORT) == 2
    error = capsys.readouterr().err
    assert "'bad', 'good'" in error
    assert "'badbad', 'goodgood'; give --config.renew_classifier=True" in error


@pytest.mark.one_end
def test_from_hugging_face_folders_of_both_kinds(place, dataset, data, tmp_path):
    for name, config in (("mosaic", TINY), ("baseline", BASELINE)):
        workdir = pretrained(place / f"{name}_origin", dataset, config)
        folder = tmp_path / f"{name}_folder"
        assert command("convert", workdir, "--output", folder) == 0
        found = started(tmp_path / name, folder, data)
        assert same(found["bert"], params_of(load_run(workdir))["bert"])

    model = BertForSequenceClassification.from_pretrained(folder, renew=("pooler", "classifier"))
    save_model(model, tmp_path / "classifier", tokenizer=folder, labels=("bad", "good"))
    assert same(started(tmp_path / "again", tmp_path / "classifier", data), params_of(model))


@pytest.mark.one_end
def test_regression(origin, tmp_path):
    texts = sentences(120)
    data = write_csv(tmp_path / "x.csv", [(t, 1.0 if y == "good" else -1.0) for t, y in texts])
    folder = tmp_path / "run"
    # In rows that hold all of a batch: one shape to compile.
    settings = ("task=regression", "train.duration=6ep", "data.max_seq_len=96")
    assert finetune(folder, origin, data, *SHORT, *settings) == 0
    scores = json.loads((folder / "results.json").read_text())["scores"]
    assert set(scores) == {"loss", "pearson", "spearman", "mean_absolute_error"}
    assert scores["pearson"] > 0.8
    good, bad = (float(p.label) for p in Classifier(folder)(
        [Example(f"the {word}", None, None, "") for word in ("peace great law", "war state year")]
    ))  # fmt: skip
    assert good > bad + 0.5


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([("a law", "maybe")], (), "dev.csv:2: unknown label 'maybe'; there are the classes 'bad'"),
        ([("a", "good"), ("", "bad")], (), "dev.csv:3: the text in column 'text' is empty"),
        ([("a", "good")], ("data.text=body",), "reviews.csv:2: no column 'body'"),
        ([("a", "good")], ("data.second_text=b",), "reviews.csv:2: no column 'b', only 'text'"),
        ([("a", "good")], ("task=regression",), "reviews.csv:2: the label"),
        ([("a", "good")], ("task=ranking",), "task='ranking': choose classification, regression"),
        ([("a", "good")], ("train.batch_size=0",), "train.batch_size=0 must be at least 1"),
    ],
)
def test_mistakes_are_told_in_a_line(origin, data, tmp_path, capsys, rows, settings, message):
    dev = write_csv(tmp_path / "dev.csv", rows)
    status = finetune(tmp_path / "run", origin, data, *SHORT, f"data.dev_path={dev}", *settings)
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_label_outside_the_range_in_the_dev_file(origin, tmp_path, capsys):
    data = write_csv(tmp_path / "x.csv", [(t, len(y)) for t, y in sentences(20)])
    dev = write_csv(tmp_path / "dev.csv", [("law", 4), ("war", 5.25)])
    settings = ("task=regression", "data.label_range=(0, 5)", f"data.dev_path={dev}")
    assert finetune(tmp_path / "run", origin, data, *SHORT, *settings) == 2
    assert "dev.csv:3: the label 5.25" in capsys.readouterr().err


def test_checkpoints_that_do_not_fit(run, origin, dataset, data, tmp_path, capsys):
    smaller = pretrained(tmp_path / "small", dataset, BASELINE)
    assert finetune(run, smaller, data, *SHORT) == 2  # the run began with another model
    assert "model.feed_forward: 'geglu', now 'gelu'" in capsys.readouterr().err

    settings = (*SHORT, "data.max_seq_len=65")
    assert finetune(tmp_path / "a", smaller, data, *settings) == 2
    assert "data.max_seq_len=65" in capsys.readouterr().err

    shutil.copytree(origin, tmp_path / "wrong")
    vocab = tmp_path / "wrong" / "tokenizer" / "tokenizer.json"
    stored = json.loads(vocab.read_text())
    stored["model"]["vocab"] |= {f"word{i}": i for i in range(192, 300)}
    vocab.write_text(json.dumps(stored))
    assert finetune(tmp_path / "b", tmp_path / "wrong", data, *SHORT) == 2
    assert "300 entries and the model 192" in capsys.readouterr().err


def test_predict_labels_files_and_standard_input(run, origin, data, tmp_path, capsys, monkeypatch):
    lines = ["the peace great law", "the war state year"]
    (tmp_path / "x.txt").write_text("\n".join(lines))
    write_csv(tmp_path / "x.csv", [(7, line) for line in lines], header=("id", "text"))
    printed = []
    for file in ("x.txt", "x.csv"):
        assert command("predict", run, tmp_path / file) == 0
        printed.append(capsys.readouterr().out)
    with (tmp_path / "x.txt").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert command("predict", run) == 0
    printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    cells = [line.split("\t") for line in printed[0].splitlines()]
    assert [label for label, _, _ in cells] == ["good", "bad"]
    assert [text for _, _, text in cells] == lines
    assert all(0.8 < float(probability) <= 1 for _, probability, _ in cells)

    assert command("predict", origin, tmp_path / "x.txt") == 2
    assert "has no classifier" in capsys.readouterr().err
    assert command("fill-mask", run, "the [MASK]") == 2
    assert "holds a finetuned model" in capsys.readouterr().err


def test_an_exported_classifier_keeps_its_class_names(run, tmp_path, capsys):
    folder = tmp_path / "exported"
    assert command("convert", run, "--output", folder) == 0
    stored = json.loads((folder / "config.json").read_text())
    assert stored["id2label"] == {"0": "bad", "1": "good"}
    assert stored["label2id"] == {"bad": 0, "good": 1}
    card = (folder / "README.md").read_text()
    assert "| task | classification: bad, good |" in card
    assert "| held out: accuracy | " in card
    examples = [Example(text, None, None, "") for text, _ in sentences(20, seed=9)]
    exported, ours = Classifier(folder)(examples), Classifier(run)(examples)
    assert [found.label for found in exported] == [found.label for found in ours]
    np.testing.assert_allclose(
        [found.probability for found in exported],
        [found.probability for found in ours],
        rtol=1e-6,
    )

    transformers = pytest.importorskip("transformers")
    pipeline = transformers.pipeline(
        "text-classification", model=str(folder), trust_remote_code=True
    )
    for found, of_jax in zip(pipeline([e.first for e in examples]), ours, strict=True):
        assert found["label"] == of_jax.label
        assert found["score"] == pytest.approx(of_jax.probability, abs=1e-5)


@pytest.mark.one_end
def test_a_class_of_which_all_is_held_out_is_a_class(origin, tmp_path, capsys):
    rows = sentences(60)
    fractions = [document_digest(text)[0] / 2**64 for text, _ in rows]
    rare = min(range(60), key=fractions.__getitem__)
    rows[rare] = (rows[rare][0], "rare")
    data = write_csv(tmp_path / "data.csv", rows)
    assert finetune(tmp_path / "run", origin, data, "train.duration=1ba") == 0
    told = capsys.readouterr().out
    assert "3 classes" in told
    assert "'rare'" in told
    assert "data.dev_fraction" in told


@pytest.mark.one_end
def test_the_default_rate_follows_the_models_size(origin, data, tmp_path, capsys):
    base = configuration.scaled_learning_rate(137_400_384)
    assert base == configuration.scaled_learning_rate(435_000_000) == 3e-5
    assert configuration.scaled_learning_rate(13_740_038) == pytest.approx(3e-4)
    assert configuration.scaled_learning_rate(1_000) == 1e-3
    assert finetune(tmp_path / "run", origin, data, "train.duration=1ba") == 0
    assert "optimizer.learning_rate=0.001" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["optimizer"]["learning_rate"] == 1e-3
    assert finetune(tmp_path / "run", origin, data, "train.duration=1ba") == 0  # the same run
