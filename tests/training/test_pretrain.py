"""train.py as a user meets it: what it writes, refuses, and says."""

import dataclasses
import itertools
import json
import math
import shutil
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import tiny
from mosaicbert_jax import BertConfig, BertForMaskedLM, UserError
from mosaicbert_jax.commands import cli as commands
from mosaicbert_jax.commands.train import main, parse
from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.prediction import FillMask
from mosaicbert_jax.pretraining.configuration import (
    BatchShape,
    batch_shape,
    model_config,
    pretraining,
)
from mosaicbert_jax.pretraining.pretraining import Pretraining
from mosaicbert_jax.storage import checkpoint_files
from mosaicbert_jax.storage.opening import load_run
from mosaicbert_jax.storage.workdir import locked
from mosaicbert_jax.training import loop, step
from mosaicbert_jax.training import run as run_module
from mosaicbert_jax.training.optimizer import apply
from mosaicbert_jax.training.schedule import Schedule
from tests.conftest import ROOT, run_process, run_train, standard_input

ROW = {
    "step", "samples", "tokens", "loss", "masked_accuracy", "learning_rate", "tokens_per_second",
    "data_wait_fraction", "mfu", "mfu_6n", "packing_efficiency", "grad_norm",
    "overflowed_predictions", "seconds", "share",
}  # fmt: skip


def train(workdir, dataset, *overrides, config="tiny"):
    """In this process, on two devices."""
    return call(run_train(workdir, dataset, *overrides, config=config)[1:])


def call(argv):
    """main with a command line; the flags library reads sys.argv itself."""
    with mock.patch.object(sys, "argv", argv):
        return status_of(main)


def status_of(function, *arguments):
    """The exit status of a command."""
    try:
        function(*arguments)
    except SystemExit as ended:
        return ended.code
    return 0


