"""Every command below a folder whose name has the characters of glob patterns."""

import pytest

from mosaicbert_jax.commands import cli
from mosaicbert_jax.storage.checkpoint_files import path_for_orbax, steps_of
from tests.finetuning.cases import sentences, write_csv

TINY = (
    "--config.model.num_hidden_layers=1", "--config.model.hidden_size=32",
    "--config.model.num_attention_heads=2", "--config.model.intermediate_size=64",
)  # fmt: skip


@pytest.mark.one_end
def test_no_path_is_taken_for_a_pattern(tmp_path, corpus, monkeypatch, capsys):
    here = tmp_path / "a[b] *c?"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "in[1].jsonl").write_bytes(corpus.read_bytes())
    write_csv(here / "texts[1].csv", sentences(60))

    def run(*words: str) -> str:
        cli.main(words)
        return capsys.readouterr().out

    run("prepare", "--input", "in[1].jsonl", "--output", "data*", "--vocab-size", "192")
    train = ("train", "--config", "tiny", "--workdir", "run[lr=3e-4]", "--config.data.path=data*")
    stopped = (*train, *TINY, "--config.checkpoint.every=1ba")
    run(*stopped, "--config.train.duration=2ba")
    run(*stopped, "--config.train.duration=2ba")  # resumes, and finds it complete
    assert steps_of(here / "run[lr=3e-4]" / "checkpoints")
    assert "%" in run("fill-mask", "run[lr=3e-4]", "the [MASK]")
    run("convert", "run[lr=3e-4]", "--output", "out[1]")
    run("convert", "out[1]", "--output", "again?")
    assert run("fill-mask", "again?", "the [MASK]") == run("fill-mask", "out[1]", "the [MASK]")
    run(
        "train", "--config", "finetune", "--workdir", "tuned[1]", "--config.init_from=run[lr=3e-4]",
        "--config.data.path=texts[1].csv", "--config.train.duration=2ba",
    )  # fmt: skip
    assert run("predict", "tuned[1]", "texts[1].csv").count("\n") == 60
    run("report", "run[lr=3e-4]", "tuned[1]", "--output", "report[1].html")
    assert (here / "report[1].html").exists()


@pytest.mark.parametrize(("name", "linked"), [("plain", False), ("a[b]", True)])
def test_a_link_stands_for_a_path_with_a_pattern_in_it_alone(tmp_path, name, linked):
    folder = tmp_path / name
    folder.mkdir()
    found = path_for_orbax(folder)
    assert found.resolve() == folder.resolve()
    assert (found != folder) == linked
