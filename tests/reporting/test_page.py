"""The page that `report` writes, as its reader and as a browser take it."""

import datetime
import json
import os
import pathlib
import re
import sys
import time
from unittest import mock

import jax
import pytest
from flax import nnx

from mosaicbert_jax.commands.train import main
from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.reporting.history import History
from mosaicbert_jax.reporting.page import page
from mosaicbert_jax.storage.opening import load_run
from mosaicbert_jax.storage.workdir import locked
from tests.conftest import run_train
from tests.reporting.cases import CONFIG, Page, evaluation, event, report, row, write_run

pytestmark = pytest.mark.one_end
NOW = datetime.datetime(2026, 11, 22, 18, 0, tzinfo=datetime.UTC)
HOSTILE = "<img src=x onerror=alert(1)> & \"'\u202e"


# With the choices of the horizontal axis, or the only one.
PRETRAINING_CHARTS = {
    "loss": {"tokens linear", "tokens log", "seconds linear", "seconds log"},
    "masked_accuracy": {"tokens linear", "tokens log", "seconds linear", "seconds log"},
    "learning_rate": {"tokens linear"},
    "grad_norm": {"tokens linear"},
    "tokens_per_second": {"seconds linear"},
    "mfu": {"seconds linear"},
    "packing_efficiency": {"seconds linear"},
    "data_wait_fraction": {"seconds linear"},
}


def drawn(found: Page) -> dict[str, set[str]]:
    """The axes that each chart is drawn with; no chart comes twice."""
    kinds = [(chart["data-key"], chart["class"]) for chart in found.charts]
    assert len(set(kinds)) == len(kinds)
    return {key: {kind for k, kind in kinds if k == key} for key, _ in kinds}


def page_of(*folders: pathlib.Path) -> Page:
    """What the command writes."""
    output = folders[0].parent / "report.html"
    assert report(*folders, "--output", output) == 0
    return Page(output.read_text())