def command(argv):
    """mosaicbert COMMAND, in this process."""
    return status_of(commands.main, argv)


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """A complete tiny run."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    assert train(workdir, dataset) == 0
    return workdir


def test_what_a_run_leaves(run, dataset):
    training = [r for r in rows(run) if "loss" in r]
    assert [r["step"] for r in training] == list(range(1, 31))
    assert all(set(r) == ROW for r in training)
    assert all(math.isfinite(v) for r in training for v in r.values())
    assert training[-1]["loss"] < training[0]["loss"] - 0.3
    assert training[0]["learning_rate"] == 0
    samples = [r["samples"] for r in training]
    assert all(b > a for a, b in itertools.pairwise(samples))
    evaluations = [r for r in rows(run) if "eval_loss" in r]
    assert [r["step"] for r in evaluations] == [15, 30]
    assert evaluations[1]["eval_loss"] < evaluations[0]["eval_loss"]
    assert 0 <= evaluations[1]["eval_masked_accuracy"] <= 1
    events = [(r["event"], r["step"]) for r in rows(run) if "event" in r]
    saved = [("saving", step) for step in (10, 20, 30)]
    assert events == [("started", 0), *saved, ("finished", 30)]
    assert [r["share"] for r in training] == [step / 30 for step in range(1, 31)]

    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["20", "30"]
    stored = json.loads((run / "config.json").read_text())
    assert stored["config"]["train"]["duration"] == "30ba"
    assert stored["model"]["vocab_size"] == 192
    assert (run / "tokenizer" / "tokenizer.json").exists()
    tensorboard = b"".join(p.read_bytes() for p in (run / "tensorboard").iterdir())
    assert b"masked_accuracy" in tensorboard
    assert b"saving" not in tensorboard


def test_a_complete_run_is_left_alone(run, dataset, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    assert train(run, dataset) == 0
    assert "This run is complete" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before


def test_weights_and_biases_if_asked_for(run, dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    overrides = ("train.duration=2ba", "log.wandb_project=bert")
    assert train(tmp_path / "a", dataset, *overrides) == 2
    assert "pip install wandb" in capsys.readouterr().err

    wandb = mock.Mock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert train(tmp_path / "b", dataset, *overrides) == 0
    assert wandb.init.call_args.kwargs["project"] == "bert"
    logged = wandb.init.return_value.log.call_args_list
    assert [c.kwargs["step"] for c in logged] == [1, 2, 2]  # the last is the evaluation
    assert "masked_accuracy" in logged[0].args[0]


def test_another_config_is_refused(run, dataset, capsys):
    assert train(run, dataset, "optimizer.learning_rate=0.5", "checkpoint.keep=7") == 2
    error = capsys.readouterr().err
    assert "optimizer.learning_rate: 0.003, now 0.5" in error
    assert "checkpoint" not in error  # how often to save changes no number
    assert error.count("\n") == 1


def test_another_data_set_is_refused(run, corpus, tmp_path, capsys):
    other = tmp_path / "other"
    assert command(
        ["prepare", "--input", str(corpus), "--output", str(other), "--vocab-size", "128"]
    ) == 0  # fmt: skip
    assert train(run, other) == 2
    assert "dataset.digest" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(dataset, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("all of it")
    assert train(tmp_path, dataset) == 2
    assert "neither empty nor a run" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_not_finite_stops_and_keeps_the_last_checkpoint(dataset, tmp_path, capsys):
    workdir = tmp_path / "run"
    # Within a few steps the parameters are so large that the loss overflows.
    overrides = (
        "optimizer.learning_rate=1e30", "checkpoint.every=1ba", "optimizer.warmup=0.1",
        "recovery.max_rollbacks=0",
    )  # fmt: skip
    assert train(workdir, dataset, *overrides) == 2
    error = capsys.readouterr().err
    assert "not finite" in error
    stopped = rows(workdir)[-1]["step"]
    assert f"step {stopped}:" in error
    steps = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
    assert steps
    assert max(steps) < stopped
    for array in np_leaves(load_run(workdir)):
        assert np.isfinite(array).all()


def np_leaves(model):
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(model, nnx.Param))]


def test_init_from_continues_from_a_run(run, dataset, tmp_path, capsys):
    workdir = tmp_path / "next"
    assert train(workdir, dataset, f"init_from={run}", "train.duration=2ba", "seed=5") == 0
    first = next(r for r in rows(workdir) if "loss" in r)
    last = [r for r in rows(run) if "loss" in r][-1]
    assert first["samples"] < 100
    assert abs(first["loss"] - last["loss"]) < 0.3  # not a new model's

    early = tmp_path / "early"
    assert train(early, dataset, f"init_from={run}", "init_from_step=20", "train.duration=1ba") == 0
    missing = tmp_path / "missing"
    assert train(missing, dataset, f"init_from={run}", "init_from_step=7") == 2
    assert "step 7; it has [20, 30]" in capsys.readouterr().err

    # A start that failed is no run yet: the folder takes the settings that are right.
    assert train(missing, dataset, f"init_from={run}", "train.duration=1ba") == 0

    wider = tmp_path / "wider"
    assert train(wider, dataset, f"init_from={run}", "model.hidden_size=64") == 2
    assert "model.hidden_size is 32" in capsys.readouterr().err


@pytest.mark.one_end
def test_the_baseline_trains_unpacked(dataset, tmp_path):
    """Learned positions, plain feed-forward, attention dropout, padding; and microbatches."""
    workdir = tmp_path / "bert"
    sizes = (
        "model.num_hidden_layers=2", "model.hidden_size=32", "model.num_attention_heads=2",
        "model.intermediate_size=64", "train.batch_tokens=2048", "train.microbatch_tokens=512",
        "train.duration=3ba", "checkpoint.every=2ba", "hardware=any",
    )  # fmt: skip
    assert train(workdir, dataset, *sizes, config="bert_base") == 0
    training = [r for r in rows(workdir) if "loss" in r]
    assert training[-1]["samples"] == 3 * 16  # one sequence a row
    assert training[-1]["packing_efficiency"] < 0.7


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.train.durtion=3ba", "did you mean train.duration?"),
        ("--config.optimizer.learning_rate=fast", "must be a number"),
        ("--config.seed=1.5", "must be a whole number"),
        ("--confg=x", "Unknown command line flag 'confg'. Did you mean: config"),
        ("--config.model.hidden_size=31", "must be a multiple of"),
        ("--config.train.duration=3 days", "train.duration='3 days' is not a duration"),
        ("--config.train.batch_tokens=1000", "must be a multiple of data.row_length=128"),
        ("--config.train.batch_tokens=-128", "train.batch_tokens=-128 must be at least 1"),
        ("--config.data.row_length=64", "data.row_length=64 is shorter than"),
        ("--config.seed=99999999999999999999", "seed=99999999999999999999 must be"),
        ("--config.train.duration=1e400ba", "is not a duration"),
        ("--config.model.dtype=float16", "loss scaling"),
        ("--config.init_from_step=3", "init_from_step is set, but init_from is not"),
        ("--config.modell.hidden_size=64", "did you mean model?"),
        ("--config.optimizer.lr=1", "optimizer.lr; there are optimizer.b1"),
        ("--config.data.masking_rate=1.5", "data.masking_rate=1.5 must be above 0 and below 1"),
        ("--config.model.vocab_size=100", "model.vocab_size=100 is smaller than"),
        ("--config.model.feed_forward=relu", "model.feed_forward must be one of"),
        ("--config.mesh.data=3", "there are 2 devices"),
        ("--config.data.path=nowhere", "nowhere"),
        ("--config.init_from=nowhere", "nowhere"),
    ],
)
def test_mistakes_are_one_line(argument, message, dataset, tmp_path, capsys):
    arguments = run_train(tmp_path / "run", dataset)[2:]
    assert call(["train.py", *arguments, argument]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_missing_config_file(tmp_path, capsys):
    assert call(["train.py", "--config=configs/none.py", f"--workdir={tmp_path}"]) == 2
    assert "configs/none.py" in capsys.readouterr().err
    assert call(["train.py"]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "configs").glob("*.py")))
def test_every_config_is_locked_and_documented(name):
    path = ROOT / "configs" / f"{name}.py"
    with mock.patch.object(sys, "argv", ["train.py", f"--config={path}", "--workdir=x"]):
        config, _ = parse(sys.argv)
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.model.no_such_field = 1
    docstring = path.read_text().split('"""')[1]
    for heading in ("Command:", "Hardware:"):
        assert heading in docstring
    assert any(heading in docstring for heading in ("Quoted:", "Result:", "Predicted:"))


