"""What README.md and the pages of docs/ name exists, and README's commands run."""

import importlib
import importlib.util
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

from mosaicbert_jax.commands import cli
from tests.conftest import ROOT
from tests.finetuning.cases import sentences, write_csv

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
_SETTING = r"--config\.([a-z_.]+)"
CONFIGS = ("mosaicbert_base", "finetune", "glue")


def test_every_setting_exists():
    configs = [importlib.import_module(f"configs.{config}").get_config() for config in CONFIGS]
    named = {(name, key) for name, text in TEXTS.items() for key in re.findall(_SETTING, text)}
    assert sum(name == "finetuning.md" for name, _ in named) > 8
    assert len(named) > 30
    for name, key in named:
        assert any(has(config, key.split(".")) for config in configs), (name, key)


def has(config, parts) -> bool:
    return parts[0] in config and (len(parts) == 1 or has(config[parts[0]], parts[1:]))


def test_every_command_and_option_exists(capsys):
    blocks = [
        block.replace("\\\n", " ")
        for text in TEXTS.values()
        for block in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S)
    ]
    lines = re.findall(r"mosaicbert (\w[\w-]* .*)", "\n".join(blocks))
    assert len(lines) > 20
    for line in lines:
        command = line.split()[0]
        assert command in cli.COMMANDS, line
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        told = capsys.readouterr().out
        for option in re.findall(r" (--[a-z-]+)(?= |=|$)", line):
            assert option in told, line


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name):
    place = next(page for page in PAGES if page.name == name).parent
    for target in re.findall(r"\]\(([^)#\s]+)", TEXTS[name]):
        if not target.startswith("http"):
            assert (place / target).exists(), target


def test_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 200


@pytest.mark.one_end
def test_readmes_commands_run(tmp_path):
    """Its own text in three lines, and what follows, with shorter training."""
    section = re.search(r"^## Your own text$(.*?)^## ", TEXTS["README.md"], re.M | re.S)[1]
    own, then = re.findall(r"^```bash\n(.*?)^```$", section, re.M | re.S)
    install, *lines = own.splitlines()
    assert "pip install" in install  # as it was for this test
    short = " --config.train.duration=2ba --config.model.num_hidden_layers=1"
    script = "\n".join([*lines[:-1], lines[-1] + short, then])
    script = script.replace("label=verdict", "label=verdict --config.train.duration=2ba")
    modern = re.search(r"^## ModernBERT$(.*?)^## ", TEXTS["README.md"], re.M | re.S)[1]
    (modern,) = re.findall(r"^```bash\n(.*?)^```$", modern, re.M | re.S)
    script += modern.replace("data.path=data/bpe", f"data.path=data/bpe{short}")
    texts = [f"{text} {number}." for number, (text, _) in enumerate(sentences(200))]
    (tmp_path / "articles.txt").write_text("\n".join(texts[:100]))
    with (tmp_path / "notes.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts[100:])
    write_csv(tmp_path / "reviews.csv", sentences(40), header=("review", "verdict"))
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ +\d+\.\d%  \S+$", done.stdout, re.M)
    assert (tmp_path / "exported" / "reviews" / "model.safetensors").exists()
    config = json.loads((tmp_path / "exported" / "modern" / "config.json").read_text())
    assert config["model_type"] == "modernbert"


@pytest.mark.one_end
def test_the_try_out_of_buckets_runs(tmp_path):
    """docs/buckets.md's, with less text and shorter training."""
    for package in ("s3fs", "moto"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[dev]'")
    section = re.search(r"^## Try it on one machine$(.*?)^## ", TEXTS["buckets.md"], re.M | re.S)[1]
    (script,) = re.findall(r"^```bash\n(.*?)^```$", section, re.M | re.S)
    install, *lines = script.splitlines()
    assert "pip install" in install  # as it was for this test
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    script = (
        "\n".join(lines).replace("5005", str(port)).replace("--input embedded", "--input a.txt")
    )
    script = script.replace("4096", "192").replace("duration=1m", "duration=2ba")
    script = script.replace("curl -X PUT", "curl --retry 20 --retry-connrefused -s -X PUT")
    (tmp_path / "a.txt").write_text(
        "\n".join(f"{text} {n}." for n, (text, _) in enumerate(sentences(200)))
    )
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", f"trap 'kill $(jobs -p)' EXIT\n{script}"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={
            **os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "data set: s3://mine/data" in done.stdout
    assert re.search(r"^ +\d+\.\d%  \S+$", done.stdout, re.M)