@pytest.fixture(scope="module")
def real(dataset, tmp_path_factory):
    """A run of train.py."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    settings = ("train.duration=6ba", "checkpoint.every=3ba", "train.price_per_gpu_hour=3600.0")
    command = run_train(workdir, dataset, *settings, "model.num_hidden_layers=1")
    with mock.patch.object(sys, "argv", command[1:]):  # the flags library reads it
        main()
    return workdir


def test_a_run_of_train_py(real, dataset):
    events = [
        (row["event"], row["step"])
        for row in map(json.loads, (real / "metrics.jsonl").read_text().splitlines())
        if "event" in row
    ]
    assert events == [("started", 0), ("saving", 3), ("saving", 6), ("finished", 6)]
    found = page_of(real)
    assert found.text.startswith("tiny tiny finished Written")
    assert "Finished at step 6." in found.text
    assert "2 x cpu" in found.text
    assert "100% of 6 steps" in found.text
    assert "saving × 2" in found.text
    assert "most common token" in found.text
    assert 'train.duration = "6ba" ("286720000sp")' in found.text
    assert drawn(found) == PRETRAINING_CHARTS
    metadata = DatasetMetadata.load(dataset)
    sequences = f"{metadata.splits['train'].sequences:,} training sequences"
    assert f"{dataset} (digest {metadata.digest[:12]}, {sequences})" in found.text
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(load_run(real))))
    assert f"parameters {parameters:,} data" in found.text


def test_a_running_run(tmp_path):
    rows = [event(0, "started", devices="8 x NVIDIA A100-SXM4-80GB")]
    rows += [row(step, dollars=0.05 * step) for step in range(1, 26)]
    folder = write_run(tmp_path / "run", rows)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 26, "sam')
    with locked(folder):
        found = page_of(folder)
    assert "Running, at step 25." in found.text
    assert "8 x NVIDIA A100-SXM4-80GB" in found.text
    assert "bfloat16 peak" in found.text
    assert "25.0% of 30 steps" in found.text
    assert "2 min 30 s left" in found.text
    assert "$3.75 left" in found.text
    assert "are invalid" not in found.text
    # Without the lock nobody trains there, whatever the last row says.
    assert "Not running" in page_of(folder).text


@pytest.mark.parametrize("rows", [[], [event(0, "started")]])
def test_a_run_without_a_row(tmp_path, rows):
    folder = write_run(tmp_path / "run", rows)
    if not rows:
        (folder / "metrics.jsonl").unlink()
    found = page_of(folder)
    assert "Not running" in found.text
    assert "svg" not in found.tags
    with locked(folder):
        assert "Running, before the first row" in page_of(folder).text


def test_several_runs_share_their_charts(tmp_path):
    other = CONFIG | {"seed": 23}
    first = write_run(tmp_path / "a" / "run", [row(1), row(2), evaluation(2)])
    second = write_run(tmp_path / "b" / "run", [row(1), row(50, dollars=2.0)], other)
    source = tmp_path / "report.html"
    assert report(first, second, "--output", source) == 0
    found = Page(source.read_text())
    assert found.text.count("a/run") > 3
    assert "between the runs default a/run b/run seed 17 17 23 model" in found.text
    assert drawn(found) == PRETRAINING_CHARTS
    assert found.data["names"] == ["a/run", "b/run"]
    assert found.tags["button"] == 2
    curves = source.read_text().split("<svg ")[1]  # of the loss
    assert "stroke: var(--run-0)" in curves
    assert "stroke: var(--run-1)" in curves
    assert "stroke: var(--run-2)" not in curves
    assert set(re.findall(r'class="run (\w+)"', curves)) == {"run0", "run1"}  # to highlight
    alike = write_run(tmp_path / "c", [row(1)])
    assert " seed 17 " not in page_of(first, alike).text.split("Loss and accuracy")[0]


def test_a_run_without_rows_beside_another(tmp_path):
    empty = write_run(tmp_path / "empty", [event(0, "started")])
    found = page_of(write_run(tmp_path / "run", [row(1), row(2)]), empty)
    assert found.data["runs"] == [
        {"tokens": [1000, 2000], "seconds": [2, 4]},
        {"tokens": [], "seconds": []},
    ]
    assert found.data["charts"]["loss"] == {"isShare": False, "values": [[8.99, 8.98], []]}


def test_more_runs_than_colors(tmp_path, capsys):
    folders = [write_run(tmp_path / f"run{i}", [row(1), row(2)]) for i in range(25)]
    curves = page_of(*folders[:24])
    assert drawn(curves) == PRETRAINING_CHARTS
    assert report(*folders, "--output", tmp_path / "report.html") == 2
    assert "25 runs" in capsys.readouterr().err


def test_values_that_are_not_finite_are_gaps_and_are_told(tmp_path):
    rows = [row(step, loss=None if step in (4, 5) else 3.0) for step in range(1, 10)]
    folder = write_run(tmp_path / "run", rows)
    found = page_of(folder)
    assert "2 rows, first at step 4" in found.text
    assert found.data["charts"]["loss"]["values"] == [[3, 3, 3, None, None, 3, 3, 3, 3]]
    svg = (tmp_path / "report.html").read_text().split("<svg ")[1]
    paths = [path.split("/>")[0] for path in svg.split("<path ")[1:]]
    lines = [path for path in paths if "stroke: var(--run-0)" in path and "fill: none" in path]
    assert [line.count("M ") for line in lines] == [2]  # the pen is lifted


def test_text_of_others_is_only_text(tmp_path):
    config = CONFIG | {"init_from": HOSTILE, HOSTILE: "<script>alert(2)</script>"}
    rows = [event(0, HOSTILE, devices=HOSTILE), row(1), {"step": 1, f"eval_{HOSTILE}": 1.0}]
    folder = write_run(tmp_path / HOSTILE, rows, config)
    (folder / "results.json").write_text(json.dumps({"scores": {HOSTILE: 0.5}}))
    strange = tmp_path / os.fsdecode(b"\xff\xfe")
    write_run(strange, [row(1), {"step": 1, "event": "\ud800"}])
    for folders in ([folder], [folder, strange]):
        found = page_of(*folders)
        assert found.text.count("<img src=x onerror=alert(1)>") > 5
        assert "\u202e" not in found.text


def test_a_long_run_is_thinned_and_says_so(tmp_path):
    rows = []
    for step in range(1, 100_001):
        rows.append(row(step, share=step / 1e5, grad_norm=1e6 if step == 777 else 1.0))
        if step % 100 == 0:
            rows += [evaluation(step), event(step, "saving")]
        if step % 1000 == 0:
            rows.append(event(step, "resumed"))
    folder = write_run(tmp_path / "run", rows)
    begun = time.process_time()  # of other processes on the machine, nothing
    found = page_of(folder)
    assert time.process_time() - begun < 10
    assert (tmp_path / "report.html").stat().st_size < 6e5
    points = len(found.data["runs"][0]["tokens"])
    assert 100 < points <= 200
    assert f"100,000 rows are drawn as {points} points" in found.text
    assert "50 of 1,000" in found.text


def test_the_same_input_gives_the_same_bytes(tmp_path):
    folder = write_run(tmp_path / "run", [row(1), row(2), evaluation(2), event(2, "rollback")])
    first, second = (page([History.read(folder, "run")], [], NOW) for _ in range(2))
    assert first == second
    assert "rollback" in Page(first).text
    assert "Written 2026-11-22 18:00:00 UTC" in first


def glue_suite(folder: pathlib.Path) -> pathlib.Path:
    """A suite of which CoLA is done, and a run of RTE is not."""
    done = {"19": {"loss": 0.5, "matthews": 0.5}, "717": {"loss": 0.7, "matthews": 0.6}}
    for seed, scores in done.items():
        run = write_run(folder / "cola" / seed, [row(100), event(100, "finished")])
        (run / "results.json").write_text(json.dumps({"scores": scores, "examples": 8}))
    write_run(folder / "rte" / "19", [row(40), event(40, "stopped")])
    task = {"score": 0.55, "seeds": done}
    (folder / "results.json").write_text(
        json.dumps({"tasks": {"cola": task}, "mean": 0.55, "complete": False})
    )
    (folder / "suite.json").write_text("{}")
    return folder


def test_a_glue_suite(tmp_path):
    found = page_of(glue_suite(tmp_path / "glue"))
    assert "cola 2 55.00 matthews 55.00 mean 55.00 1 of GLUE's tasks" in found.text
    assert "cola/19 finished 100 100%" in found.text
    assert "rte/19 stopped 40 40.0%" in found.text
    (tmp_path / "glue" / "results.json").write_text('{"tasks": {"cola": {"seeds": {}}}}')
    assert report(tmp_path / "glue", "--output", tmp_path / "report.html") == 2


def test_glue_over_the_checkpoints_of_a_pretraining_run(tmp_path):
    folder = tmp_path / "glue"
    for step in (500, 2000):
        glue_suite(folder / f"step-{step}")
    steps = [{"step": 500, "tokens": 2_500_000, "seconds": 90.0, "mean": 0.55}]
    (folder / "results.json").write_text(json.dumps({"steps": steps}))
    found = page_of(folder)
    assert "500 2.50 million 1 min 30 s 55.00" in found.text
    assert found.text.index("step-500") < found.text.index("step-2000")
    both = page_of(folder, write_run(tmp_path / "run", [row(1)]))
    assert drawn(both) == PRETRAINING_CHARTS


def test_scores_of_a_finetuning_run(tmp_path):
    rows = [{"step": 3, "samples": 3, "tokens": 30, "loss": 0.7, "accuracy": 0.5, "seconds": 1.0}]
    rows.append({"step": 3, "eval_loss_matched": 0.6, "eval_accuracy_matched": 0.81234})
    folder = write_run(tmp_path / "run", rows)
    (folder / "results.json").write_text('{"scores": {"accuracy_matched": 0.81234}}')
    found = page_of(folder)
    assert "Scores in results.json run accuracy matched 0.8123" in found.text
    assert "held-out accuracy matched 81.2% step 3" in found.text


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "is not a run: it has no config.json"),
        (lambda folder: folder.mkdir(), "is not a run: it has no config.json"),
        (
            lambda folder: (write_run(folder, []) / "config.json").write_text("{"),
            "cannot be read as a run's record",
        ),
        (
            lambda folder: (write_run(folder, []) / "config.json").write_text(
                '{"config": {}, "model": {}, "dataset": {}, "converted_from": "x"}'
            ),
            "holds a converted model, not a run",
        ),
    ],
)
def test_what_is_no_run_is_one_line(tmp_path, capsys, prepare, message):
    prepare(tmp_path / "it")
    assert report(tmp_path / "it", "--output", tmp_path / "report.html") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_other_mistakes(tmp_path, capsys):
    folder = write_run(tmp_path / "run", [row(1)])
    assert report(folder, "--output", folder / "metrics.jsonl") == 2
    assert "must end in .html" in capsys.readouterr().err
    assert report(folder, tmp_path / "." / "run", "--output", tmp_path / "report.html") == 2
    assert "is given twice" in capsys.readouterr().err
    assert report(folder, "--output", folder / "metrics.jsonl" / "report.html") == 2
    assert "metrics.jsonl" in capsys.readouterr().err
    assert report(folder, "--output", tmp_path / "new" / "folder" / "report.html") == 0