def test_a_config_of_another_kind_is_refused(dataset, tmp_path, capsys):
    assert train(tmp_path / "run", dataset, config="../experiments/configs/pareto") == 2
    assert "pretraining, finetuning, glue" in capsys.readouterr().err
    assert train(tmp_path / "run", dataset, "kind=glue") == 2
    assert "the kind of a config" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def rows_of(workdir, key):
    return [r for r in rows(workdir) if key in r]


def test_learning_rate_follows_the_schedule(run):
    for row in rows_of(run, "loss"):
        share = (row["step"] - 1) / 30
        expected = Schedule(3e-3, 0.06, 0.06, "linear", 0.02).rate(share)
        assert row["learning_rate"] == pytest.approx(expected)


def test_the_optimizer_is_the_configs(dataset, tmp_path):
    config = pretraining(BertConfig(num_hidden_layers=1))
    config.data.path = str(dataset)
    config.optimizer.weight_decay = 0.25
    optimizer = Pretraining.prepare(config, tmp_path).optimizer
    params = jnp.ones(3)
    after, _ = apply(optimizer, jnp.zeros(3), optimizer.init(params), params, jnp.float32(5e-4))
    np.testing.assert_allclose(after, 0.75)  # no gradient: decay alone, at the peak


def test_evaluation_is_of_the_held_out_split_at_its_own_rate(run, dataset, tmp_path):
    validation = TokenDataset(dataset, "validation")
    tokens_T, lengths_S = validation.gather(np.arange(len(validation)))
    ordinary = len(tokens_T) - 2 * len(lengths_S)
    predictions = rows_of(run, "eval_loss")[0]["eval_predictions"]
    assert abs(predictions - 0.15 * ordinary) < 5 * math.sqrt(0.15 * 0.85 * ordinary)
    commonest = np.bincount(tokens_T).max() / ordinary
    assert abs(rows_of(run, "eval_loss")[0]["eval_commonest_accuracy"] - commonest) < 0.15

    workdir = tmp_path / "short"
    overrides = ("train.duration=1ba", "eval.max_tokens=1", "train.batch_tokens=256")
    assert train(workdir, dataset, *overrides) == 0  # one batch of 2 rows
    assert rows_of(workdir, "eval_loss")[0]["eval_predictions"] < 60 < predictions


