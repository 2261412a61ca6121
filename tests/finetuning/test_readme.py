"""README's section "Finetune": its first commands run as they stand; all settings exist."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.finetuning.cases import pretrained, sentences, write_csv

pytestmark = pytest.mark.one_end


def commands() -> list[str]:
    """The blocks of commands in the section."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Finetune$(.*?)^## ", readme, re.M | re.S)[1]
    return re.findall(r"^```\n(python .*?)^```$", section, re.M | re.S)


def test_the_first_commands_run_as_they_stand(dataset, tmp_path):
    pretrained(tmp_path / "runs" / "mine", dataset)
    write_csv(tmp_path / "reviews.csv", sentences(40), header=("review", "verdict"))
    write_csv(tmp_path / "new_reviews.csv", [("great law",)], header=("review",))
    for name in ("train.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", commands()[0]], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={
            **os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # it computes little
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    labelled = re.findall(r"^(good|bad)\t0\.\d{4}\t(.*)$", done.stdout, re.M)
    assert [text for _, text in labelled] == ["great law", "A wonderful film."]
    assert (tmp_path / "exported" / "reviews" / "model.safetensors").exists()


def test_every_setting_that_the_section_names_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Finetune$(.*?)^## ", readme, re.M | re.S)[1]
    named = set(re.findall(r"--config\.([a-z_.]+)", section))
    assert len(named) > 8
    configs = [
        importlib.import_module(f"configs.{name}").get_config() for name in ("finetune", "glue")
    ]
    for key in named:
        assert any(has(config, key.split(".")) for config in configs)


def has(config, parts) -> bool:
    return parts[0] in config and (len(parts) == 1 or has(config[parts[0]], parts[1:]))
