"""The console script: its commands, and how a config is found."""

import subprocess
import sys

import pytest

from mosaicbert_jax import __version__
from mosaicbert_jax.commands import cli, config_line
from mosaicbert_jax.errors import UserError
from tests.conftest import ROOT


def printed(capsys, *words) -> str:
    with pytest.raises(SystemExit) as exit_:
        cli.main(words)
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_version_and_help(capsys):
    assert printed(capsys, "--version") == f"mosaicbert {__version__}\n"
    told = printed(capsys, "--help")
    assert all(f"\n    {name}" in told for name in cli.COMMANDS)


def test_help_has_the_defaults(capsys):
    told = " ".join(printed(capsys, "prepare", "--help").split())
    assert "tokens, [CLS] and [SEP] too (default: 128)" in told
    assert "(default: None)" not in told
    assert "(default: False)" not in told


def test_a_config_is_found_by_its_name():
    config, workdir, rest = config_line.read_flags(
        ["x", "--config=quickstart", "--workdir=here", "--config.seed=5"]
    )
    assert (config.kind, config.seed, workdir, rest) == ("pretraining", 5, "here", [])
    by_file, _, _ = config_line.read_flags(["x", f"--config={ROOT}/configs/quickstart.py"])
    assert by_file.train == config.train


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(UserError, match=r"no config 'quickstar': .*, quickstart, tiny$"):
        config_line.read_flags(["x", "--config=quickstar"])


def test_no_config_is_left_out():
    assert config_line.config_names() == sorted(p.stem for p in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("words", [("-m", "mosaicbert_jax", "train"), ("train.py",)])
def test_the_older_ways_in(words, tmp_path):
    done = subprocess.run(
        [sys.executable, *words, "--config", "tiny", "--workdir", str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: data.path is not set")


def test_commands_import_nothing_heavy():
    code = "import sys, mosaicbert_jax.commands.cli as cli; cli.make_parser(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"jax", "flax", "tokenizers", "pyarrow", "sklearn"} & set(done.stdout.split())