def test_an_evaluation_cut_short_is_done_again(dataset, tmp_path):
    """A run killed in its last evaluation has no checkpoint of that step to hide behind."""
    workdir = tmp_path / "run"
    line = run_train(workdir, dataset, "train.duration=4ba", "checkpoint.every=2ba")
    patched = (
        "import os, sys; from mosaicbert_jax.pretraining import pretraining; "
        "from mosaicbert_jax.commands import train as command; sys.argv = "
        "sys.argv[1:]; pretraining.evaluate = lambda *a, **k: os._exit(9); command.main()"
    )
    assert run_process([line[0], "-c", patched, *line[1:]]).returncode == 9
    assert run_process(line).returncode == 0
    assert [r["step"] for r in rows_of(workdir, "eval_loss")] == [4]
    assert [r["step"] for r in rows_of(workdir, "loss")] == [1, 2, 3, 4]


@pytest.mark.one_end
def test_a_cpu_trains_in_bfloat16(dataset, tmp_path):
    """Slowly, as it has no such numbers; with the low precision LayerNorm and without."""
    for dtype in ("bfloat16", "float32"):
        settings = ("model.dtype=bfloat16", f"model.layer_norm_dtype={dtype}", "train.duration=2ba")
        assert train(tmp_path / dtype, dataset, *settings, "model.num_hidden_layers=1") == 0
        assert all(row["loss"] < 6 for row in rows(tmp_path / dtype) if "loss" in row)


def test_a_second_process_is_kept_out(run, dataset, capsys):
    with locked(run):
        assert train(run, dataset) == 2
    assert "another process" in capsys.readouterr().err


def test_a_checkpoint_that_its_digests_do_not_help_is_named(run, dataset, tmp_path, capsys):
    """Written wrong, and so sealed; for others that are damaged see test_recovery.py."""
    workdir = tmp_path / "damaged"
    shutil.copytree(run, workdir)
    for path in (workdir / "checkpoints" / "30").rglob("*"):
        if path.is_file() and path.parent.name != "config":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (workdir / "checkpoints" / "30" / "digests.json").unlink()
    assert command(["fill-mask", str(workdir), "[MASK]"]) == 2
    assert "30 is damaged: digests.json is missing" in capsys.readouterr().err
    checkpoint_files.seal(workdir / "checkpoints" / "30")
    assert train(workdir, dataset) == 2
    assert "checkpoints/30 cannot be read" in capsys.readouterr().err
    assert command(["fill-mask", str(workdir), "[MASK]"]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "parameters"), [("bert_base", 109_514_298), ("mosaicbert_base", 137_400_384)]
)
def test_a_config_builds_the_published_size(name, parameters):
    path = ROOT / "configs" / f"{name}.py"
    with mock.patch.object(sys, "argv", ["train.py", f"--config={path}", "--workdir=x"]):
        config, _ = parse(sys.argv)
    metadata = mock.Mock(vocab_size=30_522, padded_vocab_size=30_528, max_seq_len=128)
    model = model_config(config, metadata)
    shapes = nnx.eval_shape(lambda: BertForMaskedLM(model, rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(shapes, nnx.Param))) == parameters


