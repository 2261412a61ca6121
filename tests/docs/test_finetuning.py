"""docs/finetuning.md: its first commands run as they stand."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.finetuning.cases import pretrained, sentences, write_csv

pytestmark = pytest.mark.one_end


def test_the_first_commands_run_as_they_stand(dataset, tmp_path):
    page = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
    commands = re.findall(r"^```bash\n(.*?)^```$", page, re.M | re.S)
    pretrained(tmp_path / "runs" / "mine", dataset)
    write_csv(tmp_path / "reviews.csv", sentences(40), header=("review", "verdict"))
    write_csv(tmp_path / "new_reviews.csv", [("great law",)], header=("review",))
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", commands[0]], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={
            **os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # it computes little
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    labeled = re.findall(r"^(good|bad)\t0\.\d{4}\t(.*)$", done.stdout, re.M)
    assert [text for _, text in labeled] == ["great law", "A wonderful film."]
    assert (tmp_path / "exported" / "reviews" / "model.safetensors").exists()
