"""A newcomer's mistakes on the command line: one line each, which says what to do."""

import json
import os
import subprocess
import sys

import pytest

from mosaicbert_jax.commands import cli
from mosaicbert_jax.commands.train import help_text, main
from mosaicbert_jax.preparation import preparation
from tests.conftest import ROOT, run_process, standard_input
from tests.finetuning.cases import pretrained
from tests.training.test_pretrain import status_of

TRAIN = ("train", "--config", "tiny", "--workdir", "run", "--config.data.path=nowhere")


def refused(capsys, *words) -> str:
    assert status_of(cli.main, words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (("--config.train.duratoin=3ba",), ("train.duratoin", "did you mean train.duration?")),
        (("--config.optimizer.lr=3",), ("optimizer.lr", "optimizer.learning_rate")),
        (("--config.trian.duration=3ba",), ("trian", "did you mean train?")),
        (("--config.seed.x=3",), ("seed.x", "seed is a key itself")),
        (("--config.train=3",), ("train", "one by one")),
        (("--config.kind=glue",), ("kind",)),
        (("--config.train.batch_tokens=10.5",), ("train.batch_tokens='10.5'", "whole number")),
        (("--config.optimizer.learning_rate=abc",), ("learning_rate='abc'", "a number")),
        (("--config.train.deterministic=maybe",), ("deterministic='maybe'", "True or False")),
        (("--config.train.duration=100",), ("train.duration='100'", "100ba?")),
        (("--config.init_from=https://a/b",), ("https://a/b", "gs://, s3://")),
        (("--config.data.mixture=(('hf://a/b', 1.0),)",), ("hf://a/b",)),
    ],
)
def test_settings(capsys, words, facts):
    error = refused(capsys, *TRAIN, *words)
    assert all(fact in error for fact in facts), error


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (("train", "--config", "quikstart", "--workdir", "run"), ("did you mean quickstart?",)),
        (
            ("train", "--config", f"{ROOT}/configs/tny.py", "--workdir", "run"),
            ("tny.py", "configs/tiny.py?"),
        ),
        (("train", "--config", "tiny", "--workdir", "az://b/run"), ("az://b/run",)),
        (("prepare", "--input", "https://a.b/c.txt", "--output", "o"), ("https://a.b/c.txt",)),
        (("prepare", "--input", __file__, "--output", "o"), (".py",)),
        (("fill-mask", "bert-base-uncased", "[MASK]"), ("snapshot_download('bert-base-uncased'",)),
        (("convert", "google/bert", "--output", "o"), ("snapshot_download('google/bert'",)),
        (("predict", "no/such/folder"), ("no/such/folder",)),
        (("fill-mask", "nowhere", "a", "b\udce9"), ("nowhere",)),
        (
            ("plan", "--config", "tiny", "--gpu", "h100", "--picture", "a.gif"),
            ("a.gif", ".png"),
        ),
    ],
)
def test_paths(capsys, monkeypatch, tmp_path, words, facts):
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, *words)
    assert all(fact in error for fact in facts), error
    assert not list(tmp_path.iterdir())


def test_tokenizers_of_the_hub_are_not_downloaded(capsys, monkeypatch, tmp_path, corpus):
    monkeypatch.chdir(tmp_path)
    words = ("prepare", "--input", str(corpus), "--output", "o", "--tokenizer", "bert-base-cased")
    assert "snapshot_download('bert-base-cased'" in refused(capsys, *words)


@pytest.mark.parametrize("platform", ["cuda", "cudda"])
def test_a_device_that_is_not_there(platform, tmp_path, dataset):
    words = (
        "--config",
        "tiny",
        "--workdir",
        str(tmp_path / "run"),
        f"--config.data.path={dataset}",
    )
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"JAX_PLATFORMS={platform}" in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name", ["mosaicbert_base", "mosaicbert_large", "mosaicbert_1b", "bert_base"]
)
def test_a_config_for_gpus_is_refused_on_a_cpu(capsys, dataset, tmp_path, name):
    words = ("train", "--config", name, "--workdir", str(tmp_path / "run"))
    error = refused(capsys, *words, f"--config.data.path={dataset}")
    assert "--config quickstart" in error
    assert "--config.hardware=any" in error
    assert not (tmp_path / "run").exists()


def test_help_lists_the_keys_of_a_config(capsys):
    for words in (("--config", "tiny"), ("--config=tiny", "--config.train.duration=9ba")):
        assert status_of(cli.main, ("train", *words, "--help")) is None
        told = capsys.readouterr().out
        assert "--extend" in told
        assert (
            f"--config.train.duration={'9ba' if len(words) == 2 and '=' in words[1] else '30ba'}"
            in told
        )
        assert "slots of a step, on all devices together" in told
    assert "--config quickstart --help" in help_text("train.py", ["train.py", "--help"])
    assert "learning_rate" not in help_text("train.py", ["train.py"])
    glue = help_text("train.py", ["train.py", "--config=glue"])
    assert "--config.recipes.rte.epochs=" in glue


def test_train_py_has_the_same_help(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--config=tiny", "--help"])
    assert status_of(main) == 0
    assert "--config.optimizer.learning_rate=0.003" in capsys.readouterr().out


def test_texts_from_standard_input(dataset, tmp_path, capsys, monkeypatch):
    run = str(pretrained(tmp_path / "run", dataset))
    monkeypatch.setattr("sys.stdin", standard_input(b""))
    assert "standard input is empty" in refused(capsys, "fill-mask", run)
    monkeypatch.setattr("sys.stdin", standard_input(b"the [MASK]\ncaf\xe9 [MASK]\n"))
    assert "line 2: byte 4" in refused(capsys, "fill-mask", run)
    assert "text 2" in refused(capsys, "fill-mask", run, "the [MASK]", "caf\udce9 [MASK]")
    cli.main(["fill-mask", run, "https://a.b is [MASK]"])  # a text, and no path
    assert "%" in capsys.readouterr().out


def test_an_interrupted_preparation_says_where_it_resumes(corpus, tmp_path, monkeypatch, capsys):
    words = ("prepare", "--input", str(corpus), "--output", str(tmp_path / "set"))

    def interrupt(*arguments):
        raise KeyboardInterrupt

    for name, fact in (
        ("train_tokenizer", "nothing was written"),
        ("Assembly", "the tokenizer is"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(preparation, name, interrupt)
            assert status_of(cli.main, words) == 130
        error = capsys.readouterr().err
        assert fact in error
        assert error.count("\n") == 1
    assert status_of(cli.main, words) == 0
    assert (
        json.loads((tmp_path / "set" / "dataset.json").read_text())["options"]["vocab_size"]
        == "scaled"
    )


def test_the_quickstart_ends_quietly_where_it_was_stopped(tmp_path):
    """A command that exits with 75, as after Ctrl-C, is no error of make."""
    (tmp_path / "bin").mkdir()
    for name, status in (("mosaicbert", 75), ("python", 0)):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\n[ "$1" = prepare ] || exit {status}\n')
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin" / "installed").touch()
    words = ["make", "-s", "-o", f"{tmp_path}/bin/installed", f"BIN={tmp_path}/bin", "quickstart"]
    done = run_process(words)
    assert done.returncode == 0, done.stderr
    assert "make quickstart resumes it" in done.stdout
    assert not done.stderr