def test_rows_and_microbatches():
    def shape(batch, microbatch, shards):
        config = pretraining(BertConfig())
        config.train.batch_tokens, config.train.microbatch_tokens = batch, microbatch
        return batch_shape(config, shards)

    assert shape(16 * 512, 16 * 512, 1) == BatchShape(16, microbatch_rows=16, first_rows=16)
    assert shape(16 * 512, 4 * 512, 1) == BatchShape(16, microbatch_rows=4, first_rows=16)
    assert shape(16 * 512, 4 * 512, 2) == BatchShape(16, microbatch_rows=4, first_rows=16)
    assert shape(12 * 512, 5 * 512, 1) == BatchShape(
        12, microbatch_rows=4, first_rows=12
    )  # equal parts
    with pytest.raises(UserError, match="cannot share equally"):
        shape(3 * 512, 512, 2)
    with pytest.raises(UserError, match="less than one row"):
        shape(512, 100, 1)


def test_fill_mask(run, capsys, monkeypatch):
    assert command(["fill-mask", str(run), "--top", "3", "the [MASK] of [MASK]."]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the [MASK] of [MASK]."
    assert len(lines) == 1 + 2 * (1 + 3)
    shares = [float(line.split("%")[0]) for line in lines[2:5]]
    assert shares == sorted(shares, reverse=True)

    monkeypatch.setattr("sys.stdin", standard_input(b"\nthe [MASK]\nof [MASK]\n"))
    assert command(["fill-mask", str(run), "--top", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert command(["fill-mask", str(run), "--tpo", "1", "[MASK]"]) == 2
    assert "unrecognized arguments: --tpo" in capsys.readouterr().err
    assert command(["fill-mask", str(run), "nothing hidden"]) == 2
    assert "has no [MASK]" in capsys.readouterr().err
    assert command(["fill-mask", "nowhere", "[MASK]"]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_fill_mask_agrees_with_the_model(run):
    """Padding and blocks of 32 change nothing."""
    fill = FillMask.open(run)
    (guesses,) = fill("the state of the [MASK]", top=192)
    assert abs(sum(g.probability for g in guesses) - 1) < 1e-4
    assert not any(g.token.startswith("[") and g.probability > 0 for g in guesses)
    model = load_run(run)
    assert isinstance(model, BertForMaskedLM)
    text = fill.tokenizer.encode("the state of the", add_special_tokens=False).ids
    ids = fill.special_ids
    logits = model(jnp.asarray([[ids.cls, *text, ids.mask, ids.sep]]))[0, -2]
    special = jnp.asarray([ids.pad, ids.unk, ids.cls, ids.sep, ids.mask])
    best = int(jnp.argmax(jax.nn.softmax(logits.at[special].set(-jnp.inf))))
    assert guesses[0].token == fill.tokenizer.id_to_token(best)


def test_as_a_process_no_traceback(dataset, tmp_path):
    result = run_process(run_train(tmp_path / "run", dataset, "train.lr=1"))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_run_like_another_uses_its_compiled_step(dataset, tmp_path, monkeypatch):
    """As do the seeds of a task of GLUE."""
    traced = []

    def counted(*arguments, **settings):
        traced.append(settings["microbatch_rows"])
        return step.train_step(*arguments, **settings)

    monkeypatch.setattr(run_module, "train_step", counted)

    def prepared(name, seed):
        config = tiny.get_config()
        config.data.path, config.train.duration = str(dataset), "1ba"
        config.model.num_hidden_layers, config.seed = 1, seed
        return Pretraining.prepare(config, tmp_path / name)

    first = prepared("one", 17)
    loop.train(first)
    loop.train(dataclasses.replace(prepared("like it", 18), like=first))
    assert len(traced) == 1
    loop.train(prepared("by itself", 18))
    assert len(traced) == 2
    alike, alone = (np_leaves(load_run(tmp_path / name)) for name in ("like it", "by itself"))
    for one, other in zip(alike, alone, strict=True):
        np.testing.assert_array_equal(one, other)
