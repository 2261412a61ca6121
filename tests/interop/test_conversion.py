"""The command convert: from a run to a Hugging Face folder, and from such a folder to a workdir."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from configs import tiny
from mosaicbert_jax import BertConfig, BertForMaskedLM, BertModel, UserError, conversion
from mosaicbert_jax import __main__ as commands
from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.data.pipeline import Position
from mosaicbert_jax.prediction import FillMask
from mosaicbert_jax.pretraining.pretraining import Pretraining
from mosaicbert_jax.storage import workdir
from mosaicbert_jax.storage.opening import load_run
from mosaicbert_jax.training import checkpoints
from mosaicbert_jax.training.checkpoints import Snapshot
from mosaicbert_jax.training.durations import Progress
from mosaicbert_jax.training.loop import fresh_start
from mosaicbert_jax.training.recovery import Health
from mosaicbert_jax.training.step import TrainState
from tests.interop.model_cases import SMALL, assert_same_parameters, random_model


def command(*arguments) -> int:
    """mosaicbert COMMAND, in this process; its exit status."""
    try:
        commands.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code
    return 0


def refused(capsys, *arguments) -> str:
    """What a command says that ends with one line."""
    assert command("convert", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def prepared(folder, dataset, **overrides) -> Pretraining:
    """A run of configs/tiny.py that has not begun."""
    config = tiny.get_config()
    config.update(overrides)
    config.data.path = str(dataset)
    return Pretraining.prepare(config, folder)


EVALUATION = {
    "eval_loss": 2.25, "eval_masked_accuracy": 0.5, "eval_commonest_accuracy": 0.125,
    "eval_predictions": 1234,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """What two checkpoints and one evaluation leave, without the training between them."""
    run = prepared(tmp_path_factory.mktemp("runs") / "tiny", dataset)
    with workdir.locked(run.folder), checkpoints.Checkpoints(run.folder, keep=2) as store:
        workdir.claim(run.folder, run.record, run.tokenizer_files())
        for step in (2, 4):
            model = random_model(BertForMaskedLM, run.model, scale=step / 10)
            params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
            state = TrainState(params, jax.jit(run.optimizer.init)(params), jnp.asarray(step))
            progress = Progress(step=step, sequences=25 * step, tokens=1000 * step)
            store.save(Snapshot(state, progress, Position(), Health()), run.record)
    rows = [{"step": step, "loss": 5.0} for step in range(1, 5)]
    rows += [{"step": 3, **EVALUATION}, {"step": 5, **EVALUATION, "eval_loss": 1.0}]
    rows += [{"step": 4, **EVALUATION, "eval_loss": None}]  # what was not finite
    lines = [*map(json.dumps, rows), '{"step": 4, "eval_lo']  # and what a killed run left
    (run.folder / "metrics.jsonl").write_text("\n".join(lines))
    return run.folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    assert command("convert", run, "--output", folder) == 0
    return folder


def test_a_run_becomes_a_folder(run, exported):
    model = load_run(run)
    assert_same_parameters(BertForMaskedLM.from_pretrained(exported), model)
    assert {path.name for path in exported.iterdir()} == {
        "README.md", "config.json", "configuration_mosaicbert.py", "model.safetensors",
        "modeling_mosaicbert.py", "padding_mosaicbert.py", "tokenizer.json",
        "tokenizer_config.json", "vocab.txt",
    }  # fmt: skip
    assert (exported / "vocab.txt").read_bytes() == (run / "tokenizer/vocab.txt").read_bytes()


def test_an_earlier_step(run, tmp_path, capsys):
    assert command("convert", run, "--step", 2, "--output", tmp_path / "out") == 0
    found = BertForMaskedLM.from_pretrained(tmp_path / "out")
    assert_same_parameters(found, load_run(run, 2))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| done when these weights were saved | 2 steps" in card
    assert "None was recorded" in card  # the evaluations are of later ones
    assert "step 3; it has [2, 4]" in refused(
        capsys, run, "--step", 3, "--output", tmp_path / "other"
    )


def test_the_card_says_what_the_run_did(run, exported, dataset):
    card = (exported / "README.md").read_text()
    metadata = DatasetMetadata.load(dataset)
    for fact in (
        "pipeline_tag: fill-mask",
        "AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)",
        "4 steps, 100 sequences, 4,000 tokens (padding not counted)",
        "| planned length | 30ba |",
        "| batch | 1,024 tokens, padding included, in rows of 128, packed |",
        "| masked | 30% of the tokens |",
        "learning rate 0.003, betas 0.9 and 0.98, eps 1e-06, decoupled weight decay 1e-05",
        "| started from | random weights |",
        "| seed | 17 |",
        metadata.digest,
        "`text.jsonl`: 400 documents",
        "| cross-entropy, nats | 2.250 |",
        "| masked tokens guessed right | 0.500 |",
        "| the same, always guessing the commonest | 0.125 |",
        "On held-out text, 15% of its tokens masked, at step 3, over 1,234 predictions",
    ):
        assert fact in card, fact
    assert str(run) not in card  # nor any other path of this machine
    assert str(dataset) not in card


def test_data_that_has_moved_or_changed_is_not_described(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    record = json.loads((copy / "config.json").read_text())
    path, digest = record["config"]["data"]["path"], record["dataset"]["digest"]
    parts = [(path, digest, 0.5), (path, "c" * 64, 0.25), (str(tmp_path / "gone"), "f" * 64, 0.25)]
    record["dataset"] = {
        "mixture": {
            str(index): {"digest": digest, "weight": weight}
            for index, (_, digest, weight) in enumerate(parts)
        }
    }
    record["config"]["data"] |= {"path": None, "mixture": [[path, w] for path, _, w in parts]}
    (copy / "config.json").write_text(json.dumps(record))
    assert command("convert", copy, "--output", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    of = "of the sequences: a data set whose record has the sha256"
    assert f"50.0% {of} `{digest}`, made of" in card
    assert f"25.0% {of} `{'c' * 64}`. It was not at hand" in card
    assert f"25.0% {of} `{'f' * 64}`. It was not at hand" in card
    assert card.count("400 documents") == 1


def test_a_folder_becomes_a_workdir_that_training_starts_from(
    run, exported, dataset, tmp_path, capsys
):
    folder = tmp_path / "imported"
    assert command("convert", exported, "--output", folder) == 0
    assert f"--config.init_from={folder}" in capsys.readouterr().out
    model = load_run(run)
    assert_same_parameters(load_run(folder), model)

    guesses = FillMask.open(folder)("the [MASK] of union")
    assert guesses == FillMask.open(run)("the [MASK] of union")

    more = prepared(tmp_path / "more", dataset, init_from=str(folder))
    with jax.set_mesh(more.mesh), checkpoints.Checkpoints(more.folder, keep=1) as store:
        start = store.restore(more.abstract_state()) or fresh_start(more)
    assert start.progress == Progress()
    jax.tree.map(
        np.testing.assert_array_equal,
        start.state.params,
        nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    )

    record = prepared(folder, dataset).record
    with pytest.raises(UserError, match="holds a converted model, and no run to resume"):
        workdir.claim(folder, record, {})

    assert command("convert", folder, "--output", tmp_path / "again") == 0
    written = load_file(tmp_path / "again" / "model.safetensors")
    expected = load_file(exported / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all((written[name] == expected[name]).all() for name in expected)
    assert "Nothing about it" in (tmp_path / "again" / "README.md").read_text()


def test_an_encoder_alone_gets_a_head_if_asked_for(run, exported, tmp_path, capsys):
    folder = tmp_path / "encoder"
    config = BertConfig(**{**SMALL, "vocab_size": 192})
    encoder = random_model(BertModel, config)
    encoder.save_pretrained(folder, tokenizer=exported)
    error = refused(capsys, folder, "--output", tmp_path / "out")
    assert "missing cls.predictions.decoder.bias" in error
    assert not (tmp_path / "out").exists()
    assert command("convert", folder, "--renew-head", "--output", tmp_path / "out") == 0
    assert_same_parameters(load_run(tmp_path / "out").bert, encoder)


def test_mistakes_end_with_one_line(run, exported, tmp_path, capsys):
    out = tmp_path / "out"
    assert str(tmp_path / "nowhere") in refused(capsys, tmp_path / "nowhere", "--output", out)
    assert "has its tokenizer" in refused(capsys, run, "--output", out, "--tokenizer", exported)
    assert "is a run" in refused(capsys, run, "--output", out, "--renew-head")
    assert "--step" in refused(capsys, exported, "--output", out, "--step", 2)
    assert "already exists" in refused(capsys, run, "--output", exported)
    assert "already exists" in refused(capsys, exported, "--output", run)
    assert not out.exists()

    bare = tmp_path / "bare"
    BertForMaskedLM.from_pretrained(exported).save_pretrained(bare)
    assert "neither tokenizer.json nor vocab.txt" in refused(capsys, bare, "--output", out)
    (tmp_path / "large.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(200))])
    )
    assert "205 entries and the model 192" in refused(
        capsys, bare, "--output", out, "--tokenizer", tmp_path / "large.txt"
    )
    assert command("convert", bare, "--output", out, "--tokenizer", exported / "vocab.txt") == 0


@pytest.mark.parametrize("damage", ["config.json", "checkpoints", "tokenizer"])
def test_a_damaged_run(run, tmp_path, capsys, damage):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    if damage == "checkpoints":
        shutil.rmtree(copy / "checkpoints" / "4" / "model")
    elif damage == "tokenizer":
        (copy / "tokenizer" / "tokenizer.json").write_text("{")
    else:
        (copy / damage).write_text("{")
    assert damage in refused(capsys, copy, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_conversion_that_fails_leaves_nothing(exported, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(conversion, "write_params", fail)
    with pytest.raises(UserError):
        conversion.import_folder(exported, tmp_path / "folder" / "out")
    assert list((tmp_path / "folder").iterdir()) == []
